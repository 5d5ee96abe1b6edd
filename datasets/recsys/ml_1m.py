"""MovieLens-1M, the official `ratings.dat`: 1,000,209 ratings of 6,040 users on 3,706 films, 2000-04 to 2003-02.

Source: https://grouplens.org/datasets/movielens/1m/. The file is put into the data folder by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset


class ML1M(LogDataset):
    """MovieLens-1M: a million film ratings with real timestamps."""

    tasks = ("next_item",)
    license = "MovieLens terms: research use with acknowledgement, no redistribution, no commercial use"
    citation = "Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4):19, 2015, doi:10.1145/2827872"
    homepage = "https://grouplens.org/datasets/movielens/1m/"
    files = {"ratings.dat": ""}

    def read_file(self, file: Path) -> RawLog:
        """`user::item::rating::time`, no header, seconds."""
        return read_log(file, {"user": 0, "item": 1, "time": 3}, separator="::", header=False)

    def write_file(self, file: Path, events: Events) -> None:
        """The same layout."""
        np.savetxt(file, np.stack(events, 1), fmt="%d", delimiter="::")
