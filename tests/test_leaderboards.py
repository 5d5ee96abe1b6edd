"""Records and boards: every committed record recomputes, boards never mix what is not comparable, ties are shown."""

import json
import re
import shutil

import numpy as np
import pytest
from statezoo.leaderboards import board
from statezoo.leaderboards.commands import run_action
from statezoo.leaderboards.schema import LARGEST_PREDICTIONS, Record
from statezoo.zoo import metrics
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import hash_file, read_json, write_json
from statezoo.zoo.train.rows import load_rows, save_rows
from statezoo.zoo.train.run import train

COMMITTED = board.find_records()


def test_there_are_committed_records():
    assert len(COMMITTED) >= 80


@pytest.mark.parametrize("found", COMMITTED, ids=lambda found: found.path.stem)
def test_committed_record(found):
    """Its name is its content's hash, its place its benchmark and model, its rows give its metrics, nothing is raw."""
    record = found.record
    assert found.path.stem == record.id
    assert found.path.parts[-3:-1] == (record.benchmark.name, record.model.name)
    assert not record.benchmark.sample and record.code.commit and record.code.dirty is not True
    if record.predictions.bytes > LARGEST_PREDICTIONS:  # known by their hash alone
        assert found.predictions is None and len(record.predictions.sha256) == 64
        return
    assert found.predictions is not None and found.predictions.stat().st_size <= LARGEST_PREDICTIONS
    board.verify(found)
    rows = load_rows(found.predictions)
    assert set(rows) <= {"id", "group", *metrics.TASKS[record.benchmark.task].columns}
    if record.benchmark.task == "next_item":
        assert all(len(name) == 16 and int(name, 16) >= 0 for name in rows["id"]), "user ids are hashed"


def test_committed_predictions_are_small_in_all():
    assert sum(one.predictions.stat().st_size for one in COMMITTED if one.predictions) < 50e6


def test_five_seeds_and_both_splits():
    boards = board.boards(COMMITTED)
    for dataset in ("ml-100k", "movietweetings"):
        for split in ("leave-two-out", "global-time"):
            (one,) = [b for b in boards if b.name == f"{dataset}-next_item@{split}"]
            assert {row.model for row in one.rows} >= {"sasrec", "gru4rec", "popularity", "item-knn"}
            assert all(row.seeds == (0, 1, 2, 3, 4) for row in one.rows)
            assert all(row.interval[one.primary] for row in one.rows)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("ml-100k-next_item@leave-two-out", ["ml-100k-next_item@leave-two-out"]),  # its -float32 holds it, too
        ("anatomy-bones-classification@fold1-5", ["anatomy-bones-classification@fold1-5"]),  # as does its /turned
        ("bones-completion", ["anatomy-bones-completion@fold1-5"]),
        ("fold1/turned", ["anatomy-bones-classification@fold1/turned"]),
    ],
)
def test_a_name_computes_its_boards_alone(wanted, names, monkeypatch):
    computed, make = [], board._row
    monkeypatch.setattr(board, "_row", lambda seeds, view: computed.append(seeds) or make(seeds, view))
    boards = run_action(wanted, runs=False)[0]["boards"]
    assert [one["name"] for one in boards] == names
    assert len(computed) == sum(len(one["rows"]) for one in boards)


def test_an_unknown_name_computes_nothing(monkeypatch):
    monkeypatch.setattr(board, "_row", None)
    for check in (False, True):
        with pytest.raises(ZooError, match="unknown benchmark 'ml-100k-nextitem@global-time'; did you mean 'ml-100k-n"):
            run_action("ml-100k-nextitem@global-time", runs=False, check=check)


def test_a_name_verifies_its_records_alone():
    shown = run_action("anatomy-bones-classification@fold1-5", runs=False, check=True)[1]
    count = sum(one.record.benchmark.name.startswith("anatomy-bones-classification@fold") for one in COMMITTED)
    of = next(int(found[1]) for line in shown if (found := re.match(r"\d+ of (\d+) records have their rows", line)))
    assert 0 < of < count < len(COMMITTED), "not those of the board of one fold"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a network and a fitted model on the sample."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, recipe, overrides in (
        ("pop", "popularity/ml-100k", []),
        ("gru0", "gru4rec/ml-100k", ["train.epochs=2"]),
        ("gru1", "gru4rec/ml-100k", ["train.epochs=2", "seed=1"]),
    ):
        made[name] = train(recipe, ["train.logger=null", *overrides], sample=True, folder=folder / name, quiet=True)
    return made


