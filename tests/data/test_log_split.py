"""Splits and windows of logs equal plain loops: filter, tie rule, both splits, windows, loss."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statezoo.zoo.api import create_dataset, create_model
from statezoo.zoo.data.log_reader import RawLog
from statezoo.zoo.data.log_sample import generate
from statezoo.zoo.data.log_split import assert_no_leak, everything, find_duplicates, global_time, k_core, leave_two_out
from statezoo.zoo.data.logs import EvalUsers, TrainWindows, hash_user
from statezoo.zoo.data.spec import Inputs, Outputs, Spec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.registry import find

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60)
K = st.integers(1, 3)
QUANTILES = (0.6, 0.8)


def raw(rows):
    """A RawLog of (user, item, time) rows in file order."""
    user, item, time = np.array(rows, np.int64).reshape(-1, 3).T
    return RawLog(user, item, time, [f"u{n}" for n in range(user.max() + 1)], [f"{n}" for n in range(item.max() + 1)])


def kept(rows, k):
    """Numbers of the rows left by the k-core: take away one row of a rare user or item after the other."""
    left = list(range(len(rows)))
    while True:
        rare = [n for n in left if any(sum(rows[m][column] == rows[n][column] for m in left) < k for column in (0, 1))]
        if not rare:
            return left
        left.remove(rare[0])


def by_user(rows, numbers):
    """User to its rows among `numbers`, by (time, row)."""
    order = sorted(numbers, key=lambda n: (rows[n][2], n))
    return {user: [n for n in order if rows[n][0] == user] for user in {rows[n][0] for n in order}}


def read_back(log):
    """What the parts of a split hold, in names: training items per user, and (history, target, time) per target."""
    name = [None, *log.items]
    a = log.arrays
    found = {"train": {}}
    for u, user in enumerate(log.users):
        items = a["item"][a["start"][u] : a["train_end"][u]]
        assert (items > 0).all()
        found["train"] |= {user: [name[i] for i in items]} if len(items) else {}
    users = {hash_user(user): user for user in log.users}
    for part in ("valid", "test"):
        evaluated = EvalUsers(a, part, 3, log.users)
        batch = evaluated.batch(np.arange(len(evaluated))) if len(evaluated) else {}
        found[part] = {}
        for b, key in enumerate(evaluated.ids):
            history = [name[i] for i in batch["history"][b] if i]
            seen, padding = np.split(batch["items"][b], [batch["length"][b]])
            assert [name[i] for i in seen] == history[-3:] and not padding.any()
            times = a["time"][a["start"][a[f"{part}_user"][b]] : a[f"{part}_end"][b]][-3:]
            assert batch["times"][b].tolist() == times.tolist() + [0] * len(padding)
            found[part][users[key]] = history, name[batch["target"][b]], a[f"{part}_time"][b]
    return found


# the filter -----------------------------------------------------------------------------------------------------------


@given(ROWS, st.integers(1, 5))
def test_k_core_equals_the_loop(rows, k):
    log = raw(rows)
    assert np.flatnonzero(k_core(log.user, log.item, k)).tolist() == kept(rows, k)


def test_k_core_goes_on_until_nothing_changes():
    # without item 9 user 0 has one event, without user 0 item 1 has one, without item 1 user 1 has one, and so on
    rows = [(0, 9, 0), *[(n // 2, (n + 1) // 2, 0) for n in range(12)]]
    assert k_core(raw(rows).user, raw(rows).item, 2).sum() == 0
    rows += [(7, 7, 0), (7, 8, 0), (8, 7, 0), (8, 8, 0)]
    assert k_core(raw(rows).user, raw(rows).item, 2).tolist() == [False] * 13 + [True] * 4


@given(ROWS)
def test_duplicates_are_all_but_the_first(rows):
    assert find_duplicates(raw(rows)).tolist() == [n for n, row in enumerate(rows) if row in rows[:n]]


# the splits -----------------------------------------------------------------------------------------------------------


@given(ROWS, K)
def test_leave_two_out_equals_the_loop(rows, k):
    left = kept(rows, k)
    if not left:
        with pytest.raises(ZooError, match=f"no event is left of {len(rows)} .* set data.k_core lower"):
            leave_two_out(raw(rows), k)
        return
    log = leave_two_out(raw(rows), k)
    expected = {"train": {}, "valid": {}, "test": {}}
    for user, numbers in by_user(rows, left).items():
        items, times = [str(rows[n][1]) for n in numbers], [rows[n][2] for n in numbers]
        tested = len(items) >= 3
        expected["train"][f"u{user}"] = items[:-2] if tested else items
        if tested:
            expected["valid"][f"u{user}"] = items[:-2], items[-2], times[-2]
            expected["test"][f"u{user}"] = items[:-1], items[-1], times[-1]
    assert read_back(log) == expected
    trained = {item for items in expected["train"].values() for item in items}
    assert log.items == sorted({str(rows[n][1]) for n in left}), "all items, those of targets included"
    assert log.counts == {
        "users": len(expected["train"]),
        "items": len(log.items),
        "events_in_file": len(rows),
        "events_after_k_core": len(left),
        "users_with_fewer_than_3_events": len(expected["train"]) - len(expected["test"]),
        "items_unseen_in_training": len(set(log.items) - trained),
        **{
            f"{part}_targets_unseen_in_training": sum(item not in trained for _, item, _ in expected[part].values())
            for part in ("valid", "test")
        },
    }
    every = [item for items in expected["train"].values() for item in items]
    assert log.trained().tolist() == [every.count(item) for item in log.items]
    assert_no_leak("leave-two-out", log.arrays, log.counts)


@given(ROWS, K)
def test_everything_equals_the_loop(rows, k):
    left = kept(rows, k)
    if not left:
        with pytest.raises(ZooError, match=f"no event is left of {len(rows)} .* set data.k_core lower"):
            everything(raw(rows), k)
        return
    log = everything(raw(rows), k)
    events = {user: [rows[n] for n in numbers] for user, numbers in by_user(rows, left).items()}
    train = {f"u{user}": [str(item) for _, item, _ in mine] for user, mine in events.items()}
    assert read_back(log) == {"train": train, "valid": {}, "test": {}}
    start, time = log.arrays["start"], log.arrays["time"]
    times = {user: time[start[u] : start[u + 1]].tolist() for u, user in enumerate(log.users)}
    assert times == {f"u{user}": [row[2] for row in mine] for user, mine in events.items()}
    assert log.items == sorted({str(rows[n][1]) for n in left})
    assert log.counts == {
        "users": len(train), "items": len(log.items), "events_in_file": len(rows), "events_after_k_core": len(left),
    }  # fmt: skip
    every = [item for items in train.values() for item in items]
    assert log.trained().tolist() == [every.count(item) for item in log.items]
    assert_no_leak("all", log.arrays, log.counts)


@given(ROWS, K)
def test_global_time_equals_the_loop(rows, k):
    ordered = sorted(time for _, _, time in rows)
    first, second = (ordered[int(q * len(rows))] for q in QUANTILES)
    before = [n for n, row in enumerate(rows) if row[2] < first]
    left = [before[n] for n in kept([rows[n] for n in before], k)]
    if not left:
        with pytest.raises(ZooError, match="no event is left before the first cut .* set data.k_core lower or"):
            global_time(raw(rows), k, QUANTILES)
        return
    log = global_time(raw(rows), k, QUANTILES)
    known = {rows[n][1] for n in left}
    later = [n for n, row in enumerate(rows) if row[2] >= first]
    usable = by_user(rows, [n for n, row in enumerate(rows) if row[1] in known])
    expected = {"train": {}, "valid": {}, "test": {}}
    for user, numbers in by_user(rows, left).items():
        expected["train"][f"u{user}"] = [str(rows[n][1]) for n in numbers]
    without = {"valid": 0, "test": 0}
    periods = {"valid": [n for n in later if rows[n][2] < second], "test": [n for n in later if rows[n][2] >= second]}
    for part, inside in periods.items():
        for user, numbers in by_user(rows, inside).items():
            _, item, time = rows[target := numbers[-1]]
            past = [n for n in usable.get(user, []) if (rows[n][2], n) < (time, target)]
            without[part] += not past
            if past:
                target = str(item) if item in known else None
                expected[part][f"u{user}"] = [str(rows[n][1]) for n in past], target, time
    assert read_back(log) == expected
    assert log.items == sorted(map(str, known)), "vocabulary from training only"
    assert log.counts == {
        "users": len(usable),
        "items": len(known),
        "events_in_file": len(rows),
        "training_users": len({rows[n][0] for n in left}),
        "training_events": len(left),
        "earlier_events_in_histories_alone": sum(rows[n][1] in known for n in set(before) - set(left)),
        "earlier_events_of_unknown_items": sum(rows[n][1] not in known for n in before),
        "later_events_of_unknown_items": sum(rows[n][1] not in known for n in later),
        "first_cut": first,
        "second_cut": second,
        **{f"{part}_users_without_history": number for part, number in without.items()},
        **{
            f"{part}_targets_unseen_in_training": sum(item is None for _, item, _ in expected[part].values())
            for part in without
        },
    }
    assert_no_leak("global-time", log.arrays, log.counts)
    a = log.arrays
    for u in range(len(log.users)):
        assert (a["time"][a["start"][u] : a["train_end"][u]] < first).all(), "nothing of training is later"
        untrained = a["time"][a["train_end"][u] : a["start"][u + 1]]
        in_core = a["train_end"][u] > a["start"][u]
        assert not in_core or (untrained >= first).all(), "of a trained user all events before the cut are trained"


def test_users_below_the_k_core_are_tested_on_all_their_earlier_events():
    """Users 0 to 2 make the core; user 3 has one event of a known item before the cut, and one of an unknown one."""
    core = [(user, item, 10 * item + user) for user in range(3) for item in range(3)]
    rows = [*core, (3, 1, 25), (3, 4, 26), (3, 2, 60), (0, 1, 70), (3, 0, 90), (0, 2, 91), (1, 0, 92)]
    log = global_time(raw(rows), 3, (0.7, 0.85))
    assert log.counts["first_cut"] == 60 and log.counts["second_cut"] == 90
    assert log.counts["training_users"] == 3 and log.counts["earlier_events_in_histories_alone"] == 1
    found = read_back(log)
    assert "u3" not in found["train"] and found["valid"]["u3"] == (["1"], "2", 60)
    assert found["test"]["u3"] == (["1", "2"], "0", 90)


@pytest.mark.parametrize("quantiles", [(0.9, 0.8), (0.5, 0.5), (0, 0.9), (0.5, 1)])
def test_cuts_that_do_not_rise_are_refused(quantiles):
    with pytest.raises(ZooError, match="two rising fractions"):
        global_time(raw([(0, 0, n) for n in range(10)]), 1, quantiles)


def test_an_empty_period_is_an_error_of_the_data(tmp_path):
    """Nothing lies between two cuts at one moment."""
    rows = "".join(f"a,{n},{time}\n" for n, time in enumerate([0, 1, 2, 5, 5]))
    (tmp_path / "log.csv").write_text("user,item,time\n" + rows)
    data = create_dataset("log", root=tmp_path, k_core=1, split="global-time", quantiles=QUANTILES)
    with pytest.raises(ZooError, match="the valid part of the split is empty; give more data or another split"):
        data.prepare()


def splits(rows, k=1):
    """Both splits in names; None where too little is left."""
    for split in (lambda log: leave_two_out(log, k), lambda log: global_time(log, k, QUANTILES)):
        try:
            yield read_back(split(raw(rows)))
        except ZooError:
            yield None


@given(ROWS, K, st.randoms(use_true_random=False))
def test_the_order_of_rows_matters_within_a_second_only(rows, k, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    moved = [rows[n] for n in order]
    # events of one user and second go back into their old order, at their new places
    for user, _, time in set(rows):
        same = [n for n, row in enumerate(moved) if (row[0], row[2]) == (user, time)]
        for n, row in zip(same, [row for row in rows if (row[0], row[2]) == (user, time)], strict=True):
            moved[n] = row
    assert list(splits(moved, k)) == list(splits(rows, k))


def test_events_of_one_second_keep_the_order_of_the_file():
    for items in ([3, 1, 2, 0], [0, 2, 1, 3]):
        log = leave_two_out(raw([(0, item, 7) for item in items]), 1)
        names = list(map(str, items))
        assert read_back(log)["test"]["u0"] == (names[:3], names[3], 7)
        assert read_back(log)["valid"]["u0"] == (names[:2], names[2], 7)
    # a target shares its second with events before and behind it in the file: the last one is the target
    rows = [
        (0, 0, 1),
        (1, 1, 1),
        (0, 1, 2),
        (1, 0, 2),
        (0, 0, 5),
        (1, 1, 5),
        (1, 0, 5),
        (0, 1, 5),
        (0, 0, 5),
        (1, 1, 9),
    ]
    found = read_back(global_time(raw(rows), 1, (0.4, 0.9)))
    assert found["valid"]["u0"] == (["0", "1", "0", "1"], "0", 5)
    assert found["valid"]["u1"] == (["1", "0", "1"], "0", 5)


def test_numbers_count_by_value_and_names_come_after_them():
    names = ["b", "10", "9", "a", "7", "007"]
    log = RawLog(np.zeros(12, int), np.repeat(np.arange(6), 2), np.arange(12), ["u"], names)
    assert leave_two_out(log, 2).items == ["007", "7", "9", "10", "a", "b"]


def test_rounded_times_change_the_split_and_its_name(tmp_path):
    """Two events 20 s apart near 1e9 share a float32, so that the file's order decides; boards are told apart."""
    rows = [(1, item, 10**9 + 1000 * item) for item in range(6)] + [(1, 7, 10**9 + 9020), (1, 6, 10**9 + 9000)]
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    found = {}
    for timestamps in ("exact", "float32"):
        adapter = create_dataset("log", root=tmp_path, k_core=1, timestamps=timestamps)
        batch = adapter.part("test").batch(np.array([0]))
        found[timestamps] = adapter.prepare().inputs.vocabulary[batch["target"][0] - 1], adapter.split_name
        assert (batch["times"][0] % 64 == 0).all() == (timestamps == "float32")
    assert found == {"exact": ("7", "leave-two-out"), "float32": ("6", "leave-two-out-float32")}
    with pytest.raises(ZooError, match="did you mean 'float32'"):
        create_dataset("log", timestamps="float33")


