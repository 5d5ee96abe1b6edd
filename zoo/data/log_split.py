"""Interaction logs from raw rows to sorted user histories and split positions.

Tie rule: events are sorted by (user, time, row of the file), so that events of one second keep the file's order.

- `k_core`: rows of users and items with fewer than k events are taken away until none is left (the papers' filter).
- `leave_two_out`: a user's last event is the test target, the one before it the validation target, the rest trains
  (the papers' split; training events of one user may be later than test events of another).
- `global_time`: nothing of training is later than anything that is tested. Two cuts, at quantiles of all event times
  or as stated; the k-core of what lies before the first is trained and says which items are known. A user's last
  event between the cuts is a validation target and the last one after the second a test target, given all earlier
  events of that user with known items, whether the user was trained or not: what a recommender has when it serves.
- `everything`: the k-core of all events trains and nothing is held out, for the model that serves in the end.

A target that training never saw stays a target, which no model can rank: it is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ZooError
from .log_reader import RawLog


@dataclass
class SplitLog:
    """User histories, flat and sorted, with the positions of the split; what every part of a log is read from.

    `item` holds codes 1..num_items (0 is padding). A user's events are `start[u]:start[u+1]`, the training ones
    `start[u]:train_end[u]`. For part p, `p_user` lists evaluated users, their target is `p_item` at `p_time` (item 0:
    unknown to training) and their history `start[u]:p_end`.
    """

    arrays: dict[str, np.ndarray]
    users: list[str]
    items: list[str]
    counts: dict[str, int]

    def trained(self) -> np.ndarray:
        """How often each item occurs in training, in the order of `items`."""
        return np.bincount(self.arrays["item"][_training_positions(self.arrays)], minlength=len(self.items) + 1)[1:]


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Boolean mask of the rows that remain when users and items each keep at least k events."""
    keep = np.ones(len(user), bool)
    while k > 1:
        enough_u = np.bincount(user[keep], minlength=user.max() + 1) >= k
        enough_i = np.bincount(item[keep], minlength=item.max() + 1) >= k
        now = keep & enough_u[user] & enough_i[item]
        if now.sum() == keep.sum():
            break
        keep = now
    return keep


def find_duplicates(log: RawLog) -> np.ndarray:
    """Rows that repeat an earlier (user, item, time), ascending."""
    order = np.lexsort((np.arange(len(log)), log.time, log.item, log.user))
    same = (np.diff(log.user[order]) == 0) & (np.diff(log.item[order]) == 0) & (np.diff(log.time[order]) == 0)
    return np.sort(order[1:][same])


def leave_two_out(log: RawLog, k: int) -> SplitLog:
    """The papers' split: last event tests, second last validates; users with fewer than three events only train."""
    history = _core(log, k)
    a = history.arrays
    end, size = a["start"][1:], np.diff(a["start"])
    tested = np.flatnonzero(size >= 3)
    a["train_end"] = np.where(size >= 3, end - 2, end)
    for part, back in (("valid", 2), ("test", 1)):
        at = end[tested] - back
        _targets(a, part, tested, a["item"][at], a["time"][at], at)
    seen = np.append(False, history.trained() > 0)
    history.counts |= {
        "users_with_fewer_than_3_events": int((size < 3).sum()),
        "items_unseen_in_training": int((~seen[1:]).sum()),
        **{f"{part}_targets_unseen_in_training": int((~seen[a[f"{part}_item"]]).sum()) for part in ("valid", "test")},
    }
    return history


def everything(log: RawLog, k: int) -> SplitLog:
    """All events of the k-core train: there are no targets."""
    history = _core(log, k)
    a, none = history.arrays, np.zeros(0, np.int64)
    a["train_end"] = a["start"][1:].copy()
    for part in ("valid", "test"):
        _targets(a, part, none, none, none, none)
    return history


