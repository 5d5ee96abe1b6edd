"""MovieLens-100K, the official `u.data`: 100,000 ratings of 943 users on 1,682 films, 1997-09 to 1998-04.

Source: https://grouplens.org/datasets/movielens/100k/. Each rating counts as one interaction, as in the papers.
People rated many films in one sitting: a tenth of the events shares its second with another of the same user.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset


class ML100K(LogDataset):
    """MovieLens-100K: 100,000 film ratings with real timestamps."""

    tasks = ("next_item",)
    license = "MovieLens terms: research use with acknowledgement, no redistribution, no commercial use"
    citation = "Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4):19, 2015, doi:10.1145/2827872"
    homepage = "https://grouplens.org/datasets/movielens/100k/"
    files = {"u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"}
    urls = {"ml-100k.zip": ("https://files.grouplens.org/datasets/movielens/ml-100k.zip",)}

    def read_file(self, file: Path) -> RawLog:
        """Tab-separated `user item rating time`, no header, seconds."""
        return read_log(file, {"user": 0, "item": 1, "time": 3}, separator="\t", header=False)

    def write_file(self, file: Path, events: Events) -> None:
        """The same layout."""
        np.savetxt(file, np.stack(events, 1), fmt="%d", delimiter="\t")
