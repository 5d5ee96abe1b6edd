"""MovieTweetings, `ratings.dat`: film ratings that people posted on Twitter from IMDb, in real unix seconds.

This snapshot: 141,695 ratings of 21,081 users on 12,611 films, 2013-02-28 to 2013-11-06.
Source: https://github.com/sidooms/MovieTweetings. Item ids are IMDb's, leading zeros included.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset

SNAPSHOT = "https://raw.githubusercontent.com/RodolfoViana/MovieTweetings/8917fd3bf8b8e3c7ca3ae11cd1d1a8b946630e84"


class MovieTweetings(LogDataset):
    """MovieTweetings: 141,695 film ratings posted on Twitter, with real timestamps."""

    tasks = ("next_item",)
    license = "MIT"
    citation = (
        "Dooms, De Pessemier and Martens, MovieTweetings: a Movie Rating Dataset Collected From Twitter, CrowdRec 2013"
    )
    homepage = "https://github.com/sidooms/MovieTweetings"
    files = {"ratings.dat": "38677e4a858d3356326dfe0db73cc381c29043a9da4ade8c00a45486e2488c37"}
    urls = {"ratings.dat": (SNAPSHOT + "/latest/ratings.dat",)}

    def read_file(self, file: Path) -> RawLog:
        """`user::item::rating::time`, no header, seconds."""
        return read_log(file, {"user": 0, "item": 1, "time": 3}, separator="::", header=False)

    def write_file(self, file: Path, events: Events) -> None:
        """The same layout, with seven-digit item ids."""
        np.savetxt(file, np.stack(events, 1), fmt=("%d", "%07d", "%d", "%d"), delimiter="::")