def found(run):
    return board.Found(board.read_record(run / "record.json"), run / "record.json")


def test_seeds_of_one_recipe_make_one_row(runs):
    (one,) = board.boards([found(run) for run in runs.values()])
    assert one.sample and {row.model: row.seeds for row in one.rows} == {"popularity": (0,), "gru4rec": (0, 1)}
    gru = next(row for row in one.rows if row.model == "gru4rec")
    values = [read_json(runs[name] / "record.json")["metrics"]["ndcg@10"]["value"] for name in ("gru0", "gru1")]
    assert gru.value["ndcg@10"] == pytest.approx(np.mean(values))
    low, high = gru.interval["ndcg@10"]
    assert low < np.mean(values) < high


def test_a_setting_that_came_later_and_is_off_splits_no_row(runs):
    record = found(runs["gru0"]).record
    train = record.recipe.scientific["train"]

    def entry(**settings):
        scientific = record.recipe.scientific | {"train": train | settings}
        return record.model_copy(update={"recipe": record.recipe.model_copy(update={"scientific": scientific})}).entry()

    assert entry(later=False) == entry(later=None) == record.entry() != entry(later=0)


def test_recipes_of_one_model_are_told_apart(runs, tmp_path):
    changed = read_json(runs["gru0"] / "record.json")
    changed["recipe"]["scientific"]["train"] |= {"epochs": 3, "clip": 1.0, "patience": False}
    write_json(tmp_path / "record.json", changed)
    shutil.copy(runs["gru0"] / "predictions.npz", tmp_path)
    (one,) = board.boards([found(tmp_path), *(found(run) for run in runs.values())])
    labels = {row.label for row in one.rows}
    assert labels == {
        "popularity", "gru4rec (train.clip=null train.epochs=2)", "gru4rec (train.clip=1.0 train.epochs=3)",
    }  # fmt: skip
    assert labels == {line[1] for line in board.table(one)[1:-1]}


def test_hierarchical_interval_holds_both_sources(runs):
    """One seed taken twice has no spread between seeds; two seeds have at least as much in all."""
    one = (found(runs["gru0"]),)
    draws = board.hierarchical((one, one))[0]["draws"]
    alone = metrics.replicates("next_item", load_rows(runs["gru0"] / "predictions.npz"), resamples=1000)[1]
    assert np.allclose(draws, alone)


def test_ties_are_separated_by_paired_differences(runs, tmp_path):
    """A model that is better on every user is separated though the intervals overlap; a copy of the best is tied."""
    rows = load_rows(runs["gru0"] / "predictions.npz")
    better = {**rows, "rank": np.maximum(1, rows["rank"] - 1), "ties": np.zeros_like(rows["ties"])}
    record = read_json(runs["gru0"] / "record.json")
    made = [found(runs["gru0"])]
    for name, columns in (("better", better), ("copy", better)):
        (tmp_path / name).mkdir()
        save_rows(tmp_path / name / "predictions.npz", columns)
        values = metrics.compute("next_item", columns)
        changed = json.loads(json.dumps(record))
        changed["model"]["name"] = name
        changed["predictions"]["sha256"] = hash_file(tmp_path / name / "predictions.npz")
        for metric, value in values.items():
            changed["metrics"][metric]["value"] = value
        write_json(tmp_path / name / "record.json", changed)
        made.append(found(tmp_path / name))
    (one,) = board.boards(made)
    assert {row.model: row.rank for row in one.rows} == {"better": 1, "copy": 1, "gru4rec": 3}
    best, worst = one.rows[0], one.rows[-1]
    assert worst.interval["ndcg@10"][1] > best.interval["ndcg@10"][0], "the intervals themselves overlap"


def test_records_of_other_protocols_never_share_a_board(runs):
    record = board.read_record(runs["pop"] / "record.json")
    data = record.model_dump()
    data["benchmark"]["protocol"]["mask_history"] = True
    assert Record.model_validate(data).board() != record.board()
    data = record.model_dump()
    data["data"]["split_sha256"] = ["0" * 64]
    assert Record.model_validate(data).board() != record.board()


