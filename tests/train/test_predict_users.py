"""Predicting for users: none is dropped without a word, what they have seen may be hidden, few items give few lines."""

import numpy as np
import pandas as pd
import pytest
from statezoo.zoo.api import create_dataset, open_run
from statezoo.zoo.cli import main
from statezoo.zoo.errors import ZooError
from statezoo.zoo.train.run import train

HEAD = "user,item,rating,time\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("popularity/log", ["train.logger=null"], sample=True, quiet=True, folder=tmp_path_factory.mktemp("p"))


@pytest.fixture
def new(run, tmp_path):
    """Ann has seen all items but three, Ben one, Cat and Dan none that is known."""
    items = open_run(run).spec.inputs.vocabulary
    rows = [("ann", item, n) for n, item in enumerate(items[:-3])]
    rows += [("ben", items[0], 5), ("cat", "elsewhere", 7), ("dan", "nowhere", 8), ("ben", "nowhere", 9)]
    (tmp_path / "new.csv").write_text(HEAD + "".join(f"{user},{item},5,{time}\n" for user, item, time in rows))
    return tmp_path / "new.csv"


def test_users_that_cannot_be_served_are_listed_with_the_reason(run, new, capsys):
    out = new.with_name("top.csv")
    assert main(["predict", str(run), str(new), "--top", "4", "--out", str(out)]) == 0
    assert "3 events of unknown items left out" in capsys.readouterr().out
    table = pd.read_csv(out, dtype={"item": str, "reason": str}, keep_default_na=False)
    assert table["id"].tolist() == ["ann"] * 4 + ["ben"] * 4 + ["cat", "dan"]
    last = table.tail(2)
    assert set(last["reason"]) == {"no item of this user is known to the model"}
    assert last[["rank", "item", "score"]].eq("").all(None) and table.head(8)["reason"].eq("").all()
    again = open_run(run).predict(new, top=4)
    assert again["rank"].tolist() == [1, 2, 3, 4] * 2 + [pd.NA] * 2 and again["item"].isna().sum() == 2
    parquet = new.with_name("top.parquet")
    open_run(run).predict(new, top=4, out=parquet)
    assert pd.read_parquet(parquet)["item"].tolist()[:8] == table["item"].tolist()[:8]


def test_the_fallback_gives_them_the_most_popular_items(run, new):
    opened = open_run(run)
    table = opened.predict(new, top=3, fallback="popularity")
    order = np.argsort(-np.array(opened.spec.inputs.counts), kind="stable")[:3]
    popular = [opened.spec.inputs.vocabulary[i] for i in order]
    for user in ("cat", "dan"):
        rows = table[table["id"] == user]
        assert rows["item"].tolist() == popular and rows["rank"].tolist() == [1, 2, 3]
        assert rows["reason"].str.contains("no item of this user is known").all()
    with pytest.raises(ZooError, match="fallback 'most': give none or popularity"):
        opened.predict(new, fallback="most")


def test_seen_items_are_hidden_on_request_and_little_is_left(run, new):
    table = open_run(run).predict(new, top=10, hide_seen=True)
    items = open_run(run).spec.inputs.vocabulary
    ann, ben = (table[table["id"] == user] for user in ("ann", "ben"))
    assert sorted(ann["item"]) == sorted(items[-3:]) and ann["rank"].tolist() == [1, 2, 3]
    assert len(ben) == 10 and items[0] not in set(ben["item"])
    assert np.isfinite(table["score"].dropna()).all()
    out = new.with_name("hidden.parquet")
    assert main(["predict", str(run), str(new), "--hide-seen", "--out", str(out)]) == 0
    assert pd.read_parquet(out).equals(pd.read_parquet(out)) and len(pd.read_parquet(out)) == len(table)