def test_the_hash_of_a_split_is_that_of_its_names_too(tmp_path):
    hashes = set()
    for n, (users, items) in enumerate((("abcd", "xyz"), ("abce", "xyz"), ("abcd", "wyz"))):
        (tmp_path / str(n)).mkdir()
        write_rows(tmp_path / str(n) / "log.csv", [(u, i, t) for u in users for t, i in enumerate(items + items)])
        hashes.add(create_dataset("log", root=tmp_path / str(n), k_core=1).split_hash())
    assert len(hashes) == 3
    assert hash_user("a") == hashlib.sha256(b"user\x1fa").hexdigest()[:16]


# the leakage assertion ------------------------------------------------------------------------------------------------


def sample_log(split, users=30, k=2):
    user, item, _, time = generate(1, users)
    log = RawLog(user, item, time, [f"{n}" for n in range(user.max() + 1)], [f"{n}" for n in range(item.max() + 1)])
    return leave_two_out(log, k) if split == "leave-two-out" else global_time(log, k, (0.6, 0.8))


def trains_a_target(a, part):
    a["train_end"][a[f"{part}_user"][0]] = a[f"{part}_end"][0] + 1


def history_holds_its_target(a, part):
    a[f"{part}_end"][np.flatnonzero(a[f"{part}_item"])[0]] += 1