def test_a_changed_record_or_row_is_found(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs["pop"], copy)
    record = read_json(copy / "record.json")
    record["metrics"]["hr@10"]["value"] += 0.01
    write_json(copy / "record.json", record)
    with pytest.raises(ZooError, match="the record is wrong"):
        board.verify(found(copy))
    save_rows(copy / "predictions.npz", {**load_rows(copy / "predictions.npz"), "rank": np.ones(400, int)})
    assert found(copy).predictions is None


def test_records_are_strict(runs, tmp_path):
    record = read_json(runs["pop"] / "record.json")
    write_json(tmp_path / "record.json", record | {"extra": 1})
    with pytest.raises(ZooError, match="extra"):
        board.read_record(tmp_path / "record.json")


def test_samples_cannot_be_added(runs):
    with pytest.raises(ZooError, match="synthetic sample"):
        board.add(runs["pop"])


# folds and slices -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A fitted model on two folds of the sample, and one on the first alone under another seed."""
    folder, made = tmp_path_factory.mktemp("folds"), []
    for n, (fold, seed) in enumerate((("fold1", 0), ("fold2", 0), ("fold1", 1))):
        overrides = ["train.logger=null", f"data.split={fold}", f"seed={seed}"]
        run = train("distance-knn/anatomy-bones", overrides, sample=True, folder=folder / str(n), quiet=True)
        made.append(found(run))
    return made


def test_folds_of_one_recipe_and_seed_are_pooled(folds):
    boards = {b.name: b for b in board.boards(folds)}
    name = "anatomy-bones-classification"
    assert set(boards) == {f"{name}@{folds}{view}" for folds in ("fold1-2", "fold1") for view in ("", "/turned")}
    for view in ("", "turned"):
        pooled = boards[f"{name}@fold1-2/{view}".removesuffix("/")]
        parts = [load_rows(one.predictions, view) for one in folds[:2]]
        rows = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
        (row,) = pooled.rows
        assert (row.seeds, row.recipe, pooled.n_test) == ((0,), "distance-knn/anatomy-bones", len(rows["id"]))
        assert row.value == pytest.approx(metrics.compute("classification", rows))
        low, high = row.interval[pooled.primary]
        assert low < row.value[pooled.primary] < high
    sizes, floors = ([one.record.data.n["test"] for one in folds[:2]], [one.record.floor["nll"] for one in folds[:2]])
    assert boards[f"{name}@fold1-2"].floor["nll"] == pytest.approx(np.average(floors, weights=sizes))
    assert boards[f"{name}@fold1"].rows[0].seeds == (1,)


def test_names_of_boards_of_folds(folds):
    def renamed(fold):
        benchmark = folds[0].record.benchmark.model_copy(update={"split": fold})
        return folds[0].record.model_copy(update={"benchmark": benchmark})

    assert board._name([renamed("fold1"), renamed("fold3")], "turned").endswith("@fold1+fold3/turned")
    assert renamed("official").fold is None and renamed("fold12").fold == "fold12"


def test_slices_are_verified_too(folds, tmp_path):
    board.verify(folds[0])
    shutil.copytree(folds[0].path.parent, tmp_path / "run")
    record = read_json(tmp_path / "run" / "record.json")
    record["slices"]["turned"]["accuracy"]["value"] -= 0.01
    write_json(tmp_path / "run" / "record.json", record)
    with pytest.raises(ZooError, match="turned accuracy is .* the record is wrong"):
        board.verify(found(tmp_path / "run"))


# records made of committed ones ---------------------------------------------------------------------------------------

KNN = next(one for one in COMMITTED if one.path.parts[-3:-1] == ("anatomy-bones-classification@fold1", "distance-knn"))
POPULARITY = next(
    one for one in COMMITTED if one.path.parts[-3:-1] == ("ml-100k-next_item@leave-two-out", "popularity")
)


def put(data, changes):
    """The same JSON with other values at `a.b.c`; `...` takes a key away."""
    data = json.loads(json.dumps(data))
    for place, value in changes.items():
        *way, last = place.split("/")
        at = data
        for name in way:
            at = at[name]
        at.pop(last) if value is ... else at.update({last: value})
    return data


def laid(folder, found=POPULARITY, rows=True, **changes):
    """A record with changes in a folder of its own, its rows beside it."""
    folder.mkdir(parents=True)
    write_json(folder / "record.json", put(found.record.model_dump(), changes))
    if rows:
        shutil.copy(found.predictions, folder / "predictions.npz")
    return board.Found(board.read_record(folder / "record.json"), folder / "record.json")


