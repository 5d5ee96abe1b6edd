"""Logs that predict reads otherwise than training did, and users that nothing can be recommended to."""

import numpy as np
import pandas as pd
import pytest
from statezoo.zoo.api import create_dataset, open_run
from statezoo.zoo.cli import main
from statezoo.zoo.data.log_sample import generate
from statezoo.zoo.errors import ZooError
from statezoo.zoo.train.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on samples: of any log, of a format of its own, and with float32 times."""
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe, words in (
        ("log", "popularity/log", []),
        ("ml-100k", "popularity/ml-100k", []),
        ("float32", "popularity/log", ["data.timestamps=float32"]),
    ):
        train(recipe, ["train.logger=null", *words], sample=True, quiet=True, folder=folder / name)
    return folder


def events():
    user, item, _, time = generate(3, users=12)
    return pd.DataFrame({"user": user, "item": item, "time": time})


def batch_of(run, source, folder, **changes):
    """The inputs that a run sees of a log that is read with changes, for all users."""
    reader, file = run._reader(source, changes, folder)
    part = reader.inference(file, run.folder / "prep")
    return part.batch(np.arange(len(part)))


@pytest.mark.parametrize("name", ["log", "ml-100k"])
def test_repeated_rows_may_be_dropped_in_a_file_to_predict_for(name, runs, tmp_path, capsys):
    twice, names = pd.concat([events(), events().iloc[:3]]), ["data.name=log"] if name != "log" else []
    twice.to_csv(tmp_path / "twice.csv", index=False)
    command = ["predict", str(runs / name), str(tmp_path / "twice.csv"), "--out", str(tmp_path / "o.parquet"), *names]
    assert main(command) == 2
    assert "data.duplicates=drop" in capsys.readouterr().err
    assert main([*command, "data.duplicates=drop"]) == 0
    run = open_run(runs / name)
    plain = run.predict(events())
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "o.parquet").astype({"id": str}), plain.astype({"id": str})
    )
    for source in (twice, tmp_path / "twice.csv"):
        changes = {"duplicates": "drop"} | ({"name": "log"} if name != "log" else {})
        found = run.predict(source, data=changes)
        assert found.attrs["counts"]["duplicates_dropped"] == 3
        pd.testing.assert_frame_equal(found, plain)


def test_a_format_of_its_own_may_hold_repeated_rows_too(runs, tmp_path):
    create_dataset("ml-100k").write_file(tmp_path / "own", generate(3, users=4))
    (tmp_path / "own").write_text((text := (tmp_path / "own").read_text()) + text)
    run = open_run(runs / "ml-100k")
    with pytest.raises(ZooError, match="data.duplicates=drop"):
        run.predict(tmp_path / "own")
    assert run.predict(tmp_path / "own", data={"duplicates": "drop"}).attrs["counts"]["duplicates_dropped"] > 0


def test_rounding_may_be_changed_and_is_that_of_training_where_it_is_not(runs, tmp_path):
    exact, rounded = events(), events().assign(time=events()["time"].astype(np.float32).astype(np.int64))
    rounded = rounded.drop_duplicates()
    for name, changes, expected in (
        ("log", {}, False), ("log", {"timestamps": "float32"}, True),
        ("float32", {}, True), ("float32", {"timestamps": "exact"}, False),
        ("float32", {"time_zone": "UTC"}, True),
    ):  # fmt: skip
        times = batch_of(open_run(runs / name), exact, tmp_path, **changes)["times"]
        assert np.array_equal(times, times.astype(np.float32)) == expected, (name, changes)


@pytest.mark.parametrize(("unit", "factor"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_times_are_rounded_in_the_unit_of_the_run(unit, factor, runs, tmp_path):
    """A run on float32 seconds sees the same log in a finer unit bit for bit, order included."""
    close = np.random.default_rng(1).integers(0, 3000, len(events()))  # float32 is 128 s wide there
    frame = events().assign(time=1_600_000_000 + close).drop_duplicates()
    run = open_run(runs / "float32")
    seconds = batch_of(run, frame, tmp_path)
    finer = batch_of(run, frame.assign(time=frame["time"] * factor), tmp_path, time_unit=unit)
    for name, array in seconds.items():
        assert np.array_equal(array, finer[name]), name


def test_moments_within_a_unit_of_the_run_keep_their_order_and_are_no_repeats(runs, tmp_path):
    run = open_run(runs / "log")
    first, second = run.spec.inputs.vocabulary[:2]
    frame = pd.DataFrame(
        {"user": 1, "item": [first, second, first], "time": [1600000000900, 1600000000500, 1600000000100]}
    )
    batch = batch_of(run, frame, tmp_path, time_unit="ms")
    assert batch["items"][0, :3].tolist() == [1, 2, 1] and set(batch["times"][0, :3]) == {1600000000}