def global_time(log: RawLog, k: int, quantiles: tuple[float, float], cut: tuple[int, ...] = ()) -> SplitLog:
    """The leak-free split at two moments; see the module's docstring. `cut` states them, or the second alone."""
    first, second = _cuts(np.sort(log.time), quantiles, cut)
    before = log.time < first
    core = np.zeros(len(log), bool)
    if before.any():
        core[before] = k_core(log.user[before], log.item[before], k)
    if not core.any():
        raise ZooError(
            f"no event is left before the first cut ({first}) when users and items need {k} events each; "
            f"set data.k_core lower or {'data.cut later' if cut else 'data.quantiles higher'}"
        )
    vocabulary = sorted_items(log, log.item[core])
    known = np.zeros(len(log.items), bool)
    known[log.item[core]] = True
    history = _histories(log, np.flatnonzero(known[log.item]), vocabulary)
    a = history.arrays
    # a k-core takes whole users and whole items away: of a user who is trained, all events before the cut are
    trained = np.zeros(len(log.users), bool)
    trained[log.user[core]] = True
    trained = trained[log.user[a["row"][a["start"][:-1]]]]
    a["train_end"] = a["start"][:-1] + np.where(trained, np.add.reduceat(a["time"] < first, a["start"][:-1]), 0)
    history.counts |= {
        "events_in_file": len(log),
        "training_users": int(trained.sum()),
        "training_events": int(core.sum()),
        "earlier_events_in_histories_alone": int((before & known[log.item] & ~core).sum()),
        "earlier_events_of_unknown_items": int((before & ~known[log.item]).sum()),
        "later_events_of_unknown_items": int((~before & ~known[log.item]).sum()),
        "first_cut": first,
        "second_cut": second,
    }
    for part, inside in (("valid", ~before & (log.time < second)), ("test", log.time >= second)):
        row = np.flatnonzero(inside)
        row = row[np.lexsort((log.time[row], log.user[row]))]
        row = row[np.diff(log.user[row], append=-1) != 0]  # each user's last event of the period
        user, end = _history_end(history, log, row)
        kept = end > a["start"][user]
        code = _codes(log, vocabulary)[log.item[row]]
        _targets(a, part, user[kept], code[kept], log.time[row][kept], end[kept])
        history.counts |= {
            f"{part}_users_without_history": int((~kept).sum()),
            f"{part}_targets_unseen_in_training": int((code[kept] == 0).sum()),
        }
    return history


def _cuts(ordered: np.ndarray, quantiles: tuple[float, float], cut: tuple[int, ...]) -> tuple[int, int]:
    """The two moments, given all times in order."""
    if not 0 < quantiles[0] < quantiles[1] < 1:
        raise ZooError(f"data.quantiles {quantiles} must be two rising fractions between 0 and 1")
    if len(cut) == 2:
        return cut
    share = quantiles
    if cut:  # training and validation share what is earlier as they would by the quantiles
        ordered, share = ordered[ordered < cut[0]], (quantiles[0] / quantiles[1],)
        if not len(ordered):
            raise ZooError(f"no event is before data.cut={cut[0]}; set it later")
    moments = [int(ordered[int(q * len(ordered))]) for q in share]
    return moments[0], (*moments, *cut)[1]


def assert_no_leak(split: str, arrays: dict[str, np.ndarray], counts: dict[str, int]) -> None:
    """Raise where a training event is at or after a target it must precede, or a history reaches its target."""
    a = arrays
    for part in ("valid", "test"):
        u, end, item, time = (a[f"{part}_{what}"] for what in ("user", "end", "item", "time"))
        if (a["train_end"][u] > end).any():
            raise ZooError(
                f"leakage: {part} targets lie inside the training events of their users; the split is broken"
            )
        # a target of a known item is the event just behind its history; that of an unknown one is nowhere
        at = np.minimum(end, len(a["time"]) - 1)
        astray = (item > 0) & ((a["item"][at] != item) | (a["time"][at] != time))
        if (astray | (end > a["start"][u + 1]) | (a["time"][end - 1] > time)).any():
            raise ZooError(f"leakage: a {part} history does not end just before its target; the split is broken")
    if split == "global-time":
        trained = _training_positions(a)
        if len(trained) and a["time"][trained].max() >= counts["first_cut"]:
            raise ZooError("leakage: a training event is later than the first cut; the split is broken")