def history_of_an_unknown_target_is_later(a, part):
    a[f"{part}_item"][0] = 0
    a[f"{part}_time"][0] = a["time"][a[f"{part}_end"][0] - 1] - 1


def history_runs_into_the_next_user(a, part):
    a[f"{part}_end"][0] = a["start"][a[f"{part}_user"][0] + 1] + 1
    a[f"{part}_item"][0], a[f"{part}_time"][0] = 0, 2**62


def target_is_at_another_moment(a, part):
    a[f"{part}_time"][np.flatnonzero(a[f"{part}_item"])[0]] += 1


def target_is_another_event(a, part):
    a[f"{part}_item"][0] = a[f"{part}_item"][0] % 3 + 1


TAMPERS = [
    trains_a_target,
    history_holds_its_target,
    history_of_an_unknown_target_is_later,
    history_runs_into_the_next_user,
    target_is_at_another_moment,
    target_is_another_event,
]


@pytest.mark.parametrize("split", ["leave-two-out", "global-time"])
@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
def test_leaks_are_found(split, part, tamper):
    log = sample_log(split)
    assert_no_leak(split, log.arrays, log.counts)
    tamper(log.arrays, part)
    with pytest.raises(ZooError, match="^leakage: .*; the split is broken$"):
        assert_no_leak(split, log.arrays, log.counts)


