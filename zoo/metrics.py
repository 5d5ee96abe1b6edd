"""Metrics recomputed from prediction rows with numpy alone, and their bootstrap intervals.

Rows are columns of one length n: `id` (unique) and `group` (the unit that was sampled: user, patient, sample), both
unicode, and the task's own. Every metric takes a weight per row that counts as repetition (2 is the row twice, 0 is the
row left out), so a bootstrap replicate is nothing but a weight vector. Conventions:

classification  The guess is the first maximum of `prob`. Balanced accuracy is the mean recall over the classes in the
                truth; macro F1 = mean 2 TP / (2 TP + FP + FN) over the classes in truth or guess; NLL clips at 1e-12.
segmentation    `miou` and `dice` pool the confusions [true, predicted] and average over the classes that occur in truth
                or prediction. `miou_sample` averages over *all* classes in each sample, then over samples; a class
                absent from both scores 1, as in the original Point SSM code, (|x & y| + 1e-8) / (|x or y| + 1e-8).
next_item       One target a row, so the ideal DCG is 1: NDCG@k = [rank <= k] / log2(rank + 1) (Jarvelin and Kekalainen
                2002, TOIS 20(4), with the customary log2(rank + 1) discount), HR@k = [rank <= k], MRR@k = [rank <= k] /
                rank. Ranks are pessimistic, 1 + candidates scored higher + *others* scored the same (`ties`).
language_model  nll = sum nll / sum tokens in nats, perplexity = exp(nll), bits_per_token = nll / ln 2.
property        Each target over its known (not NaN) values, then the mean over the targets where the metric is defined:
                R2 needs two distinct targets, Spearman (Pearson of average ranks) also two distinct values, AUROC and
                average precision both classes. AUROC is the Mann-Whitney statistic, ties count half; average precision
                is sum_j (R_j - R_{j-1}) P_j over the distinct scores from the highest, without interpolation.

A metric that does not apply (AUROC of three classes, an EMD nobody measured) is absent; one that is undefined is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .errors import ZooError, unknown
from .seeding import generator

METRIC_VERSION = "1"
Rows = Mapping[str, np.ndarray]
_BLOCK = 1 << 20  # elements in a block of bootstrap counts: 8 MiB as integers, 8 MiB as floats


class Column(NamedTuple):
    """A column: the dtype kinds it may have (`numpy.dtype.kind`), number of axes, and the two in words."""

    kinds: str
    ndim: int
    text: str
    required: bool = True


@dataclass(frozen=True)
class Schema:
    """What a task's rows hold and what is computed from them; `primary` sorts a board under the default options."""

    columns: Mapping[str, Column]
    metrics: tuple[str, ...]  # without @k
    primary: str
    build: Callable = field(repr=False)  # (rows, deny, **options) -> (weight -> metrics), refusing bad rows
    lower: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def lower_is_better(self, name: str) -> bool:
        """True where a smaller value of metric `name` (`rmse`, `ndcg@10`) is the better one; ZooError if unknown."""
        if name.split("@")[0] not in self.metrics:
            raise unknown("metric", name, self.metrics)
        return name in self.lower

    def primary_for(self, **options) -> str:
        """The primary metric under `options`: `auroc` for kind="binary", ndcg@ the first k where `topk` has no 10."""
        ranked = self.primary if 10 in options.get("topk", (10,)) else f"ndcg@{options['topk'][0]}"
        return "auroc" if options.get("kind") == "binary" else ranked


def check_rows(task: str, rows: Rows, **options) -> None:
    """Raise ZooError naming column, row (from 0) and remedy unless `rows` and `options` are what `task` needs.

    Columns beyond the schema are allowed where they have n rows.
    """
    _evaluator(task, rows, options)


