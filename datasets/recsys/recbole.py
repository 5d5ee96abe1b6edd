"""Any RecBole atomic file: `<name>.inter`, tab-separated, with a header of `field:type`.

Format: https://recbole.io/atomic_files.html. `zoo train sasrec/recbole data.root=FOLDER data.file=ml-100k.inter`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset


class RecBole(LogDataset):
    """RecBole atomic `.inter` files, timestamps read exactly."""

    tasks = ("next_item",)
    license = "that of the data"
    homepage = "https://recbole.io/atomic_files.html"
    reading = ("user", "item", "time", "duplicates", "timestamps")

    def __init__(
        self,
        *,
        file: str = "log.inter",
        user: str = "user_id:token",
        item: str = "item_id:token",
        time: str = "timestamp:float",
        **log,
    ):
        """`file` lies in `root`; `user`, `item` and `time` are header fields, type included."""
        super().__init__(**log)
        self.file, self.columns = file, {"user": user, "item": item, "time": time}

    def source_files(self) -> tuple[str, ...]:
        """The one `.inter` file."""
        return (self.file,)

    def read_settings(self) -> dict:
        """The columns."""
        return self.columns

    def read_file(self, file: Path) -> RawLog:
        """Columns by header field."""
        return read_log(file, self.columns, separator="\t")

    def write_file(self, file: Path, events: Events) -> None:
        """The three columns and a rating."""
        header = "\t".join([self.columns["user"], self.columns["item"], "rating:float", self.columns["time"]])
        np.savetxt(file, np.stack(events, 1), fmt="%d", delimiter="\t", header=header, comments="")