def test_a_target_of_the_first_item_is_looked_at_too():
    log = leave_two_out(raw([(0, item, time) for time, item in enumerate([1, 2, 0, 0])]), 1)
    assert log.arrays["test_item"].tolist() == [1]
    log.arrays["test_time"] += 1
    with pytest.raises(ZooError, match="a test history does not end just before its target"):
        assert_no_leak("leave-two-out", log.arrays, log.counts)


def test_a_training_event_at_the_first_cut_is_found():
    log = sample_log("global-time")
    user = np.flatnonzero(log.arrays["train_end"] > log.arrays["start"][:-1])[0]
    log.arrays["time"][log.arrays["start"][user]] = log.counts["first_cut"]
    with pytest.raises(ZooError, match="later than the first cut"):
        assert_no_leak("global-time", log.arrays, log.counts)


def test_training_on_the_validation_period_is_found():
    log = sample_log("global-time")
    for user in log.arrays["test_user"]:  # up to the test target, and not beyond
        log.arrays["train_end"][user] = log.arrays["test_end"][log.arrays["test_user"] == user][0]
    log.arrays["valid_user"] = log.arrays["valid_user"][:0]
    for name in ("end", "item", "time"):
        log.arrays[f"valid_{name}"] = log.arrays[f"valid_{name}"][:0]
    with pytest.raises(ZooError, match="later than the first cut"):
        assert_no_leak("global-time", log.arrays, log.counts)


