"""The sample of the log adapters is the process that its docstring states, and time in it carries information."""

import numpy as np
import pytest
from statezoo.zoo.data.log_sample import FIRST_SECOND, GENRES, ITEMS, P_LONG, P_RULE, generate

SIZE = ITEMS // GENRES


@pytest.fixture(scope="module")
def steps():
    """Per step from one event of a user to the next: item before, gap before it was long, next item, by rule's mark."""
    user, item, rating, time = generate(seed=7, users=1200)
    order = np.lexsort((time, user))
    user, item, rating, time = user[order], item[order] - 1, rating[order], time[order]
    step = np.flatnonzero(np.diff(user) == 0)
    gap = np.diff(time)
    # a user's first event begins a session
    was_long = np.where(np.isin(step, step + 1), gap[np.maximum(step - 1, 0)] > 200, True)
    return {
        "item": item[step],
        "next": item[step + 1],
        "rating": rating[step + 1],
        "gap": gap[step],
        "was_long": was_long,
        "user": user[step],
    }


def sequel(item):
    return item // SIZE * SIZE + (item % SIZE + 1) % SIZE


def counterpart(item):
    return (item // SIZE + 1) % GENRES * SIZE + item % SIZE


def by_rule(steps):
    return np.where(steps["was_long"], sequel(steps["item"]), counterpart(steps["item"]))


def within(measured, stated, n, spread=None):
    """Within three standard errors of a share (or of a mean with the given spread) over n draws."""
    return abs(measured - stated) < 3 * (spread or np.sqrt(stated * (1 - stated))) / np.sqrt(n)


def test_gaps_are_as_stated(steps):
    gap, n = steps["gap"], len(steps["gap"])
    is_long = gap > 200
    assert within(is_long.mean(), P_LONG, n)
    short = gap[~is_long]
    assert short.min() == 20 and short.max() == 200 and within(short.mean(), 110, len(short), 181 / np.sqrt(12))
    log = np.log(gap[is_long] - 3600)
    assert within(log.mean(), np.log(2 * 86_400), len(log), 1.0) and within(log.std(), 1.0, len(log), 1 / np.sqrt(2))
    same_place = [is_long[steps["item"] % SIZE == place].mean() for place in range(SIZE)]
    counts = np.bincount(steps["item"] % SIZE)
    assert all(within(share, P_LONG, n) for share, n in zip(same_place, counts, strict=True)), "whatever the item is"


def test_the_rule_is_followed_as_often_as_stated(steps):
    n = len(steps["next"])
    # ratings are 5 by rule, else 1 to 5 with equal chance: four of five draws from taste are marked as such
    free = steps["rating"] < 5
    assert within(free.mean(), (1 - P_RULE) * 4 / 5, n)
    hit = steps["next"] == by_rule(steps)
    assert (steps["rating"][hit] == 5).mean() > 0.9
    chance = hit[free].mean()  # a draw from taste may meet the rule
    assert within(hit.mean(), P_RULE + (1 - P_RULE) * chance, n)
    for was_long in (True, False):
        some = steps["was_long"] == was_long
        assert within(hit[some].mean(), P_RULE + (1 - P_RULE) * hit[some & free].mean(), some.sum())


def test_who_knows_the_last_gap_predicts_better(steps):
    """Against the best that a table of (item, next item) can do, fitted on the very events it is measured on."""
    n = len(steps["next"])
    knows = (steps["next"] == by_rule(steps)).mean()
    table = np.zeros((ITEMS, ITEMS))
    np.add.at(table, (steps["item"], steps["next"]), 1)
    blind = (steps["next"] == table.argmax(1)[steps["item"]]).mean()
    fixed = {rule.__name__: (steps["next"] == rule(steps["item"])).mean() for rule in (sequel, counterpart)}
    assert knows > P_RULE - 3 * np.sqrt(P_RULE * (1 - P_RULE) / n)
    assert fixed["sequel"] < fixed["counterpart"] <= blind + 1e-12, "short gaps are the more frequent"
    assert knows - blind > 0.2


def test_the_log_has_the_stated_shape():
    user, item, rating, time = events = generate(seed=3)
    assert all(array.dtype == np.int64 for array in events)
    assert sorted(set(user.tolist())) == list(range(1, 401)) and sorted(set(item.tolist())) == list(range(1, ITEMS + 1))
    assert sorted(set(rating.tolist())) == [1, 2, 3, 4, 5] and time.min() >= FIRST_SECOND
    count = np.bincount(user)[1:]
    assert count.min() >= 8 and within(count.mean(), 24, 400, 4.0)
    assert (np.diff(user) < 0).any(), "rows are shuffled as in real logs"
    assert all(np.array_equal(a, b) for a, b in zip(events, generate(seed=3), strict=True))
    # a user's events do not depend on how many users there are
    few = generate(seed=3, users=5)
    for name in range(1, 6):
        of = lambda log: sorted(zip(log.time[log.user == name], log.item[log.user == name], strict=True))  # noqa: E731, B023
        assert of(few) == of(events)
