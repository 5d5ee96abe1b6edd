"""Amazon Beauty (2014 release) as RecBole distributes it: 198,502 reviews of 22,363 users on 12,101 products (5-core).

Source: https://recbole.io/dataset_list.html, `Amazon_Beauty.inter`, put into the data folder by hand. Times are whole
days in seconds, so that events of one day keep the order of the file.
"""

from __future__ import annotations

from .recbole import RecBole


class AmazonBeauty(RecBole):
    """Amazon Beauty: product reviews with the day of each."""

    tasks = ("next_item",)
    license = "Amazon review data: research use; not to be redistributed"
    citation = "McAuley et al., Image-based Recommendations on Styles and Substitutes, SIGIR 2015, arXiv:1506.04757"
    homepage = "https://recbole.io/dataset_list.html"

    def __init__(self, *, file: str = "Amazon_Beauty.inter", **log):
        """`file` lies in `root`."""
        super().__init__(file=file, **log)