# windows --------------------------------------------------------------------------------------------------------------


SIZES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=8)


def flat(sizes):
    """A log whose users have (training, later) events; item p + 1 and time 100 + p stand at place p."""
    train, later = np.array(sizes).T
    start = np.append(0, np.cumsum(train + later))
    places = np.arange(start[-1])
    return {"item": places + 1, "time": 100 + places, "start": start, "train_end": start[:-1] + train}


def prefixes(log):
    """Place of every target and of its user's first event: all training events but a user's first."""
    users = zip(log["start"][:-1], log["train_end"], strict=True)
    return {place: start for start, end in users for place in range(start + 1, end)}


def all_windows(log, max_len, windows):
    part = TrainWindows(log, max_len, windows)
    batch = part.batch(np.arange(len(part)))
    assert all(array.dtype == np.int64 for array in batch.values())
    for items, times, length in zip(batch["items"], batch["times"], batch["length"], strict=True):
        assert 1 <= length <= max_len and not items[length:].any() and not times[length:].any()
        assert times[:length].tolist() == [item + 99 for item in items[:length]]
        assert (np.diff(items[:length]) == 1).all()
    return batch


@given(SIZES, st.integers(1, 9))
def test_all_positions_trains_every_target_once_an_epoch(sizes, max_len):
    log = flat(sizes)
    batch = all_windows(log, max_len, "all-positions")
    window, column = np.nonzero(batch["targets"])
    place = batch["targets"][window, column] - 1
    assert sorted(place) == sorted(prefixes(log))
    assert (batch["items"][window, column] == place).all(), "the event just before the target is its input"
    starts = prefixes(log)
    assert all(batch["items"][w, 0] - 1 >= starts[p] for w, p in zip(window, place, strict=True)), "of the same user"
    assert (np.count_nonzero(batch["targets"], axis=1) == batch["length"]).all()
    ends = {end - 1 for start, end in zip(log["start"], log["train_end"], strict=False) if end - start > 1}
    assert ends <= set((batch["targets"].max(axis=1, initial=0) - 1).tolist()), "windows are laid from the end"