def test_rows_in_any_order_of_columns_are_the_same_bytes(tmp_path):
    rows = load_rows(KNN.predictions)
    for name, columns in (("one", rows), ("other", dict(reversed(rows.items())))):
        save_rows(tmp_path / name, columns)
    assert list(rows) != list(reversed(rows)) and hash_file(tmp_path / "one") == hash_file(tmp_path / "other")


def test_the_floor_of_folds_weighs_them_by_their_test_samples():
    def fold(test, **floor):
        data = KNN.record.data.model_copy(update={"n": {"train": 50, "test": test}})
        return KNN.record.model_copy(update={"data": data, "floor": floor})

    folds = [fold(1, accuracy=0.0, nll=None), fold(3, accuracy=1.0, nll=2.0)]
    assert board._floor(folds) == {"accuracy": 0.75, "nll": None}


@pytest.mark.parametrize(("off", "right"), [(5e-10, True), (2e-9, False), (-2e-9, False)])
def test_a_stated_value_is_that_of_the_rows_to_a_billionth(off, right, tmp_path):
    value = POPULARITY.record.metrics["hr@10"].value
    one = laid(tmp_path / "run", **{"metrics/hr@10/value": value + off})
    if right:
        board.verify(one)
    else:
        with pytest.raises(ZooError, match=r"hr@10 is .* in the record and .* by its rows; the record is wrong"):
            board.verify(one)


@pytest.mark.parametrize(
    ("found", "changes", "told"),
    [
        (POPULARITY, {"metrics/hr@10/value": None}, r"hr@10 is None in the record and 0\."),
        (POPULARITY, {"metrics/hr@7": {"value": 0.1, "low": None, "high": None, "better": "higher"}},
         r"hr@7 is 0\.1 in the record and None by its rows"),
        (KNN, {"slices/upright": KNN.record.model_dump()["slices"]["turned"]},
         r"upright accuracy is 0\.\d+ in the record and None by its rows"),
    ],
    ids=["undefined in the record", "not of the rows", "a view without rows"],
)  # fmt: skip
def test_what_is_defined_in_one_alone_is_wrong(found, changes, told, tmp_path):
    with pytest.raises(ZooError, match=told):
        board.verify(laid(tmp_path / "run", found, **changes))


@pytest.mark.parametrize("newer", [0, 1])
def test_of_two_runs_of_one_recipe_seed_and_fold_the_newer_stands(newer, tmp_path):
    times = ["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"]
    both = [laid(tmp_path / str(n), created=times[n == newer]) for n in range(2)]
    (plan,) = board.plans(both)
    assert plan.found == [both[newer]]


def test_seeds_of_other_folds_never_share_a_board(tmp_path):
    """Two seeds over folds 1 and 2, one over 1 and 3: one board of two rows would pool other rows for each."""

    def run(fold, seed, model="distance-knn"):
        changes = {"benchmark/split": f"fold{fold}", "recipe/scientific/data/split": f"fold{fold}"}
        changes |= {"data/split_sha256": [str(fold) * 64], "seed": seed, "model/name": model}
        return laid(tmp_path / f"{model}{fold}{seed}", KNN, slices={}, **changes)

    made = [run(1, 0), run(2, 0), run(1, 1), run(2, 1), run(1, 0, "other"), run(3, 0, "other")]
    planned = {plan.name.partition("@")[2]: plan.rows for plan in board.plans(made)}
    assert planned == {"fold1-2": [[(made[0], made[1]), (made[2], made[3])]], "fold1+fold3": [[(made[4], made[5])]]}
    assert {plan.name for plan in board.plans(made[::-1])} == {plan.name for plan in board.plans(made)}


def test_a_view_is_of_the_rows_of_which_every_record_has_it(tmp_path):
    full, bare = laid(tmp_path / "full", KNN), laid(tmp_path / "bare", KNN, seed=1, slices={})
    other = laid(tmp_path / "other", KNN, **{"model/name": "other"})
    planned = {plan.view: {one.path for one in plan.found} for plan in board.plans([full, bare, other])}
    assert planned == {"": {full.path, bare.path, other.path}, "turned": {other.path}}


