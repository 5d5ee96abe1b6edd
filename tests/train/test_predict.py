"""Serving: users never seen, by the run's own item list; one event at a time where the weights allow it."""

import numpy as np
import pandas as pd
import pytest
import torch
from statezoo.zoo.api import load
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.files import read_json

NEW = "user,item,rating,time\n"


def test_new_users_are_served_and_unknown_items_said(tmp_path, capsys):
    quick = ["train.max_steps=3", "train.logger=null"]
    assert (
        main(["train", "tim4rec/log", "model.time_track=none", "--sample", *quick, "--folder", str(tmp_path / "run")])
        == 0
    )
    names = read_json(tmp_path / "run" / "prep" / "spec.json")["inputs"]["vocabulary"]
    events = [("ann", names[3], 100), ("ann", "nowhere", 150), ("ben", names[5], 90), ("ann", names[8], 200)]
    events += [("ben", names[1], 40), ("cat", "elsewhere", 10)]
    (tmp_path / "new.csv").write_text(NEW + "".join(f"{user},{item},5,{time}\n" for user, item, time in events))
    capsys.readouterr()
    command = ["predict", str(tmp_path / "run"), "--log", str(tmp_path / "new.csv"), "--top", "20"]
    assert main([*command, "--out", str(tmp_path / "top.csv")]) == 0
    printed = capsys.readouterr().out
    assert "2 events of unknown items left out" in printed and "2 samples" in printed
    table = pd.read_csv(tmp_path / "top.csv", dtype={"item": str})
    assert table["id"].tolist()[-1] == "cat" and "no item of this user is known" in table["reason"].tolist()[-1]
    table = table[table["id"] != "cat"]
    assert table.groupby("id")["rank"].apply(list).to_dict() == {name: list(range(1, 21)) for name in ("ann", "ben")}
    assert set(table["item"]) <= set(names)
    model = load(tmp_path / "run").eval()
    for user, history in {"ann": (3, 8), "ben": (1, 5)}.items():  # in the order of time
        states = model.init_states(1)
        with torch.no_grad():
            for place in history:
                features, states = model.step(torch.tensor([place + 1]), torch.tensor([0]), states)
            scores = model.forward_head(features)[0, 1:]
        best = scores.topk(20)
        served = table[table["id"] == user]
        assert served["item"].tolist() == [names[place] for place in best.indices.tolist()]
        assert np.allclose(served["score"], best.values.numpy(), atol=1e-5)


def test_models_that_are_bound_to_the_window_refuse_to_step(tmp_path):
    quick = ["train.max_steps=1", "train.logger=null"]
    assert main(["train", "tim4rec/log", "--sample", *quick, "--folder", str(tmp_path / "run")]) == 0
    model = load(tmp_path / "run")
    with pytest.raises(ZooError, match="bound to places in a window; predict from the whole history"):
        model.init_states(1)