@given(SIZES, st.integers(1, 9))
def test_per_prefix_gives_each_prefix_its_window(sizes, max_len):
    log = flat(sizes)
    batch = all_windows(log, max_len, "per-prefix")
    expected = [(place, place - max(start, place - max_len)) for place, start in prefixes(log).items()]
    last = batch["length"] - 1
    row = np.arange(len(last))
    targets = batch["targets"][row, last]
    assert (np.count_nonzero(batch["targets"], axis=1) == 1).all(), "the last position alone is trained"
    assert list(zip(targets - 1, batch["length"], strict=True)) == expected
    assert (batch["items"][row, last] == targets - 1).all()


@pytest.mark.parametrize(("name", "config"), [("sasrec", {"hidden": 16, "layers": 2}), ("gru4rec", {"hidden": 16})])
def test_one_pass_over_all_positions_is_the_sum_over_prefixes(name, config):
    """For a causal model: loss and every gradient to 1e-9, in float64, without dropout, no window cut."""
    log = sample_log("leave-two-out", users=12)
    longest = int((log.arrays["train_end"] - log.arrays["start"][:-1]).max())
    given = {"max_len": longest} if name == "sasrec" else {}
    torch.manual_seed(0)
    model = create_model(name, num_items=len(log.items), dim=8, dropout=0.0, **given, **config).double().train()
    task = find("task", "next_item").load()(model, Spec(Inputs("log", {}), Outputs(), {"num_items": len(log.items)}))
    found = {}
    for windows in ("all-positions", "per-prefix"):
        part = TrainWindows(log.arrays, longest, windows)
        model.zero_grad()
        total, trained = 0.0, 0
        for index in np.array_split(np.arange(len(part)), -(-len(part) // 32)):
            batch = {key: torch.from_numpy(array) for key, array in part.batch(index).items()}
            count = int(batch["targets"].count_nonzero())
            loss = task.loss(batch) * count
            loss.backward()
            total, trained = total + loss.item(), trained + count
        found[windows] = total, trained, [p.grad.clone() for p in model.parameters()]
    (one, n, grads), (other, m, others) = found.values()
    assert n == m == len(TrainWindows(log.arrays, longest, "per-prefix")) > 100
    assert abs(one - other) < 1e-9
    for (parameter, _), grad, same in zip(model.named_parameters(), grads, others, strict=True):
        assert grad.abs().max() > 1e-3, f"{parameter} has a gradient to compare"
        assert (grad - same).abs().max() < 1e-9, parameter


# predicting -----------------------------------------------------------------------------------------------------------


SETTINGS = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["leave-two-out", "global-time"]),
        "timestamps": st.sampled_from(["exact", "float32"]),
        "k_core": K,
        "max_len": st.integers(1, 5),
    }
)