@pytest.mark.parametrize(("found", "best"), [(POPULARITY, "high"), (KNN, "high"), ("bones-completion", "low")])
def test_rows_stand_best_first_the_undefined_last_and_equals_by_name(found, best, tmp_path):
    if isinstance(found, str):
        found = next(one for one in COMMITTED if found in one.path.parts[-3])
    primary = found.record.primary
    stated = {"z-undefined": None, "a-undefined": None, "b": 0.2, "a": 0.2, "low": 0.0, "high": 0.3}
    (one,) = board.boards(
        laid(tmp_path / name, found, rows=False, slices={},
             **{"model/name": name, f"metrics/{primary}/value": value})
        for name, value in stated.items()
    )  # fmt: skip
    order = ["high", "a", "b", "low"] if best == "high" else ["low", "a", "b", "high"]
    assert [row.model for row in one.rows] == [*order, "a-undefined", "z-undefined"]
    assert {row.rank for row in one.rows} == {None} and {row.interval[primary] for row in one.rows} == {None}


def row_of(name, value, draws):
    return board.Row(name, name, (0,), {"m": value}, {"m": None}, (), {"m": np.asarray(draws, float)})


def test_a_row_is_ahead_where_the_whole_interval_of_the_difference_is_on_its_side():
    base = np.zeros(1000)
    edge = np.where(np.arange(1000) < 40, -1.0, 1.0)  # 4 % of the replicates say the contrary, 1 % here:
    clear = np.where(np.arange(1000) < 10, -1.0, 1.0)
    rows = [row_of("base", 0, base), row_of("edge", 0.9, edge), row_of("clear", 0.98, clear)]
    assert [board._rank(row, rows, "m", lower=False) for row in rows] == [2, 1, 1]
    assert [board._rank(row, rows, "m", lower=True) for row in rows] == [1, 1, 2]
    without = [*rows, row_of("without rows", 0.5, base)]
    object.__setattr__(without[-1], "draws", {})
    assert {board._rank(row, without, "m", lower=False) for row in without} == {None}


def test_a_replicate_is_the_mean_over_as_many_drawn_seeds_as_there_are(tmp_path):
    """Seed 0 ranks every target first, seed 1 none: the mean of two seeds drawn is 0, 1/2 or 1."""
    made = []
    for seed, rank in enumerate((1, 400)):
        rows = load_rows(POPULARITY.predictions)
        rows |= {"rank": np.full_like(rows["rank"], rank), "ties": np.zeros_like(rows["ties"])}
        one = laid(tmp_path / str(seed), rows=False, seed=seed)
        save_rows(tmp_path / str(seed) / "predictions.npz", rows)
        sha256 = hash_file(tmp_path / str(seed) / "predictions.npz")
        predictions = one.record.predictions.model_copy(update={"sha256": sha256})
        made.append((board.Found(one.record.model_copy(update={"predictions": predictions}), one.path),))
    arrays, facts = board.hierarchical(tuple(made))
    at = facts["names"].index("hr@10")
    values, counts = np.unique(arrays["draws"][:, at], return_counts=True)
    assert values.tolist() == [0, 0.5, 1] and arrays["value"][at] == 0.5
    assert np.allclose(counts / counts.sum(), [0.25, 0.5, 0.25], atol=0.05)


def test_a_metric_that_some_replicate_leaves_undefined_has_no_bounds_and_zero_is_a_value():
    assert board._bounds(np.array([0.5, np.nan, 0.7])) is None
    assert board._bounds(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))
    assert board._cell(0.0, (0.0, 0.25)) == "0.0000 [0.0000, 0.2500]"
    assert board._cell(None, None) == "undefined" and board._cell(0.5, None) == "0.5000"


def test_a_seed_without_its_rows_leaves_the_row_without_an_interval(tmp_path):
    some = [laid(tmp_path / str(seed), seed=seed, rows=seed == 0) for seed in range(2)]
    (one,) = board.boards(some)
    (row,) = one.rows
    assert row.seeds == (0, 1) and set(row.interval.values()) == {None} and row.rank is None and not row.draws
    assert row.value["hr@10"] == POPULARITY.record.metrics["hr@10"].value


def test_folds_without_their_rows_have_no_value(tmp_path):
    """A metric of several folds is that of their pooled rows, never a mean of what the folds state."""
    pair = [
        laid(tmp_path / split, KNN, rows=False, slices={},
             **{"benchmark/split": split, "recipe/scientific/data/split": split, "data/n/test": n})
        for split, n in (("fold1", 73), ("fold2", 5))
    ]  # fmt: skip
    (one,) = board.boards(pair)
    assert set(one.rows[0].value.values()) == {None} and one.n_test == 78
    header, line = board.table(one)[:2]
    assert header == ["rank", "model", "seeds", "balanced_accuracy", "accuracy", "macro_f1", "nll"]
    assert line == ["-", "distance-knn", "1", *["undefined"] * 4]


