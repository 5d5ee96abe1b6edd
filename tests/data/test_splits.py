"""Splits go by whole groups, stay where they are when data are added, and their hash tells any two apart."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from statezoo.zoo.data.splits import assert_disjoint, by_group, split_hash
from statezoo.zoo.errors import ZooError

PARTS = ("train", "valid", "test")
GROUPS = st.lists(st.sampled_from([f"p{i}" for i in range(40)]), min_size=30, max_size=150)
WEIGHTS = st.tuples(*[st.integers(1, 10)] * len(PARTS))
SEEDS = st.integers(0, 2**32)


def split(groups, weights, seed):
    """The parts, or no example where there are too few groups for each part to have one."""
    fractions = {part: weight / sum(weights) for part, weight in zip(PARTS, weights, strict=True)}
    try:
        return fractions, by_group(groups, fractions, seed)
    except ZooError as error:
        assert "part of the split is empty" in str(error)
        assume(False)


def places(groups, parts):
    """Group to part; fails where a group has two."""
    found = {}
    for part, index in parts.items():
        for i in index:
            assert found.setdefault(groups[i], part) == part
    return found


@given(GROUPS, WEIGHTS, SEEDS)
def test_every_sample_once_whole_groups_and_fractions_met(groups, weights, seed):
    fractions, parts = split(groups, weights, seed)
    assert list(parts) == list(PARTS)
    assert sorted(i for index in parts.values() for i in index) == list(range(len(groups)))
    assert all((np.diff(index) > 0).all() for index in parts.values()), "in the given order"
    place = places(groups, parts)
    for part, fraction in fractions.items():
        assert abs(sum(found == part for found in place.values()) - fraction * len(place)) <= 1


@given(GROUPS, WEIGHTS, SEEDS, st.randoms(use_true_random=False))
def test_a_further_sample_of_a_known_group_moves_nobody(groups, weights, seed, random):
    _, parts = split(groups, weights, seed)
    more = [*groups, random.choice(groups)]
    random.shuffle(more)
    _, again = split(more, weights, seed)
    assert places(more, again) == places(groups, parts)


@given(GROUPS, WEIGHTS, SEEDS)
def test_a_new_group_moves_at_most_one_across_each_bound(groups, weights, seed):
    _, parts = split(groups, weights, seed)
    _, again = split([*groups, "new"], weights, seed)
    before, after = places(groups, parts), places([*groups, "new"], again)
    assert sum(after[group] != part for group, part in before.items()) <= len(PARTS) - 1


def test_the_seed_draws_the_split():
    groups = [f"p{i}" for i in range(50)]
    one, same, other = (by_group(groups, {"train": 0.5, "test": 0.5}, seed)["train"].tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_split_stays_what_it_was():
    # recorded from the first version: a split that moved would make old records incomparable without saying so
    parts = by_group([f"p{i}" for i in range(10)], {"train": 0.6, "valid": 0.2, "test": 0.2})
    assert {name: index.tolist() for name, index in parts.items()} == {
        "train": [0, 1, 2, 3, 6, 8],
        "valid": [5, 9],
        "test": [4, 7],
    }


@pytest.mark.parametrize(
    ("groups", "fractions", "message"),
    [
        (["a", "b", "c"], {"train": 0.5, "test": 0.4}, r"sum to 0\.9; they must sum to 1"),
        (["a", "b", "c"], {"train": 0.5, "test": 0.499}, r"sum to 0\.999; they must sum to 1"),
        (["a", "a", "b"], {"train": 0.6, "valid": 0.2, "test": 0.2}, r"test part of the split is empty \(2 groups\)"),
    ],
)
def test_impossible_fractions_are_refused(groups, fractions, message):
    with pytest.raises(ZooError, match=message):
        by_group(groups, fractions)


def test_a_group_in_two_parts_is_found_in_any_pair():
    parts = {"train": np.array(["a", "b", "b"]), "valid": np.array(["c"]), "test": np.array(["d", "e"])}
    assert_disjoint(parts, "patient")
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        leaking = parts | {other: np.append(parts[other], parts[one][-1])}
        with pytest.raises(
            ZooError, match=rf"1 patient groups are both in {one} and {other} \(first: {parts[one][-1]}\)"
        ):
            assert_disjoint(leaking, "patient")


IDS = st.lists(st.text('a\n,"', max_size=3), max_size=3)
SPLIT = st.fixed_dictionaries({"train": IDS, "test": IDS})


@given(SPLIT, SPLIT)
@example({"train": ["a\nb", "c"], "test": []}, {"train": ["a", "b\nc"], "test": []})
def test_hashes_are_equal_exactly_when_splits_are(one, other):
    """Whatever the ids hold, and in whatever order the parts are given."""
    assert (split_hash(one) == split_hash(other)) is (one == other)
    assert split_hash(one) == split_hash(dict(reversed(one.items())))


def test_hash_changes_with_every_change():
    base = {"train": ["a", "b"], "test": ["c"]}
    changed = [
        {"train": ["a", "B"], "test": ["c"]},  # an id
        {"train": ["b", "a"], "test": ["c"]},  # the order
        {"train": ["a"], "test": ["b", "c"]},  # the part
        {"train": ["c"], "test": ["a", "b"]},  # the names of the parts
        {"train": ["a", "b"], "valid": ["c"]},
        {"train": ["a", "b"], "test": ["c"], "valid": []},  # a part more
        {"train": ["a", "b", "b"], "test": ["c"]},  # a sample twice
        {"train": ["ab", ""], "test": ["c"]},  # where one id ends
    ]
    hashes = {split_hash({part: np.array(ids) for part, ids in ids.items()}) for ids in [base, *changed]}
    assert len(hashes) == len(changed) + 1
    numbers = [{"train": np.array([1, 2], kind)} for kind in ("int32", "int64")]
    assert split_hash(numbers[0]) == split_hash(numbers[1]), "the width of a platform's integers does not matter"
