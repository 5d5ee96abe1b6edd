"""Any interaction log as CSV, TSV or Parquet; the recipe says which columns hold user, item and time.

    zoo train sasrec/log data.root=FOLDER data.file=sales.csv data.user=customer data.item=sku data.time=sold_at

Times are whole numbers in `time_unit`, or ISO 8601 strings with a time zone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset


class Log(LogDataset):
    """Your own interaction log: CSV, TSV or Parquet with columns named by the recipe."""

    tasks = ("next_item",)
    license = "that of the data"

    def __init__(
        self,
        *,
        file: str = "log.csv",
        user: str = "user",
        item: str = "item",
        time: str = "time",
        separator: str = ",",
        time_unit: Literal["s", "ms", "us", "ns"] = "s",
        future: bool = False,
        **log,
    ):
        """`file` lies in `root`; `future` admits events later than now."""
        super().__init__(**log)
        self.file, self.columns = file, {"user": user, "item": item, "time": time}
        self.separator, self.time_unit, self.future = separator, time_unit, future

    def source_files(self) -> tuple[str, ...]:
        """The one log file."""
        return (self.file,)

    def read_settings(self) -> dict:
        """Columns, separator, unit, and whether the future is admitted."""
        return {**self.columns, "separator": self.separator, "unit": self.time_unit, "future": self.future}

    def read_file(self, file: Path) -> RawLog:
        """Columns by name."""
        return read_log(file, self.columns, separator=self.separator, time_unit=self.time_unit, future=self.future)

    def write_file(self, file: Path, events: Events) -> None:
        """The columns that the recipe names, and the rating."""
        header = self.separator.join([self.columns["user"], self.columns["item"], "rating", self.columns["time"]])
        if file.suffix == ".parquet":
            import pandas as pd

            pd.DataFrame(dict(zip(header.split(self.separator), events, strict=True))).to_parquet(file, index=False)
        else:
            np.savetxt(file, np.stack(events, 1), fmt="%d", delimiter=self.separator, header=header, comments="")