def compute(task: str, rows: Rows, weight: np.ndarray | None = None, **options) -> dict[str, float | None]:
    """The metrics of `task`, each a float, or None where the rows and weights leave it undefined.

    `weight`: (n,) integers or floats >= 0, one each by default. Options: `topk` (next_item, default (10, 20, 50)),
    `kind` (property, "regression" or "binary"). ZooError on bad rows, weights or options.
    """
    evaluate, n = _evaluator(task, rows, options), len(rows["id"])
    weight = np.ones(n) if weight is None else np.asarray(weight)
    if weight.shape != (n,) or weight.dtype.kind not in "iuf":
        raise ZooError(f"weight is a {weight.dtype} array of shape {weight.shape}; give numbers of shape ({n},)")
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)) | (not weight.any()))
    if bad.size:
        raise ZooError(f"weight, row {bad[0]}: {weight[bad[0]]}; give finite numbers >= 0 that are not all 0")
    found = evaluate(weight.astype(np.float64))
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def intervals(
    task: str, rows: Rows, *, resamples: int = 1000, level: float = 0.95, seed: int = 0, **options
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap interval of each metric, drawing whole groups (Efron and Tibshirani 1993, section 13.3).

    A function of the rows (in any order), options and `seed`; memory is O(n) + 16 MiB. None where no honest interval
    exists: one group, or a metric undefined in more than 1 - level of the replicates (fewer are left out). ZooError on
    bad rows or options, `resamples` < 1, `level` outside (0, 1).
    """
    if resamples < 1 or not 0 < level < 1:
        raise ZooError(f"resamples={resamples}, level={level}; use resamples >= 1 and a level between 0 and 1")
    names, samples = replicates(task, rows, resamples=resamples, seed=seed, **options)
    found = {name: column[np.isfinite(column)] for name, column in zip(names, samples.T, strict=True)}
    tails, enough = ((1 - level) / 2, (1 + level) / 2), max(1, level * resamples)
    return {k: tuple(map(float, np.quantile(v, tails))) if v.size >= enough else None for k, v in found.items()}


def replicates(
    task: str, rows: Rows, *, resamples: int = 1000, seed: int = 0, **options
) -> tuple[list[str], np.ndarray]:
    """Metric names and their bootstrap replicates (resamples, metrics), NaN where undefined.

    The draw of groups depends on their names, `resamples` and `seed` alone: rows of another seed or model over the same
    groups meet the same draws, so that differences of replicates are paired.
    """
    return _replicates(_evaluator(task, rows, options), rows["group"], resamples, seed)


def _evaluator(task: str, rows: Rows, options: Mapping[str, Any]) -> Callable[[np.ndarray], dict[str, float]]:
    """Check everything once; what comes back maps a weight vector to metrics, NaN where undefined."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    schema = TASKS[task]
    for name in sorted(options.keys() - schema.options.keys()):
        raise unknown("option", name, schema.options, f"the metrics of {task}")
    for name, column in schema.columns.items():
        have = rows.get(name)
        if have is None and column.required:
            raise ZooError(f"{task} rows: column '{name}' is missing; add it as a numpy array: {column.text}")
        array = isinstance(have, np.ndarray)
        if have is not None and not (array and have.ndim == column.ndim and have.dtype.kind in column.kinds):
            found = f"{have.dtype} of shape {have.shape}" if array else type(have).__name__
            raise ZooError(f"{task} rows: column '{name}' is {found}; make it a numpy array: {column.text}")
    n = len(rows["id"])
    if n == 0:
        raise ZooError(f"{task} rows: column 'id', row 0: there is no row; predict at least one sample")

    def deny(name: str, bad: np.ndarray, what: str, remedy: str) -> None:
        for row in np.flatnonzero(bad.reshape(n, -1).any(1))[:1]:
            value = f"{rows[name][row]} " if rows[name].ndim == 1 and name != "id" else ""
            raise ZooError(f"{task} rows: column '{name}', row {row} (id '{rows['id'][row]}'): {value}{what}; {remedy}")

    for name, have in rows.items():
        if (length := len(have) if np.ndim(have) else 0) != n:
            place = f"column '{name}', row {min(length, n)}"
            raise ZooError(f"{task} rows: {place}: {length} values for {n} ids; give every id one value")
        if name in schema.columns and have.dtype.kind == "f":
            gaps = (task, name) == ("property", "target")  # where NaN means unknown
            bad, remedy = (np.isinf, "use NaN for unknown") if gaps else (lambda x: ~np.isfinite(x), "mend the model")
            deny(name, bad(have), "is not finite", remedy)
    _, first, inverse = np.unique(rows["id"], return_index=True, return_inverse=True)
    deny("id", first[inverse] != np.arange(n), "occurs before", "give every row its own id and merge shards only once")
    deny("group", rows["group"] == "", "is empty", "name the user, patient or sample, or repeat the id")
    return schema.build(rows, deny, **{**schema.options, **options})


def _replicates(evaluate: Callable, group: np.ndarray, resamples: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Metric names and their bootstrap values (resamples, metrics)."""
    rng, unique, inverse = generator(seed, "bootstrap"), *np.unique(group, return_inverse=True)
    names, groups = list(evaluate(np.ones(len(group)))), len(unique)
    samples = np.full((resamples, len(names)), np.nan)
    if groups == 1:  # each replicate would be the sample itself: an interval of width zero, which is not certainty
        return names, samples
    columns = [*evaluate.values.T, np.ones(len(group))] if isinstance(evaluate, _Means) else []
    sums = np.array([np.bincount(inverse, column, groups) for column in columns]).T
    block = max(1, _BLOCK // groups) if columns else 1
    for start in range(0, resamples, block):
        # Counted uniform draws are the multinomial, at a fraction of the cost of Generator.multinomial.
        draws = (rng.integers(0, groups, groups) for _ in range(min(block, resamples - start)))
        counts = np.array([np.bincount(draw, minlength=groups) for draw in draws], np.float64)
        if columns:
            totals = counts @ sums
            samples[start : start + block] = totals[:, :-1] / totals[:, -1:]
        else:
            samples[start] = list(evaluate(counts[0][inverse]).values())
    return names, samples


class _Means:
    """Metrics that are weighted means of per-row values (n, metrics): a replicate needs only their group sums."""

    def __init__(self, columns: dict[str, np.ndarray]):
        self.names, self.values = list(columns), np.stack(list(columns.values()), 1).astype(np.float64)

    def __call__(self, weight: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names, weight @ self.values / weight.sum(), strict=True))


def _mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    there = denominator > 0
    return (numerator[there] / denominator[there]).mean()


def _ranking(score: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], tuple[float, float]]:
    """Weight -> (AUROC, average precision) of scores (n,) for labels (n,); NaN unless both classes have weight."""
    levels, inverse = np.unique(score, return_inverse=True)

    def evaluate(weight):
        pos = np.bincount(inverse, weight * positive, len(levels))
        neg = np.bincount(inverse, weight * ~positive, len(levels))
        if not (pos.any() and neg.any()):
            return np.nan, np.nan
        auroc = pos @ (np.cumsum(neg) - neg / 2) / (pos.sum() * neg.sum())
        hits, misses, some = np.cumsum(pos[::-1]), np.cumsum(neg[::-1]), pos[::-1] > 0
        return auroc, (pos[::-1] * hits)[some] @ (1 / (hits + misses)[some]) / pos.sum()

    return evaluate


def _regression(target: np.ndarray, value: np.ndarray) -> Callable[[np.ndarray], tuple[float, ...]]:
    """Weight -> (RMSE, MAE, R2, Spearman) of one target, (n,) each; NaN where undefined."""
    levels, error = [np.unique(x, return_inverse=True)[1] for x in (target, value)], value - target

    def evaluate(weight):
        total, r2, spearman = weight.sum(), np.nan, np.nan
        if total == 0:
            return (np.nan,) * 4
        here = [np.bincount(level, weight) for level in levels]
        varies = [np.count_nonzero(h) > 1 for h in here]  # exact, where a variance of equal floats may not be 0
        if varies[0]:
            r2 = 1 - weight @ error**2 / (weight @ (target - weight @ target / total) ** 2)
        if all(varies):
            # Average rank of a value = weight below it + (its own weight + 1) / 2; Pearson does not see the 1 / 2.
            x, y = ((np.cumsum(h) - h / 2)[level] for h, level in zip(here, levels, strict=True))
            x, y = x - weight @ x / total, y - weight @ y / total
            spearman = weight @ (x * y) / np.sqrt((weight @ x**2) * (weight @ y**2))
        return np.sqrt(weight @ error**2 / total), weight @ np.abs(error) / total, r2, spearman

    return evaluate


def _classification(rows, deny):
    prob, target = rows["prob"].astype(np.float64), rows["target"].astype(np.int64)
    n, classes = prob.shape
    deny("target", (target < 0) | (target >= classes), f"is not a class of {classes}", "number classes from 0 to C-1")
    off = (prob < 0).any(1) | (np.abs(prob.sum(1) - 1) > 1e-3)
    deny("prob", off, "is negative or does not sum to 1", "store probabilities (a softmax), not logits")
    guess = prob.argmax(1)
    hit, loss = guess == target, -np.log(np.maximum(prob[np.arange(n), target], 1e-12))
    ranking = _ranking(prob[:, 1], target == 1) if classes == 2 else None

    def evaluate(weight):
        truth, right = np.bincount(target, weight, classes), np.bincount(target, weight * hit, classes)
        found = {"accuracy": weight @ hit / weight.sum(), "balanced_accuracy": _mean_ratio(right, truth)}
        found["macro_f1"] = _mean_ratio(2 * right, truth + np.bincount(guess, weight, classes))
        found["nll"] = weight @ loss / weight.sum()
        return found | ({"auroc": ranking(weight)[0]} if ranking else {})

    return evaluate


def _segmentation(rows, deny):
    counts = rows["counts"].astype(np.float64)
    n, classes, _ = counts.shape
    bad = (counts < 0).any((1, 2)) | (counts.shape[2] != classes)
    deny("counts", bad, "is not square or has a negative count", "count units per (true, predicted) class")
    deny("counts", counts.sum((1, 2)) == 0, "counts no unit", "leave out samples without a labelled unit")
    hit = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - hit
    sample_iou = np.divide(hit, union, out=np.ones_like(hit), where=union > 0).mean(1)

    def evaluate(weight):
        pooled = (weight @ counts.reshape(n, -1)).reshape(classes, classes)
        hit, both = np.diag(pooled), pooled.sum(0) + pooled.sum(1)
        ratios = {"miou": _mean_ratio(hit, both - hit), "dice": _mean_ratio(2 * hit, both)}
        return ratios | {"miou_sample": weight @ sample_iou / weight.sum(), "accuracy": hit.sum() / pooled.sum()}

    return evaluate


def _completion(rows, deny):
    distances = {name: rows[name] for name in ("cd_l1", "cd_l2", "emd") if name in rows}
    for name, distance in distances.items():
        deny(name, distance < 0, "is negative", "store distances")
    return _Means(distances)


def _next_item(rows, deny, topk):
    if not (isinstance(topk, (tuple, list)) and topk and all(type(k) is int and k >= 1 for k in topk)):
        raise ZooError(f"topk={topk!r}; give a list of whole numbers >= 1, such as [10, 20, 50]")
    rank, ties = rows["rank"].astype(np.float64), rows["ties"]
    deny("rank", rank < 1, "is below 1", "count ranks from 1")
    deny("rank", rank > rows["candidates"], "is above 'candidates'", "count the target among the candidates")
    deny("ties", (ties < 0) | (ties >= rank), "is not in 0 .. rank-1", "count others scored the same, in the rank too")
    gains = {"hr": np.ones(len(rank)), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}
    return _Means({f"{name}@{k}": gain * (rank <= k) for name, gain in gains.items() for k in topk})


def _language_model(rows, deny):
    nll, tokens = rows["nll"].astype(np.float64), rows["tokens"].astype(np.float64)
    deny("tokens", tokens <= 0, "is not above 0", "leave out sequences without a predicted token")
    low = nll < -1e-5 * tokens  # beyond what a log-softmax may be off by rounding: the sign is wrong
    deny("nll", low, "is negative", "store the negative log-likelihood, summed over the sequence")

    def evaluate(weight):
        mean = weight @ nll / (weight @ tokens)
        with np.errstate(over="ignore"):  # an infinite perplexity counts as undefined
            return {"nll": mean, "perplexity": np.exp(mean), "bits_per_token": mean / np.log(2)}

    return evaluate


def _property(rows, deny, kind):
    makers = {"regression": _regression, "binary": lambda target, value: _ranking(value, target == 1)}
    if kind not in makers:
        raise unknown("kind", str(kind), makers, "the metrics of property")
    target, value = rows["target"].astype(np.float64), rows["value"].astype(np.float64)
    wide, known = np.full(len(value), target.shape != value.shape), ~np.isnan(target)
    deny("value", wide, f"has {value.shape[1]} targets, 'target' {target.shape[1]}", "predict every target")
    other = known & (target != 0) & (target != 1)
    deny("target", other & (kind == "binary"), "is not 0, 1 or NaN", "binarise it or use kind='regression'")
    each = [makers[kind](y[k], v[k]) for y, v, k in zip(target.T, value.T, known.T, strict=True)]
    names = ("rmse", "mae", "r2", "spearman") if kind == "regression" else ("auroc", "average_precision")

    def evaluate(weight):
        table = np.array([one(weight[k]) for one, k in zip(each, known.T, strict=True)]).reshape(-1, len(names))
        columns = [column[np.isfinite(column)] for column in table.T]
        return {name: c.mean() if c.size else np.nan for name, c in zip(names, columns, strict=True)}

    return evaluate


_TEXT, _FLOAT, _INT = Column("U", 1, "unicode (n,)"), Column("f", 1, "float (n,)"), Column("iu", 1, "integer (n,)")
_PROB, _COUNTS = Column("f", 2, "float (n, C)"), Column("iu", 3, "integer (n, C, C)")
_PAIR, _MAYBE, _BASE = Column("f", 2, "float (n, T)"), _FLOAT._replace(required=False), {"id": _TEXT, "group": _TEXT}
TASKS: dict[str, Schema] = {
    "classification": Schema(
        _BASE | {"target": _INT, "prob": _PROB},
        ("accuracy", "balanced_accuracy", "macro_f1", "nll", "auroc"),
        "balanced_accuracy",
        _classification,
        lower=("nll",),
    ),
    "segmentation": Schema(
        _BASE | {"counts": _COUNTS}, ("miou", "miou_sample", "dice", "accuracy"), "miou", _segmentation
    ),
    "completion": Schema(
        _BASE | {"cd_l1": _FLOAT, "cd_l2": _FLOAT, "emd": _MAYBE, "cloud": _TEXT},
        ("cd_l1", "cd_l2", "emd"),
        "cd_l1",
        _completion,
        lower=("cd_l1", "cd_l2", "emd"),
    ),
    "next_item": Schema(
        _BASE | {"rank": _INT, "ties": _INT, "candidates": _INT},
        ("hr", "ndcg", "mrr"),
        "ndcg@10",
        _next_item,
        options={"topk": (10, 20, 50)},
    ),
    "language_model": Schema(
        _BASE | {"nll": _FLOAT, "tokens": _INT},
        ("nll", "perplexity", "bits_per_token"),
        "nll",
        _language_model,
        lower=("nll", "perplexity", "bits_per_token"),
    ),
    "property": Schema(
        _BASE | {"target": _PAIR, "value": _PAIR},
        ("rmse", "mae", "r2", "spearman", "auroc", "average_precision"),
        "rmse",
        _property,
        lower=("rmse", "mae"),
        options={"kind": "regression"},
    ),
}