def targets_in_history(arrays: dict[str, np.ndarray], part: str) -> int:
    """How many targets of a part are items that their user had before: with those masked no model can rank them."""
    user, end, item = (arrays[f"{part}_{what}"] for what in ("user", "end", "item"))
    begin, found = arrays["start"][user], 0
    for some in np.array_split(np.arange(len(user)), len(user) // 4096 + 1):  # histories of all are as long as the log
        size = end[some] - begin[some]
        owner = np.repeat(np.arange(len(some)), size)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size - begin[some], size)
        found += len(np.unique(owner[arrays["item"][place] == item[some][owner]]))
    return found


def sorted_items(log: RawLog, used: np.ndarray) -> list[str]:
    """The ids of the used items: numbers by value, others as text, so that codes do not depend on the file's order."""
    names = [log.items[i] for i in np.unique(used)]
    return sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def _codes(log: RawLog, vocabulary: list[str]) -> np.ndarray:
    """Model index (1..n; 0 unknown) of each item code of the log."""
    index = {name: i + 1 for i, name in enumerate(vocabulary)}
    return np.array([index.get(name, 0) for name in log.items], np.int32)


def _histories(log: RawLog, rows: np.ndarray, vocabulary: list[str]) -> SplitLog:
    """Sort `rows` (ascending) by (user, time, row): lexsort is stable, which makes file order the tie rule."""
    rows = rows[np.lexsort((log.time[rows], log.user[rows]))]
    present, start = np.unique(log.user[rows], return_index=True)
    arrays = {
        "start": np.append(start, len(rows)).astype(np.int64),
        "item": _codes(log, vocabulary)[log.item[rows]],
        "time": log.time[rows],
        "row": rows,
    }
    return SplitLog(
        arrays, [log.users[u] for u in present], vocabulary, {"users": len(present), "items": len(vocabulary)}
    )


def _core(log: RawLog, k: int) -> SplitLog:
    """The histories of the k-core of all events."""
    keep = k_core(log.user, log.item, k)
    if not keep.any():
        raise ZooError(
            f"no event is left of {len(log)} when users and items need {k} events each; set data.k_core lower"
        )
    history = _histories(log, np.flatnonzero(keep), sorted_items(log, log.item[keep]))
    history.counts |= {"events_in_file": len(log), "events_after_k_core": int(keep.sum())}
    return history


def _history_end(history: SplitLog, log: RawLog, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """User index and flat position just behind the history of each target row (end 0: no history)."""
    a = history.arrays
    place = np.full(len(log.users), -1, np.int64)
    place[log.user[a["row"][a["start"][:-1]]]] = np.arange(len(history.users))
    # targets first: a target that is itself in the history sorts before its own event
    rows = np.concatenate([target, a["row"]])
    order = np.lexsort((rows, log.time[rows], place[log.user[rows]]))
    before = np.cumsum(order >= len(target))
    end = np.zeros(len(rows), np.int64)
    end[order] = before
    user = place[log.user[target]]
    return np.maximum(user, 0), np.where(user >= 0, end[: len(target)], 0)


def _targets(arrays, part: str, user, item, time, end) -> None:
    arrays |= {
        f"{part}_user": user.astype(np.int64),
        f"{part}_item": np.asarray(item).astype(np.int32),
        f"{part}_time": np.asarray(time, np.int64),
        f"{part}_end": end.astype(np.int64),
    }


def _training_positions(a) -> np.ndarray:
    sizes = a["train_end"] - a["start"][:-1]
    return np.repeat(a["start"][:-1] - np.append(0, np.cumsum(sizes)[:-1]), sizes) + np.arange(sizes.sum())