def test_boards_of_the_sample_stand_behind_all_others(tmp_path):
    sample = laid(tmp_path / "sample", KNN, rows=False, slices={}, **{"benchmark/sample": True})
    real = laid(tmp_path / "real", rows=False)
    assert [(one.sample, one.name[:5]) for one in board.boards([sample, real])] == [(False, "ml-10"), (True, "anato")]


@pytest.mark.parametrize(
    ("changes", "rows", "told"),
    [
        ({}, None, "predictions.npz is missing or is not what the record says"),
        ({}, "other", "predictions.npz is missing or is not what the record says"),
        ({"metrics/hr@10/value": 0.5}, "own", "hr@10 is 0.5 in the record"),
    ],
    ids=["no rows", "other rows", "wrong"],
)
def test_what_does_not_verify_is_not_added(changes, rows, told, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "RECORDS", tmp_path / "records")
    laid(tmp_path / "run", rows=rows == "own", **changes)
    if rows == "other":
        shutil.copy(KNN.predictions, tmp_path / "run" / "predictions.npz")
    with pytest.raises(ZooError, match=told):
        board.add(tmp_path / "run")
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("more", [0, 1])
def test_rows_are_added_up_to_the_largest_size(more, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(board, "LARGEST_PREDICTIONS", POPULARITY.record.predictions.bytes - more)
    laid(tmp_path / "run")
    added = board.add(tmp_path / "run")
    assert added == tmp_path / "records" / POPULARITY.path.relative_to(board.ROOT / "leaderboards" / "records")
    assert added.with_suffix(".npz").is_file() == (not more) and board.read_record(added) == POPULARITY.record


SETTINGS = "recipe/scientific"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"seed": "3"}, "seed: Input should be a valid integer"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"metrics/accuracy/value": "0.5"}, "metrics.accuracy.value: Input should be a valid number"),
        ({"data/split_sha256": []}, "data.split_sha256: List should have at least 1 item"),
        ({"data/manifest_sha256": "0" * 63}, "data.manifest_sha256: String should match pattern"),
        ({"data/n/test": ...}, "data.n states no test part"),
        ({f"{SETTINGS}/data": ...}, "recipe.scientific states no model or data"),
        ({"metrics/balanced_accuracy": ...}, "metrics holds no balanced_accuracy, which is primary"),
        ({"slices/turned/balanced_accuracy": ...}, "turned holds no balanced_accuracy, which is primary"),
        ({"primary": "accuracy"}, "primary is accuracy, and balanced_accuracy of its task"),
        ({"metrics/nll/better": "higher"}, "nll is better lower, not higher"),
        ({"slices/turned/nll/better": "higher"}, "nll is better lower, not higher"),
        ({"slices/turned/acuracy": {"value": 0.5, "low": None, "high": None, "better": "higher"}},
         "unknown metric 'acuracy'; did you mean 'accuracy'"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_hang_together_is_refused(changes, told, tmp_path):
    laid(tmp_path / "whole", KNN)
    with pytest.raises(ZooError, match=re.escape(told)):
        laid(tmp_path / "run", KNN, **changes)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_no_record_is_made_with_a_number_that_is_none(number):
    with pytest.raises(ValueError, match="finite number"):
        Record.model_validate(put(KNN.record.model_dump(), {"metrics/accuracy/value": number}))


def test_folds_share_a_row_where_data_recipe_and_code_are_the_same():
    def record(**changes):
        split = {"benchmark/split": "fold2", f"{SETTINGS}/data/split": "fold2", "data/split_sha256": ["1" * 64]}
        return Record.model_validate(put(KNN.record.model_dump(), split | changes))

    one, other = KNN.record, record()
    assert (one.board(), one.entry()) == (other.board(), other.entry())
    assert one.recipe.id.endswith("@fold1") and board._recipe(one) == "distance-knn/anatomy-bones"
    assert one.board() != record(**{"data/manifest_sha256": "0" * 64}).board()
    assert one.entry() != record(**{"recipe/code": {"model": "0" * 64}}).entry()
    assert one.entry() != record(**{f"{SETTINGS}/model/neighbours": 7}).entry()
    assert len(one.id) == 16
