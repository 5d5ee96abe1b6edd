"""A few steps of training for every model, and for every task of every data set."""

import re

import pytest
from statezoo.zoo.contracts import distinct_models, sample_for
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import read_json
from statezoo.zoo.registry import entries
from statezoo.zoo.train.run import train

SHORT = ["train.max_steps=3", "train.logger=null"]
ADAPTERS = [(key, task) for key, entry in entries("dataset").items() for task in entry.load().tasks]


def finished(recipe, folder, *overrides):
    run = train(recipe, [*SHORT, *overrides], sample=True, folder=folder, quiet=True)
    record = read_json(run / "record.json")
    assert record["benchmark"]["sample"] is True
    assert record["metrics"][record["primary"]]["value"] is not None
    assert set(record["floor"]) == set(record["metrics"])
    return record


@pytest.mark.parametrize("model", distinct_models())
def test_every_model_trains(model, tmp_path):
    data = sample_for(entries("model")[model].load())
    source = f"{data.key}-{data.task}" if data.by_task else data.key
    try:
        record = finished(f"{model}/{source}", tmp_path / "run")
    except ZooError as error:  # a model that is not causal says what it needs, and that does it
        (remedy,) = re.findall(r"set (data\.\S+)$", str(error))
        record = finished(f"{model}/{source}", tmp_path / "again", remedy)
    assert record["model"]["name"] == model and record["model"]["parameters"] > 0


def serves(model, kind, task):
    return kind in model.accepts and (not model.serves or task in model.serves)


def test_a_model_for_another_task_is_refused(tmp_path):
    with pytest.raises(ZooError, match=r"is made for segmentation, not for classification; .*medpoints-segmentation"):
        finished("point_ssm_seg/medpoints", tmp_path / "run")


@pytest.mark.parametrize(("dataset", "task"), ADAPTERS)
def test_every_task_of_every_data_set_trains(dataset, task, tmp_path):
    adapter = entries("dataset")[dataset].load()
    kind = adapter.sample(**({"subset": dataset.partition(":")[2]} if ":" in dataset else {})).prepare().inputs.kind
    model = next((key for key, entry in entries("model").items() if serves(entry.load(), kind, task)), None)
    assert model, f"no model takes {kind} for {task}"
    record = finished(f"{model}/{dataset}-{task}", tmp_path / "run")
    assert (record["benchmark"]["dataset"], record["benchmark"]["task"]) == (dataset, task)