@settings(max_examples=40)
@given(ROWS, SETTINGS)
def test_predicting_reads_a_log_as_evaluation_did(tmp_path_factory, rows, config):
    """Cut off before each target and given to predict: the evaluation's inputs, under every setting together."""
    folder = tmp_path_factory.mktemp("log")
    rows = [(user, item, 10**9 + 20 * time) for user, item, time in rows + rows[:5]]  # float32 is 64 s wide there
    write_rows(folder / "log.csv", rows)
    config |= {"duplicates": "drop", "quantiles": QUANTILES}
    data = create_dataset("log", root=folder, **config)
    data.asked.add("history")
    try:
        spec = data.prepare()
    except ZooError:
        return
    evaluated = data.part("test")
    first = [n for n, row in enumerate(rows) if row not in rows[:n]]  # what duplicates=drop keeps
    time = [row[2] if config["timestamps"] == "exact" else int(np.float32(row[2])) for row in rows]
    target = {}
    log = data._log
    for user, end in zip(log.arrays["test_user"], log.arrays["test_end"], strict=True):
        target[int(log.users[user])] = first[log.arrays["row"][end - 1]]
    cut = [row for n, row in enumerate(rows) if row[0] in target and (time[n], n) <= (time[m := target[row[0]]], m)]
    (folder / "new").mkdir()
    write_rows(folder / "new" / "log.csv", cut)
    spec.save(folder / "prep")
    part = data.inference(folder / "new" / "log.csv", folder / "prep")
    assert not part.unserved
    place = {hash_user(user): n for n, user in enumerate(part.ids)}
    order = [place[user] for user in evaluated.ids]
    mine, theirs = part.batch(np.array(order)), evaluated.batch(np.arange(len(evaluated)))
    for name in ("items", "times", "length", "history"):
        assert np.array_equal(mine[name], theirs[name]), name


def write_rows(file, rows):
    file.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))


def test_settings_of_the_log_hold_for_predicting(tmp_path):
    write_rows(tmp_path / "log.csv", [(u, (u + n) % 5, 10**9 + 100 * n) for u in range(6) for n in range(5)])
    write_rows(tmp_path / "new.csv", [(9, 1, 10**9 + 20), (9, 2, 10**9), (9, 1, 10**9 + 20), (8, 77, 10**9)])
    config = {"root": tmp_path, "k_core": 1, "timestamps": "float32"}
    create_dataset("log", **config).prepare().save(tmp_path / "prep")
    with pytest.raises(ZooError, match=r"new\.csv: row 4: repeats an earlier event .* set data\.duplicates=drop"):
        create_dataset("log", **config).inference(tmp_path / "new.csv", tmp_path / "prep")
    data = create_dataset("log", **config, duplicates="drop")
    part = data.inference(tmp_path / "new.csv", tmp_path / "prep")
    batch = part.batch(np.arange(1))
    assert batch["items"][0, :3].tolist() == [2, 3, 0], "20 s apart is one moment in float32: the file's order decides"
    assert set(batch["times"][0, :2]) == {int(np.float32(10**9))}
    assert part.unserved == {"8": "no item of this user is known to the model"}
    assert data.counts == {
        "events": 3, "events_of_unknown_items": 1, "users_of_unknown_items_alone": 1, "duplicates_dropped": 1,
    }  # fmt: skip


# stated cuts ----------------------------------------------------------------------------------------------------------


@given(ROWS, K, st.integers(1, 8), st.integers(1, 4))
def test_stated_cuts_are_the_cuts(rows, k, first, apart):
    try:
        log = global_time(raw(rows), k, QUANTILES, (first, first + apart))
    except ZooError:
        assert not kept([row for row in rows if row[2] < first], k)
        return
    assert (log.counts["first_cut"], log.counts["second_cut"]) == (first, first + apart)
    assert log.counts["training_events"] == len(kept([row for row in rows if row[2] < first], k))
    assert_no_leak("global-time", log.arrays, log.counts)


def test_one_stated_cut_leaves_validation_its_share_of_what_is_earlier():
    rows = [(u, n % 3, n) for u in range(3) for n in range(20)]
    log = global_time(raw(rows), 1, (0.6, 0.8), (15,))
    assert (log.counts["first_cut"], log.counts["second_cut"]) == (int(0.75 * 15), 15)


