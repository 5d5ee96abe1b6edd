"""Steam reviews as RecBole distributes them: players, games and the day of each review; 13,047 games after 5-core.

Source: https://recbole.io/dataset_list.html, `steam.inter`, put into the data folder by hand.
"""

from __future__ import annotations

from .recbole import RecBole


class Steam(RecBole):
    """Steam: reviews of games with the day of each."""

    tasks = ("next_item",)
    license = "research use; not to be redistributed"
    citation = "Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, arXiv:1808.09781"
    homepage = "https://recbole.io/dataset_list.html"

    def __init__(self, *, file: str = "steam.inter", item: str = "product_id:token", **log):
        """`file` lies in `root`; games are products here."""
        super().__init__(file=file, item=item, **log)
