"""Metrics against scikit-learn, scipy and torchmetrics, their laws, and the statistics of the intervals."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from statezoo.zoo import metrics
from statezoo.zoo.errors import ZooError
from statezoo.zoo.seeding import generator
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG

CASES = [
    ("classification", {}),
    ("classification-2", {}),
    ("segmentation", {}),
    ("completion", {}),
    ("next_item", {}),
    ("next_item", {"topk": (1, 3)}),
    ("language_model", {}),
    ("property", {"kind": "regression"}),
    ("property", {"kind": "binary"}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}".rstrip("-") for name, options in CASES]
cases = pytest.mark.parametrize(("case", "options"), CASES, ids=IDS)


def make(case, options=None, n=60, seed=0, groups=None):
    """Rows of a mediocre model with many ties; `case` is a task, "classification-2" has two classes."""
    rng, task = generator(seed, case, "rows"), case.split("-")[0]
    groups = groups or n
    rows = {
        "id": np.array([f"i{i:04d}" for i in range(n)]),
        "group": np.array([f"g{i:04d}" for i in rng.permutation(np.arange(n) % groups)]),
    }
    if task == "classification":
        classes = 2 if case.endswith("2") else 5
        target = rng.integers(0, min(classes, 4), n)  # of five classes one never occurs
        logits = np.round(rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[target], 1)
        prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rows |= {"target": target, "prob": np.round(prob, 2) if classes == 2 else prob}
        if classes == 2:
            rows["prob"][:, 0] = 1 - rows["prob"][:, 1]
    elif task == "segmentation":
        rows["counts"] = rng.integers(0, 9, (n, 4, 4)) * (rng.random((n, 4, 1)) < 0.6)
        rows["counts"][:, 3], rows["counts"][:, :, 3] = 0, 0  # a class nobody sees
        rows["counts"][:, 0, 0] += 1
    elif task == "completion":
        rows |= {k: rng.gamma(2.0, 0.02, n) for k in ("cd_l1", "cd_l2", "emd")} | {"cloud": rows["id"]}
    elif task == "next_item":
        rank = rng.geometric(0.06, n)
        rows |= {"rank": rank, "ties": rng.integers(0, rank), "candidates": np.full(n, 500)}
    elif task == "language_model":
        tokens = rng.integers(1, 40, n)
        rows |= {"nll": tokens * rng.gamma(3.0, 0.5, n), "tokens": tokens}
    else:
        value = np.round(rng.normal(size=(n, 3)), 1)
        target = np.round(value + rng.normal(size=(n, 3)), 1)
        target = (target > 0).astype(float) if (options or {}).get("kind") == "binary" else target
        target[rng.random((n, 3)) < 0.2] = np.nan
        rows |= {"target": target, "value": value}
    return task, rows


def take(rows, index):
    """Rows by number, repeated ones under new ids."""
    rows = {name: column[index] for name, column in rows.items()}
    return rows | {"id": np.array([f"r{i}" for i in range(len(index))])}


def same(a, b, tolerance=1e-10):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is None) == (b[name] is None), name
        assert a[name] is None or a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance), name


# against other libraries ----------------------------------------------------------------------------------------------


def weights(n):
    return {"unit": None, "integer": generator(1).integers(0, 4, n), "float": generator(2).gamma(1.0, 1.0, n)}


weighted = pytest.mark.parametrize("kind_of_weight", ["unit", "integer", "float"])


@weighted
@pytest.mark.parametrize("case", ["classification", "classification-2"])
def test_classification_equals_sklearn(case, kind_of_weight):
    task, rows = make(case, n=200)
    w, y, prob = weights(200)[kind_of_weight], rows["target"], rows["prob"]
    guess = prob.argmax(1)
    wanted = {
        "accuracy": sk.accuracy_score(y, guess, sample_weight=w),
        "balanced_accuracy": sk.recall_score(y, guess, labels=np.unique(y), average="macro", sample_weight=w),
        "macro_f1": sk.f1_score(y, guess, average="macro", sample_weight=w),
        "nll": np.average(-np.log(prob[np.arange(200), y]), weights=w),
    }
    if case.endswith("2"):
        wanted["auroc"] = sk.roc_auc_score(y, prob[:, 1], sample_weight=w)
    same(metrics.compute(task, rows, w), wanted)


def test_classification_equals_torchmetrics():
    task, rows = make("classification-2", n=200)
    prob, y = torch.from_numpy(rows["prob"]), torch.from_numpy(rows["target"])
    found = metrics.compute(task, rows)
    assert found["auroc"] == pytest.approx(tm.auroc(prob[:, 1], y, "binary").item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx(tm.accuracy(prob, y, "multiclass", num_classes=2).item(), abs=1e-6)
    f1 = tm.f1_score(prob, y, "multiclass", num_classes=2, average="macro").item()
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-6)
    assert found["nll"] == pytest.approx(sk.log_loss(y, rows["prob"]), abs=1e-10)


def test_nll_is_clipped():
    rows = {"id": np.array(["a"]), "group": np.array(["a"]), "target": np.array([1]), "prob": np.array([[1.0, 0.0]])}
    assert metrics.compute("classification", rows)["nll"] == pytest.approx(-math.log(1e-12))


def units(counts):
    """The (true, predicted) label of every unit behind a (C, C) confusion."""
    return np.repeat(np.argwhere(np.ones_like(counts)), counts.ravel(), 0).T


@weighted
def test_segmentation_equals_sklearn_on_the_units(kind_of_weight):
    task, rows = make("segmentation")
    w = weights(60)[kind_of_weight]
    pairs = [units(counts) for counts in rows["counts"]]
    truth, guess = np.concatenate(pairs, 1)
    unit_weight = None if w is None else np.repeat(w, rows["counts"].sum((1, 2)))
    # jaccard_score over all four classes, then the rule for a class that is in neither
    sample = [sk.jaccard_score(t, g, labels=range(4), average=None, zero_division=1).mean() for t, g in pairs]
    wanted = {
        "miou": sk.jaccard_score(truth, guess, average="macro", sample_weight=unit_weight),
        "dice": sk.f1_score(truth, guess, average="macro", sample_weight=unit_weight),
        "miou_sample": np.average(sample, weights=w),
        "accuracy": sk.accuracy_score(truth, guess, sample_weight=unit_weight),
    }
    same(metrics.compute(task, rows, w), wanted)


def test_segmentation_equals_torchmetrics():
    task, rows = make("segmentation")
    truth, guess = (torch.from_numpy(x) for x in np.concatenate([units(c) for c in rows["counts"]], 1))
    wanted = tm.jaccard_index(guess, truth, "multiclass", num_classes=4, average="none")[:3].mean().item()
    assert metrics.compute(task, rows)["miou"] == pytest.approx(wanted, abs=1e-6)


def test_absent_class_counts_as_one_only_in_the_sample_rule():
    counts = np.zeros((1, 3, 3), int)
    counts[0, 0, 0], counts[0, 0, 1] = 1, 1  # IoU 1/2 of class 0, 0 of class 1; class 2 absent
    rows = {"id": np.array(["a"]), "group": np.array(["a"]), "counts": counts}
    found = metrics.compute("segmentation", rows)
    assert found["miou"] == pytest.approx(0.25)
    assert found["miou_sample"] == pytest.approx(0.5)
    assert found["dice"] == pytest.approx(1 / 3)
    # the original's own formula, with its smoothing
    truth, guess = units(counts[0])
    one_hot = [np.eye(3, dtype=bool)[x].T for x in (truth, guess)]
    both, either = (one_hot[0] & one_hot[1]).sum(1), (one_hot[0] | one_hot[1]).sum(1)
    assert found["miou_sample"] == pytest.approx(((both + 1e-8) / (either + 1e-8)).mean(), abs=1e-7)


@weighted
def test_completion_is_a_weighted_mean(kind_of_weight):
    task, rows = make("completion")
    w = weights(60)[kind_of_weight]
    same(metrics.compute(task, rows, w), {k: np.average(rows[k], weights=w) for k in ("cd_l1", "cd_l2", "emd")})
    del rows["emd"]
    assert set(metrics.compute(task, rows, w)) == {"cd_l1", "cd_l2"}  # absent, not None


@weighted
def test_next_item_equals_sklearn_on_the_score_lists(kind_of_weight):
    rng, n, items = generator("scores"), 50, 40
    scores, target = rng.normal(size=(n, items)), rng.integers(0, items, n)
    own = scores[np.arange(n), target][:, None]
    ids = np.array([f"u{i}" for i in range(n)])
    rows = {"id": ids, "group": ids, "rank": (scores >= own).sum(1), "ties": np.zeros(n, int)}
    rows["candidates"] = np.full(n, items)
    w, relevant = weights(n)[kind_of_weight], np.eye(items)[target]
    found = metrics.compute("next_item", rows, w, topk=[5, 10])
    pairs = zip(relevant[:, None], scores[:, None], strict=True)
    reciprocal = np.array([sk.label_ranking_average_precision_score(r, s) for r, s in pairs])
    for k in (5, 10):
        assert found[f"ndcg@{k}"] == pytest.approx(sk.ndcg_score(relevant, scores, k=k, sample_weight=w))
        hit = sk.top_k_accuracy_score(target, scores, k=k, labels=range(items), sample_weight=w)
        assert found[f"hr@{k}"] == pytest.approx(hit)
        assert found[f"mrr@{k}"] == pytest.approx(np.average(np.where(rows["rank"] <= k, reciprocal, 0), weights=w))
    if w is None:
        args = torch.from_numpy(scores).flatten(), torch.from_numpy(relevant).bool().flatten()
        query = torch.arange(n).repeat_interleave(items)
        assert found["ndcg@10"] == pytest.approx(RetrievalNormalizedDCG(top_k=10)(*args, query).item(), abs=1e-6)
        assert found["mrr@10"] == pytest.approx(RetrievalMRR(top_k=10)(*args, query).item(), abs=1e-6)


def test_constant_scores_cannot_win():
    n, candidates = 30, 100
    ids = np.array([f"u{i}" for i in range(n)])
    tied = {"id": ids, "group": ids, "rank": np.full(n, candidates), "ties": np.full(n, candidates - 1)}
    tied["candidates"] = np.full(n, candidates)
    assert set(metrics.compute("next_item", tied).values()) == {0.0}
    last = metrics.compute("next_item", tied, topk=[candidates])
    same(last, {"hr@100": 1.0, "ndcg@100": 1 / math.log2(101), "mrr@100": 0.01})
    assert set(metrics.intervals("next_item", tied, resamples=20).values()) == {(0.0, 0.0)}


@weighted
def test_language_model_equals_the_definition(kind_of_weight):
    task, rows = make("language_model")
    w = weights(60)[kind_of_weight]
    nll = np.average(rows["nll"] / rows["tokens"], weights=rows["tokens"] * (1 if w is None else w))
    wanted = {"nll": nll, "perplexity": math.exp(nll), "bits_per_token": nll / math.log(2)}
    same(metrics.compute(task, rows, w), wanted)


def test_perplexity_equals_torchmetrics():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 7, 11, dtype=torch.float64), torch.randint(0, 11, (4, 7))
    nll = -logits.log_softmax(-1).gather(2, target[..., None]).sum((1, 2))
    ids = np.array(list("abcd"))
    rows = {"id": ids, "group": ids, "nll": nll.numpy(), "tokens": np.full(4, 7)}
    wanted = tm.text.perplexity(logits, target).item()
    assert metrics.compute("language_model", rows)["perplexity"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_infinite_perplexity_is_undefined():
    rows = {"id": np.array(["a"]), "group": np.array(["a"]), "nll": np.array([1e6]), "tokens": np.array([1])}
    assert metrics.compute("language_model", rows)["perplexity"] is None


@weighted
def test_regression_equals_sklearn_and_scipy(kind_of_weight):
    task, rows = make("property", n=150)
    w = weights(150)[kind_of_weight]
    parts = []
    for y, v in zip(rows["target"].T, rows["value"].T, strict=True):
        known = ~np.isnan(y)
        parts.append((y[known], v[known], None if w is None else w[known]))
    wanted = {
        "rmse": np.mean([sk.root_mean_squared_error(y, v, sample_weight=u) for y, v, u in parts]),
        "mae": np.mean([sk.mean_absolute_error(y, v, sample_weight=u) for y, v, u in parts]),
        "r2": np.mean([sk.r2_score(y, v, sample_weight=u) for y, v, u in parts]),
    }
    found = metrics.compute(task, rows, w)
    spearman = found.pop("spearman")
    same(found, wanted)
    if kind_of_weight != "float":  # scipy has no weights; repetition is what an integer one means
        repeated = [(y, v) if u is None else (np.repeat(y, u), np.repeat(v, u)) for y, v, u in parts]
        assert spearman == pytest.approx(np.mean([stats.spearmanr(y, v).statistic for y, v in repeated]), abs=1e-10)


def test_regression_equals_torchmetrics():
    task, rows = make("property", n=150)
    rows["target"] = np.nan_to_num(rows["target"])
    y, v = torch.from_numpy(rows["target"]), torch.from_numpy(rows["value"])
    found = metrics.compute(task, rows)
    assert found["spearman"] == pytest.approx(tm.spearman_corrcoef(v, y).mean().item(), abs=1e-6)
    assert found["r2"] == pytest.approx(tm.r2_score(v, y).item(), abs=1e-6)
    assert found["mae"] == pytest.approx(tm.mean_absolute_error(v, y).item(), abs=1e-6)


@weighted
def test_binary_properties_equal_sklearn(kind_of_weight):
    task, rows = make("property", {"kind": "binary"}, n=150)
    w = weights(150)[kind_of_weight]
    wanted = {"auroc": [], "average_precision": []}
    for y, v in zip(rows["target"].T, rows["value"].T, strict=True):
        known = ~np.isnan(y)
        args = {"y_true": y[known], "y_score": v[known], "sample_weight": None if w is None else w[known]}
        wanted["auroc"].append(sk.roc_auc_score(**args))
        wanted["average_precision"].append(sk.average_precision_score(**args))
    same(metrics.compute(task, rows, w, kind="binary"), {k: np.mean(v) for k, v in wanted.items()})


# undefined, never invented --------------------------------------------------------------------------------------------


def test_undefined_metrics_are_none():
    task, rows = make("classification-2")
    only = take(rows, np.flatnonzero(rows["target"] == 1))
    found = metrics.compute(task, only)
    assert found["auroc"] is None and found["accuracy"] is not None
    assert metrics.intervals(task, only, resamples=10)["auroc"] is None
    # one class by weight is the same as one class by rows
    same(metrics.compute(task, rows, rows["target"]), found)

    task, rows = make("property")
    rows["target"][:, 0], rows["target"][:, 1:] = 0.1, np.nan  # 0.1 has no exact mean: the variance is not 0
    found = metrics.compute(task, rows)
    assert found["r2"] is None and found["spearman"] is None and found["rmse"] is not None
    rows["target"][:] = np.nan
    assert set(metrics.compute(task, rows).values()) == {None}
    assert set(metrics.compute(task, rows, kind="binary").values()) == {None}
    assert set(metrics.intervals(task, rows, resamples=5).values()) == {None}


@pytest.mark.filterwarnings("error")
def test_a_target_of_which_no_known_value_has_weight_is_undefined_without_a_warning():
    task, rows = make("property")
    rows["target"][5:] = np.nan
    assert set(metrics.compute(task, rows, (np.arange(60) >= 5).astype(float)).values()) == {None}


def test_a_target_with_one_class_is_left_out_of_the_mean():
    task, rows = make("property", {"kind": "binary"})
    first = {name: rows[name][:, :1] for name in ("target", "value")}
    rows["target"][:, 1], rows["target"][:, 2] = 1.0, np.nan
    same(metrics.compute(task, rows, kind="binary"), metrics.compute(task, rows | first, kind="binary"))


def test_constant_values_leave_only_spearman_undefined():
    task, rows = make("property")
    rows["value"][:] = 0.1
    found = metrics.compute(task, rows)
    assert found["spearman"] is None and found["r2"] is not None


def test_rare_undefined_replicates_are_left_out_and_frequent_ones_refused():
    n = 40
    ids = np.array([f"i{i:02d}" for i in range(n)])
    positives = lambda k: {"target": (np.arange(n) < k).astype(float)[:, None]}  # noqa: E731
    rows = {"id": ids, "group": ids, "value": generator("v").normal(size=(n, 1))}
    # with k positives a replicate has none with probability about exp(-k): 37 % and 0.7 %
    assert metrics.intervals("property", rows | positives(1), resamples=300, kind="binary")["auroc"] is None
    low, high = metrics.intervals("property", rows | positives(5), resamples=300, kind="binary")["auroc"]
    assert 0 <= low < high <= 1


def test_as_many_defined_replicates_as_the_level_asks_for_are_enough():
    task, rows = make("completion")
    names, samples = metrics.replicates(task, rows, resamples=1)
    assert metrics.intervals(task, rows, resamples=1) == {
        name: (value, value) for name, value in zip(names, samples[0].tolist(), strict=True)
    }


def test_one_group_has_no_interval():
    task, rows = make("completion", groups=1)
    assert metrics.intervals(task, rows, resamples=10) == {"cd_l1": None, "cd_l2": None, "emd": None}


# laws -----------------------------------------------------------------------------------------------------------------


@cases
@settings(derandomize=True, deadline=None, max_examples=25)
@given(data=st.data())
def test_weights_are_repetitions(case, options, data):
    n = data.draw(st.integers(1, 12))
    task, rows = make(case, options, n=n, seed=data.draw(st.integers(0, 99)))
    weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any)))
    repeated = take(rows, np.repeat(np.arange(n), weight))
    found = metrics.compute(task, rows, weight, **options)
    same(found, metrics.compute(task, repeated, **options))
    same(found, metrics.compute(task, rows, 0.37 * weight, **options))  # only the proportions matter


@cases
@settings(derandomize=True, deadline=None, max_examples=10)
@given(data=st.data())
def test_order_does_not_matter(case, options, data):
    n = data.draw(st.integers(2, 12))
    task, rows = make(case, options, n=n, seed=data.draw(st.integers(0, 99)), groups=data.draw(st.integers(2, n)))
    order = np.array(data.draw(st.permutations(range(n))))
    mixed = {name: column[order] for name, column in rows.items()}
    same(metrics.compute(task, rows, **options), metrics.compute(task, mixed, **options))
    a, b = (metrics.intervals(task, r, resamples=15, **options) for r in (rows, mixed))
    for end in (0, 1):
        same({k: v and v[end] for k, v in a.items()}, {k: v and v[end] for k, v in b.items()})


@cases
def test_interval_is_deterministic_and_contains_the_estimate(case, options):
    task, rows = make(case, options, n=120, groups=60)
    before = {name: column.copy() for name, column in rows.items()}
    found = metrics.compute(task, rows, **options)
    intervals = metrics.intervals(task, rows, resamples=100, **options)
    assert intervals.keys() == found.keys()
    for name, (low, high) in intervals.items():
        assert low < high and low <= found[name] <= high, name
        assert type(low) is type(high) is type(found[name]) is float
    assert metrics.intervals(task, rows, resamples=100, seed=0, **options) == intervals
    assert metrics.intervals(task, rows, resamples=100, seed=1, **options) != intervals
    narrow = metrics.intervals(task, rows, resamples=100, level=0.5, **options)
    assert all(narrow[k][1] - narrow[k][0] < high - low for k, (low, high) in intervals.items())
    assert all(np.array_equal(rows[name], before[name], equal_nan=rows[name].dtype.kind == "f") for name in rows)


@pytest.mark.parametrize("case", ["next_item", "completion"])
@pytest.mark.parametrize("groups", [2, 17, 90])
def test_fast_path_equals_generic_path(case, groups, monkeypatch):
    task, rows = make(case, n=90, groups=groups)
    evaluate = metrics._evaluator(task, rows, {})
    names, fast = metrics._replicates(evaluate, rows["group"], 40, 3)
    again, generic = metrics._replicates(lambda weight: evaluate(weight), rows["group"], 40, 3)  # hides its type
    assert names == again
    np.testing.assert_allclose(fast, generic, rtol=0, atol=1e-12)
    monkeypatch.setattr(metrics, "_BLOCK", 7 * groups)  # 40 resamples in blocks of 7: the last one is short
    np.testing.assert_allclose(metrics._replicates(evaluate, rows["group"], 40, 3)[1], generic, rtol=0, atol=1e-12)


@cases
def test_replicates_are_compute_with_multinomial_weights(case, options):
    task, rows = make(case, options, n=50, groups=20)
    names, samples = metrics._replicates(metrics._evaluator(task, rows, options), rows["group"], 6, 5)
    unique, inverse = np.unique(rows["group"], return_inverse=True)
    rng = generator(5, "bootstrap")
    for sample in samples:
        counts = np.bincount(rng.integers(0, 20, 20), minlength=20)
        assert counts.sum() == len(unique) == 20
        found = metrics.compute(task, rows, counts[inverse], **options)
        same(dict(zip(names, (float(s) if np.isfinite(s) else None for s in sample), strict=True)), found)


def covered(cluster, by_cluster):
    """Share of 200 simulated data sets whose 95 % interval covers the true mean 2; 60 groups of `cluster` rows."""
    hits = 0
    for seed in range(200):
        rng = generator(seed, "coverage")
        value = np.repeat(rng.gamma(4.0, 0.5, 60), cluster)  # mean 2; the rows of a group say the same
        ids = np.array([f"{i:04d}" for i in range(len(value))])
        group = np.array([f"{i // cluster:04d}" for i in range(len(value))]) if by_cluster else ids
        rows = {"id": ids, "group": group, "cd_l1": value, "cd_l2": value, "cloud": ids}
        low, high = metrics.intervals("completion", rows, resamples=200, seed=seed)["cd_l1"]
        hits += low <= 2 <= high
    return hits / 200


def test_coverage():
    assert 0.90 <= covered(1, by_cluster=True) <= 0.985
    assert 0.90 <= covered(3, by_cluster=True) <= 0.985
    assert covered(3, by_cluster=False) < 0.85  # what resampling rows instead of groups would claim


# bad rows -------------------------------------------------------------------------------------------------------------


def put(name, row, value):
    def change(rows):
        rows[name] = rows[name].copy()
        rows[name][row] = value

    return change


def replace(name, make_column):
    def change(rows):
        rows[name] = make_column(rows[name])

    return change


def drop(name):
    return lambda rows: rows.pop(name)


def cut(rows):
    rows.update({name: column[:0] for name, column in rows.items()})


INF, NAN = np.inf, np.nan
BAD = [  # case, options, change, column, row, words of the complaint, words of the remedy
    ("classification", {}, drop("prob"), "prob", None, "is missing", "add it as a numpy array: float (n, C)"),
    ("completion", {}, drop("cloud"), "cloud", None, "is missing", "add it as a numpy array: unicode (n,)"),
    ("classification", {}, drop("group"), "group", None, "is missing", "add it as a numpy array: unicode (n,)"),
    ("classification", {}, replace("prob", lambda p: p.tolist()), "prob", None, "is list", "make it a numpy array"),
    ("next_item", {}, replace("rank", lambda r: r * 1.0), "rank", None, "is float64", "numpy array: integer (n,)"),
    ("property", {}, replace("value", lambda v: v[:, 0]), "value", None, "of shape (60,)", "float (n, T)"),
    ("completion", {}, replace("id", lambda i: np.arange(60)), "id", None, "is int64", "numpy array: unicode (n,)"),
    ("classification", {}, cut, "id", 0, "there is no row", "predict at least one sample"),
    ("completion", {}, replace("cd_l2", lambda c: c[:-3]), "cd_l2", 57, "57 values for 60 ids", "every id one value"),
    ("completion", {}, replace("cd_l2", lambda c: np.tile(c, 2)), "cd_l2", 60, "120 values for 60", "one value"),
    ("completion", {}, lambda r: r.update(extra=r["cd_l1"][:2]), "extra", 2, "2 values for 60 ids", "one value"),
    ("completion", {}, lambda r: r.update(extra=1.0), "extra", 0, "0 values for 60 ids", "every id one value"),
    ("completion", {}, put("id", 9, "i0004"), "id", 9, "(id 'i0004'): occurs before", "give every row its own id"),
    ("completion", {}, put("group", 3, ""), "group", 3, "is empty", "name the user, patient or sample"),
    ("completion", {}, put("emd", 5, INF), "emd", 5, "inf is not finite", "mend the model"),
    ("completion", {}, put("cd_l1", 5, -0.5), "cd_l1", 5, "-0.5 is negative", "store distances"),
    ("classification", {}, put("prob", (7, 1), NAN), "prob", 7, "is not finite", "mend the model"),
    ("classification", {}, put("prob", (7, 1), 0.9), "prob", 7, "does not sum to 1", "store probabilities"),
    ("classification", {}, replace("prob", lambda p: p * 1.0011), "prob", 0, "does not sum to 1", "a softmax"),
    ("classification", {}, put("prob", 7, [2, -1, 0, 0, 0]), "prob", 7, "is negative", "not logits"),
    ("classification", {}, put("target", 8, 5), "target", 8, "5 is not a class of 5", "number classes from 0"),
    ("classification", {}, put("target", 8, -1), "target", 8, "-1 is not a class", "number classes from 0"),
    ("segmentation", {}, put("counts", (2, 1, 1), -1), "counts", 2, "negative count", "count units per"),
    ("segmentation", {}, replace("counts", lambda c: c[:, :3]), "counts", 0, "not square", "count units per"),
    ("segmentation", {}, put("counts", 4, 0), "counts", 4, "counts no unit", "leave out samples"),
    ("next_item", {}, put("rank", 6, 0), "rank", 6, "0 is below 1", "count ranks from 1"),
    ("next_item", {}, put("rank", 6, 501), "rank", 6, "501 is above 'candidates'", "count the target among"),
    ("next_item", {}, put("ties", 6, 499), "ties", 6, "499 is not in 0 .. rank-1", "in the rank too"),
    ("next_item", {}, lambda r: r.update(ties=r["rank"]), "ties", 0, "is not in 0 .. rank-1", "in the rank too"),
    ("next_item", {}, put("ties", 6, -1), "ties", 6, "-1 is not in 0 .. rank-1", "in the rank too"),
    ("language_model", {}, put("tokens", 1, 0), "tokens", 1, "0 is not above 0", "leave out sequences"),
    ("language_model", {}, put("nll", 1, NAN), "nll", 1, "nan is not finite", "mend the model"),
    ("language_model", {}, lambda r: r.update(nll=r["tokens"] * -1e-4), "nll", 0, "is negative", "negative log-lik"),
    ("language_model", {}, put("nll", 1, -3.0), "nll", 1, "-3.0 is negative", "store the negative log-likelihood"),
    ("property", {}, put("target", (2, 0), INF), "target", 2, "is not finite", "use NaN for unknown"),
    ("property", {}, put("value", (2, 0), NAN), "value", 2, "is not finite", "mend the model"),
    ("property", {}, replace("value", lambda v: v[:, :2]), "value", 0, "has 2 targets, 'target' 3", "every target"),
    ("property", {"kind": "binary"}, put("target", (4, 1), 0.5), "target", 4, "not 0, 1 or NaN", "binarise it"),
]


@pytest.mark.parametrize(("case", "options", "change", "column", "row", "complaint", "remedy"), BAD)
def test_bad_rows_name_column_row_and_remedy(case, options, change, column, row, complaint, remedy):
    task, rows = make(case, options)
    metrics.check_rows(task, rows, **options)
    change(rows)
    calls = (metrics.check_rows, metrics.compute, lambda *args, **kw: metrics.intervals(*args, resamples=2, **kw))
    for call in calls:
        with pytest.raises(ZooError) as error:
            call(task, rows, **options)
        text = str(error.value)
        assert text.startswith(f"{task} rows: column '{column}'") and "\n" not in text
        assert row is None or f", row {row}" in text
        assert complaint in text.split("; ")[0] and remedy in text.split("; ")[1]


def test_small_rounding_is_no_error():
    task, rows = make("classification")
    metrics.check_rows(task, rows | {"prob": rows["prob"].astype(np.float16)})
    metrics.check_rows(task, rows | {"prob": rows["prob"] * 1.0009})
    task, rows = make("language_model")
    rows["nll"][0] = -1e-7  # a log-softmax just above 0
    rows["nll"][1] = rows["tokens"][1] * -9e-6
    metrics.check_rows(task, rows)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_narrow_and_unsigned_integers_count_alike(dtype):
    for case in ("next_item", "segmentation", "classification"):
        task, rows = make(case)
        cast = rows | {name: rows[name].astype(dtype) for name in ("rank", "ties", "counts", "target") if name in rows}
        assert metrics.compute(task, cast) == metrics.compute(task, rows)


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        (np.ones(59), "weight is a float64 array of shape (59,); give numbers of shape (60,)"),
        (np.full(60, "1"), "weight is a <U1 array of shape (60,); give numbers"),
        (np.r_[np.ones(4), -1, np.ones(55)], "weight, row 4: -1.0; give finite numbers >= 0"),
        (np.r_[np.ones(4), -0.5, np.ones(55)], "weight, row 4: -0.5; give finite numbers >= 0"),
        (np.r_[np.ones(4), NAN, np.ones(55)], "weight, row 4: nan; give finite numbers >= 0"),
        (np.zeros(60), "weight, row 0: 0.0; give finite numbers >= 0 that are not all 0"),
    ],
)
def test_bad_weights(weight, wanted):
    with pytest.raises(ZooError) as error:
        metrics.compute(*make("completion"), weight)
    assert str(error.value).startswith(wanted)


@pytest.mark.parametrize(
    ("case", "options", "wanted"),
    [
        ("next_item", {"top_k": (1,)}, "unknown option 'top_k' in the metrics of next_item; did you mean 'topk'?"),
        ("completion", {"topk": (1,)}, "unknown option 'topk' in the metrics of completion; valid: none"),
        ("next_item", {"topk": (0,)}, "topk=(0,); give a list of whole numbers >= 1"),
        ("next_item", {"topk": ()}, "topk=(); give a list of whole numbers >= 1"),
        ("next_item", {"topk": 10}, "topk=10; give a list of whole numbers >= 1"),
        ("property", {"kind": "regresion"}, "unknown kind 'regresion' in the metrics of property; did you mean"),
    ],
)
def test_bad_options(case, options, wanted):
    task, rows = make(case)
    for call in (metrics.check_rows, metrics.compute, metrics.intervals):
        with pytest.raises(ZooError) as error:
            call(task, rows, **options)
        assert str(error.value).startswith(wanted)


def test_bad_task_and_bad_interval_settings():
    _, rows = make("completion")
    with pytest.raises(ZooError, match="unknown task 'completions'; did you mean 'completion'"):
        metrics.compute("completions", rows)
    for settings_ in ({"resamples": 0}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(ZooError, match="use resamples >= 1 and a level between 0 and 1"):
            metrics.intervals("completion", rows, **settings_)


# the schemas ----------------------------------------------------------------------------------------------------------


@cases
def test_schema_knows_what_is_computed(case, options):
    task, rows = make(case, options)
    schema, found = metrics.TASKS[task], metrics.compute(task, rows, **options)
    wanted = {"property": {"binary": "auroc"}.get(options.get("kind"), "rmse")}
    wanted |= {"next_item": "ndcg@1" if "topk" in options else "ndcg@10", "classification": "balanced_accuracy"}
    wanted |= {"segmentation": "miou", "completion": "cd_l1", "language_model": "nll"}
    assert schema.primary_for(**options) == wanted[task] in found
    assert schema.primary == schema.primary_for()
    assert {name.split("@")[0] for name in found} <= set(schema.metrics)
    assert set(schema.columns) == set(rows)
    for name, column in schema.columns.items():
        assert rows[name].dtype.kind in column.kinds and rows[name].ndim == column.ndim


@pytest.mark.parametrize(
    ("topk", "primary"), [((5, 10), "ndcg@10"), ((5, 20), "ndcg@5"), ((20, 5), "ndcg@20"), ((10,), "ndcg@10")]
)
def test_the_primary_cut_off_is_10_where_there_is_one_and_the_first_otherwise(topk, primary):
    assert metrics.TASKS["next_item"].primary_for(topk=topk) == primary


def test_better_is_where_a_better_model_goes():
    """Perfect predictions score at least as well in every metric, in the direction the schema says."""
    perfect = {
        "classification-2": lambda r: {"prob": np.eye(2)[r["target"]]},
        "segmentation": lambda r: {"counts": r["counts"].sum(2)[:, :, None] * np.eye(4, dtype=int)},
        "completion": lambda r: {k: r[k] * 0 for k in ("cd_l1", "cd_l2", "emd")},
        "next_item": lambda r: {"rank": r["rank"] * 0 + 1, "ties": r["ties"] * 0},
        "language_model": lambda r: {"nll": r["nll"] * 0},
        "property": lambda r: {"value": np.nan_to_num(r["target"])},
    }
    for case, change in perfect.items():
        for options in ({"kind": "regression"}, {"kind": "binary"}) if case == "property" else ({},):
            task, rows = make(case, options)
            was, now = metrics.compute(task, rows, **options), metrics.compute(task, rows | change(rows), **options)
            for name in was:
                lower = metrics.TASKS[task].lower_is_better(name)
                assert (now[name] < was[name]) if lower else (now[name] > was[name]), (task, name)
    with pytest.raises(ZooError, match="unknown metric 'ndgc@10'"):
        metrics.TASKS["next_item"].lower_is_better("ndgc@10")


def test_numpy_is_all_it_imports():
    tree = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "collections.abc", "dataclasses", "typing", "numpy", "errors", "seeding"}
    assert metrics.METRIC_VERSION == "1"