def test_a_file_without_any_known_item_lists_its_users_or_is_answered_by_popularity(run, new, capsys):
    new.write_text(HEAD + "eve,elsewhere,5,1\nfay,nowhere,5,2\n")
    out = new.with_name("out.parquet")
    assert main(["predict", str(run), str(new), "--top", "3", "--out", str(out)]) == 0
    assert "0 samples" in capsys.readouterr().out
    for table in (open_run(run).predict(new), open_run(run).predict(new, top=3, hide_seen=True), pd.read_parquet(out)):
        assert list(table) == ["id", "rank", "item", "score", "reason"]
        assert table["id"].tolist() == ["eve", "fay"] and table[["rank", "item", "score"]].isna().all(None)
        assert set(table["reason"]) == {"no item of this user is known to the model"}
        assert str(table["rank"].dtype) == "Int64" and table["score"].dtype == np.float32
    table = open_run(run).predict(new, top=2, fallback="popularity")
    assert table["id"].tolist() == ["eve"] * 2 + ["fay"] * 2 and table["rank"].tolist() == [1, 2] * 2


@pytest.mark.parametrize("others", [True, False])
def test_users_who_have_seen_every_candidate_are_listed_with_the_reason(others, run, new):
    items = open_run(run).spec.inputs.vocabulary
    rows = [("all", item, n) for n, item in enumerate(items)]
    rows += [("ann", items[0], 1), ("eve", "elsewhere", 2)] if others else []
    new.write_text(HEAD + "".join(f"{user},{item},5,{time}\n" for user, item, time in rows))
    table = open_run(run).predict(new, top=2, hide_seen=True)
    last = table[table["id"] == "all"]
    assert last[["rank", "item", "score"]].isna().all(None) and len(last) == 1
    assert last["reason"].item() == "this user has seen every item that the model recommends"
    assert table["id"].tolist() == (["ann"] * 2 + ["all", "eve"] if others else ["all"])
    assert len(open_run(run).predict(new, top=2, hide_seen=False)) == (5 if others else 2)
    out = new.with_name("out.csv")
    assert main(["predict", str(run), str(new), "--hide-seen", "--top", "2", "--out", str(out)]) == 0
    assert pd.read_csv(out, keep_default_na=False)["reason"].tolist() == table["reason"].tolist()


def test_features_of_unknown_users_are_told_and_a_frame_is_named_as_one(tmp_path):
    words = ["train.logger=null", "train.max_steps=1"]
    run = open_run(train("sasrec/log", words, sample=True, quiet=True, folder=tmp_path / "run"))
    frame = pd.DataFrame({"user": ["eve"], "item": ["elsewhere"], "time": [1]})
    with pytest.raises(ZooError) as caught:
        run.predict(frame, features=True)
    assert str(caught.value).startswith("DataFrame: no sample can be predicted for (no item of this user is known")
    assert run.predict(frame)["id"].tolist() == ["eve"]
    known = pd.DataFrame({"user": ["ann"], "item": [run.spec.inputs.vocabulary[0]], "time": [1]})
    with pytest.warns(UserWarning, match="1 users of unknown items alone left out"):
        assert run.predict(pd.concat([frame, known]), features=True)["id"].tolist() == ["ann"]


def test_a_masked_run_may_show_seen_items(tmp_path, new):
    overrides = ["train.logger=null", "task.mask_history=true"]
    run = train("popularity/log", overrides, sample=True, quiet=True, folder=tmp_path / "masked")
    hidden, shown = open_run(run).predict(new, top=10), open_run(run).predict(new, top=10, hide_seen=False)
    assert (len(hidden[hidden["id"] == "ann"]), len(shown[shown["id"] == "ann"])) == (3, 10)


def test_one_long_history_makes_no_batch_wide(tmp_path):
    """Whole histories come along where they are asked for, and are cut to the window where not."""
    rows = [("bot", n % 9, n) for n in range(5000)] + [(f"u{u}", (u + n) % 9, n) for u in range(9) for n in range(6)]
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(f"{u},i{i},{t}\n" for u, i, t in rows))
    data = create_dataset("log", root=tmp_path, max_len=5)
    part = data.part("test")
    assert "history" not in part.batch(np.arange(len(part)))
    data.asked.add("history")
    assert part.batch(np.arange(len(part)))["history"].shape == (10, 4999)
