"""KuaiRand-Pure, standard feed of 8 to 21 April 2022: 1,134,420 views of 23,951 users and 7,111 videos after 5-core.

Source: https://kuairand.com, `log_standard_4_08_to_4_21_pure.csv`, put into the data folder by hand. Times are in
milliseconds. Videos shown at random are in other files and do not enter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...zoo.data.log_reader import RawLog, read_log
from ...zoo.data.log_sample import Events
from ...zoo.data.logs import LogDataset


class KuaiRand(LogDataset):
    """KuaiRand-Pure: two weeks of short-video views with times in milliseconds."""

    tasks = ("next_item",)
    license = "CC BY-SA 4.0"
    citation = "Gao et al., KuaiRand, CIKM 2022, arXiv:2208.08696"
    homepage = "https://kuairand.com"
    files = {"log_standard_4_08_to_4_21_pure.csv": ""}
    time_unit = "ms"

    def read_file(self, file: Path) -> RawLog:
        """Columns by name, milliseconds."""
        return read_log(file, {"user": "user_id", "item": "video_id", "time": "time_ms"}, time_unit=self.time_unit)

    def write_file(self, file: Path, events: Events) -> None:
        """User, video, a click, and milliseconds."""
        user, item, rating, time = events
        table = np.stack([user, item, rating > 3, time * 1000], 1)
        np.savetxt(file, table, fmt="%d", delimiter=",", header="user_id,video_id,is_click,time_ms", comments="")