def cut_log(tmp_path, **config):
    write_rows(tmp_path / "log.csv", [(u, (u + n) % 4, 86_400 * n + u) for u in range(8) for n in range(20)])
    return create_dataset("log", root=tmp_path, **{"split": "global-time", **config})


def test_moments_of_a_cut_are_numbers_or_iso_and_name_the_board(tmp_path):
    days = [86_400 * 12, 86_400 * 16]
    stated = cut_log(tmp_path, cut=days)
    written = cut_log(tmp_path, cut=["1970-01-13T00:00:00Z", "1970-01-17T01:00:00+01:00"])
    assert stated.split_hash() == written.split_hash()
    assert stated.split_name == written.split_name == f"global-time-{days[0]}-{days[1]}"
    assert stated.prepare() and stated.counts["first_cut"] == days[0]
    local = cut_log(tmp_path, cut="1970-01-17T01:00:00", time_zone="Europe/Berlin")
    assert local.split_name == f"global-time-{days[1]}" and local.prepare() and local.counts["second_cut"] == days[1]
    for same in (tuple(days), np.array(days), [np.int64(day) for day in days]):
        again = cut_log(tmp_path, cut=same)
        assert again.split_name == stated.split_name and again.split_hash() == stated.split_hash()
    assert cut_log(tmp_path, cut=np.int64(days[1])).split_name == f"global-time-{days[1]}"
    assert cut_log(tmp_path).split_name == "global-time"
    assert cut_log(tmp_path, quantiles=(0.5, 0.75), timestamps="float32").split_name == "global-time-0.5-0.75-float32"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cut": [2, 1]}, r"data\.cut=\[2, 1\]: give one moment, or two that rise"),
        ({"cut": [1, 2, 3]}, "give one moment, or two that rise"),
        ({"cut": []}, "give one moment, or two that rise"),
        ({"cut": "yesterday"}, r"data\.cut: time 'yesterday' is neither a whole number nor ISO 8601"),
        ({"cut": "1970-01-17T00:00:00"}, "has no time zone"),
        ({"cut": [5, 9], "split": "leave-two-out"}, r"data\.cut is of the split global-time, not of leave-two-out"),
        ({"cut": ()}, "give one moment, or two that rise"),
        ({"cut": 10**23 - 1}, r"^log: data\.cut: time '9{23}' does not fit into 64 bits; give a moment"),
        ({"cut": [5, -(10**23)]}, r"data\.cut: time '-10{23}' does not fit into 64 bits"),
        ({"cut": 2**63}, r"does not fit into 64 bits"),
        ({"cut": True}, r"data\.cut: time 'True' is neither a whole number nor ISO 8601; give a moment"),
        ({"cut": [[1], 2]}, r"data\.cut: time '\[1\]' is neither"),
        ({"cut": 1}, "no event is left before the first cut|no event is before"),
        ({"cut": [86_400 * 18, 86_400 * 99]}, "the test part of the split is empty"),
    ],
)
def test_cuts_that_mean_nothing_are_refused(tmp_path, config, message):
    with pytest.raises(ZooError, match=message):
        cut_log(tmp_path, **config).prepare()


# targets that masking takes away --------------------------------------------------------------------------------------


@given(ROWS, K, st.sampled_from(["leave-two-out", "global-time"]))
@settings(max_examples=40)
def test_targets_that_stand_in_their_own_history_are_counted(tmp_path_factory, rows, k, split):
    """A ranking without the items of the history (task.mask_history) can hold none of them."""
    folder = tmp_path_factory.mktemp("log")
    write_rows(folder / "log.csv", rows)
    data = create_dataset("log", root=folder, split=split, k_core=k, duplicates="drop", quantiles=QUANTILES)
    data.asked.add("history")
    try:
        data.prepare()
    except ZooError:
        return
    for name in ("valid", "test"):
        batch = data.part(name).batch(np.arange(len(data.part(name))))
        again = (batch["history"] == batch["target"][:, None]) & (batch["target"] > 0)[:, None]
        assert data.counts[f"{name}_targets_in_history"] == again.any(1).sum()
