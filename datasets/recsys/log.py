"""Any interaction log: CSV, TSV, JSON lines or Parquet; the recipe says which columns hold user, item and time.

    zoo train sasrec/log data.root=FOLDER data.file=sales.csv data.user=customer data.item=sku data.time=sold_at
    statezoo.create_dataset("log", data=frame, user="customer", item="sku", time="sold_at")

Times are whole numbers in `time_unit`, or ISO 8601 strings; `docs/logs.md` says what each setting means.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Literal

import numpy as np

from ...zoo.data.base import Part
from ...zoo.data.log_frame import Frame, store, told
from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.log_sources import JSON_LINES, SEPARATORS, kind_of, parts
from ...zoo.data.logs import LogDataset
from ...zoo.data.spec import Spec
from ...zoo.errors import BadArgument


class Log(LogDataset):
    """Your own interaction log: CSV, TSV, JSON lines or Parquet with columns named by the recipe."""

    tasks = ("next_item",)
    license = "that of the data"
    reading = (
        "user", "item", "time", "columns", "separator", "time_unit", "time_zone", "future", "duplicates", "timestamps",
    )  # fmt: skip

    def __init__(
        self,
        *,
        file: str = "log.csv",
        user: str = "user",
        item: str = "item",
        time: str = "time",
        columns: str | None = None,
        separator: str = ",",
        time_unit: Literal["s", "ms", "us", "ns"] = "s",
        time_zone: str | None = None,
        future: bool = False,
        **log,
    ):
        """`file`, or a folder of its parts, lies in `root`; `columns=user,item,time` names those of headless text.

        `separator`: one character, a doubled one, or tab, comma, semicolon, pipe, space. `time_zone` of times that
        state none; `future` admits events later than now.
        """
        super().__init__(**log)
        texts = {"file": file, "user": user, "item": item, "time": time, "separator": separator}
        optional = {"columns": columns, "time_zone": time_zone}
        for name, value in (texts | optional).items():
            if not isinstance(value, str) and (value is not None or name in texts):
                raise BadArgument(f"log: {name}={value}: give text")
        self.file, self.columns = file, {"user": user, "item": item, "time": time}
        self.separator = SEPARATORS.get(separator, separator)
        self.names = () if columns is None else tuple(name.strip() for name in columns.split(","))
        self.time_unit, self.time_zone, self.future = time_unit, time_zone, future
        self.frame: Frame | None = None

    @classmethod
    def from_frame(cls, frame, folder: Path | None = None, **config) -> Log:
        """The events of a pandas DataFrame, by the columns that `user`, `item` and `time` name.

        They are copied to `folder`; default the cache.
        """
        for name in ("root", "file"):
            if config.get(name) is not None:
                raise BadArgument(f"{name}={config[name]} and a DataFrame are two sources of one log; give one")
        plain = cls(**config)
        stored = store(frame, plain.columns, folder, plain.time_zone)
        adapter = cls(**config | {"root": stored.file.parent, "file": stored.file.name})
        adapter.frame = stored
        return adapter

    def manifest(self) -> dict[str, str]:
        """Of a frame the hash of its content."""
        return {"DataFrame": self.frame.sha256} if self.frame else super().manifest()

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """As for every log."""
        with told(self.frame):
            return super().build()

    def inference(self, source: Path, prep: Path) -> Part:
        """As for every log."""
        with told(self.frame):
            return super().inference(source, prep)

    def source_files(self) -> tuple[str, ...]:
        """The log file, or the parts in its folder."""
        place = self.log_file()
        if not place.is_dir():
            return (self.file,)
        return tuple((Path(self.file) / file.relative_to(place)).as_posix() for file in parts(place))

    def log_file(self) -> Path:
        """The log file, or its folder of parts."""
        return self.folder / self.file

    def read_settings(self) -> dict:
        """Columns, separator, unit and zone, and whether the future is admitted."""
        settings = {**self.columns, "separator": self.separator, "unit": self.time_unit, "future": self.future}
        return {**settings, "names": list(self.names), "zone": self.time_zone}

    def read_file(self, file: Path) -> RawLog:
        """Columns by name."""
        return read_log(
            file, self.columns, separator=self.separator, names=self.names, time_unit=self.time_unit,
            time_zone=self.time_zone, future=self.future,
        )  # fmt: skip

    def write_file(self, file: Path, events: Events) -> None:
        """The columns that the recipe names, and the rating, in the format that the file's name says."""
        role = {name: role for role, name in self.columns.items()}
        given = dict(zip(("user", "item", "rating", "time"), events, strict=True))
        names = self.names or (self.columns["user"], self.columns["item"], "rating", self.columns["time"])
        columns = {name: given.get(role.get(name, name), np.zeros_like(events.time)) for name in names}
        kind, packed = kind_of(file)
        if kind == ".parquet":
            import pandas as pd

            pd.DataFrame(columns).to_parquet(file, index=False)
            return
        if kind in JSON_LINES:
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
        else:
            header = {} if self.names else {"header": self.separator.join(names), "comments": ""}
            table, stream = np.stack(list(columns.values()), 1), io.BytesIO()
            np.savetxt(stream, table, fmt="%d", delimiter=self.separator, encoding="utf-8", **header)
            text = stream.getvalue()
        file.write_bytes(gzip.compress(text, mtime=0) if packed else text)
