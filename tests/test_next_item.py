"""The next item: who is a candidate, which targets are misses, what is recommended when little is left."""

import numpy as np
import pytest
import torch
from statezoo.zoo import metrics
from statezoo.zoo.api import create_dataset, create_model
from statezoo.zoo.backbones.baselines.popularity import Popularity
from statezoo.zoo.data.logs import hash_user
from statezoo.zoo.data.spec import Inputs, Outputs, Spec
from statezoo.zoo.errors import ZooError
from statezoo.zoo.registry import find


class Echo(torch.nn.Module):
    """Scores are the input."""

    inputs = ("scores",)
    causal = True


def task(counts, **options):
    """A task over items a, b, ... that occur so often in training."""
    names = tuple("abcdefgh"[: len(counts)])
    spec = Spec(Inputs("log", {}, names, tuple(counts)), Outputs(), {"num_items": len(counts)})
    return find("task", "next_item").load()(Echo(), spec, **{"topk": (1,), **options})


def rows(task, scores, target, history=((0,),)):
    batch = {"target": torch.tensor(target), "history": torch.tensor(history).expand(len(target), -1)}
    return task.outputs_to_rows(torch.tensor(scores), batch)


def test_an_item_that_training_never_saw_is_no_candidate():
    one = task([3, 0, 2, 1])
    scores = [[9.0, 0.1, 0.9, 0.5, 0.4]] * 3  # padding and the unseen item score highest
    found = rows(one, scores, [3, 2, 1])
    assert found["rank"].tolist() == [1, 4, 3] and found["candidates"].tolist() == [3, 4, 3]
    assert found["ties"].tolist() == [0, 0, 0], "what is no candidate either is not tied with a target that is none"
    table = one.predictions(torch.tensor(scores), {}, top=4)
    assert table["item"][0].compressed().tolist() == ["c", "d", "a"]


def test_an_unseen_target_is_a_miss_at_every_cut_off():
    counts = [1] * 6 + [0, 0]
    found = rows(task(counts, topk=(1, 5)), np.random.default_rng(0).normal(size=(9, 9)), [7, 8, 0] * 3)
    found |= {name: np.array(list("abcdefghi")) for name in ("id", "group")}
    values = metrics.compute("next_item", found, topk=(1, 5))
    assert set(values.values()) == {0.0}


class _Log:
    windows = "per-prefix"


@pytest.mark.parametrize("counts", [[1] * 5, [1] * 5 + [0] * 3])
def test_a_cut_off_that_everything_meets_is_refused(counts):
    with pytest.raises(ZooError, match=r"topk=\[1, 5\]: 5 is not below the 5 items that training saw.*; give smaller"):
        task(counts, topk=(1, 5)).accept(_Log())
    task(counts, topk=(1, 4)).accept(_Log())


def test_a_cut_off_that_a_masked_user_always_meets_is_refused():
    one = task([1] * 5, topk=(2,), mask_history=True)
    scores = np.random.default_rng(0).normal(size=(1, 6))
    assert rows(one, scores, [1], [[2, 3, 0]])["candidates"].tolist() == [3]
    with pytest.raises(ZooError, match="2 is not below the 2 items that are left for a user whose history is masked"):
        rows(one, scores, [1], [[2, 3, 4]])


class Steps(torch.nn.Module):
    """Features of a step are scores of every item, its input."""

    inputs = ("scores",)
    causal = True

    def __init__(self, pad_competes):
        super().__init__()
        self.pad_competes = pad_competes

    def forward_features(self, scores):
        return scores

    def forward_head(self, features):
        return features


@pytest.mark.parametrize("per_prefix", [False, True])
@pytest.mark.parametrize("pad_competes", [False, True])
def test_the_loss_is_over_items_and_over_padding_where_the_model_has_it_compete(pad_competes, per_prefix):
    spec = Spec(Inputs("log", {}, tuple("abc"), (1, 1, 1)), Outputs(), {"num_items": 3})
    one = find("task", "next_item").load()(Steps(pad_competes), spec, topk=(1,))
    one.per_prefix = per_prefix
    scores = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    length, targets = torch.tensor([3, 1]), torch.tensor([[0, 0, 2, 0], [3, 0, 0, 0]])
    logp = [row.log_softmax(0) for row in scores[[0, 1], [2, 0]][:, 0 if pad_competes else 1 :]]
    wanted = -(logp[0][2 - (not pad_competes)] + logp[1][3 - (not pad_competes)]) / 2
    loss = one.loss({"scores": scores, "length": length, "targets": targets})
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.equal(one.last_features({"scores": scores, "length": length}), scores[[0, 1], [2, 0]])


def test_masking_is_part_of_the_protocol():
    for mask in (True, False):
        assert task([1] * 4, mask_history=mask).protocol() == {"topk": [1], "mask_history": mask}


def test_fewer_items_are_recommended_where_fewer_are_left():
    scores = torch.tensor([[0.0, 5.0, 4.0, 3.0, 2.0]] * 2)
    batch = {"history": torch.tensor([[1, 2, 0], [1, 3, 4]])}
    one = task([1] * 4)
    assert one.predictions(scores, batch, top=9)["item"].shape == (2, 4)
    for hidden in (one.predictions(scores, batch, top=3, hide_seen=True),
                   task([1] * 4, mask_history=True).predictions(scores, batch, top=3)):  # fmt: skip
        assert [row.compressed().tolist() for row in hidden["item"]] == [["c", "d"], ["b"]]
        assert [row.compressed().tolist() for row in hidden["score"]] == [[3.0, 2.0], [4.0]]
    shown = task([1] * 4, mask_history=True).predictions(scores, batch, top=3, hide_seen=False)
    assert shown["item"].tolist() == [["a", "b", "c"]] * 2


def test_without_any_history_the_most_popular_items_are_named_on_request():
    answer = task([2, 0, 7, 2]).without_inputs(top=9, fallback="popularity")
    assert answer["item"].tolist() == ["c", "a", "d"] and answer["score"].tolist() == [7, 2, 2]
    assert task([2, 0, 7, 2]).without_inputs(top=1, fallback="popularity")["item"].tolist() == ["c"]
    assert not len(task([2, 0, 7, 2]).without_inputs(top=9)["item"])
    with pytest.raises(ZooError, match="does not know how often items occur"):
        task([]).without_inputs(fallback="popularity")


def test_whole_histories_are_asked_for_where_they_are_hidden():
    plain, masked = task([1] * 4), task([1] * 4, mask_history=True)
    assert (plain.asks(), masked.asks()) == (set(), {"history"})
    assert (plain.asks(hide_seen=True, top=3), masked.asks(hide_seen=False)) == ({"history"}, set())


def write_log(folder, rows):
    (folder / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))


@pytest.mark.parametrize("mask", [True, False])
def test_the_floor_leaves_out_histories_as_the_task_does(mask, tmp_path):
    write_log(tmp_path, [(f"u{u}", f"i{(u * n) % 7}", n) for u in range(1, 7) for n in range(5)])
    data = create_dataset("log", root=tmp_path, k_core=1)
    data.asked.add("history")
    spec = data.prepare()
    made = find("task", "next_item").load()(Popularity.from_spec(spec), spec, topk=(1,), mask_history=mask)
    floor, batch = made.trivial(data.part("train"), data.part("test")), data.part("test").batch(np.arange(6))
    trained = {code for code, count in enumerate(spec.inputs.counts, 1) if count}
    left = [trained - set(row) if mask else trained for row in batch["history"].tolist()]
    missed = [target not in some for target, some in zip(batch["target"].tolist(), left, strict=True)]
    assert floor["candidates"].tolist() == [len(some) + out for some, out in zip(left, missed, strict=True)]


def test_targets_alone_do_not_make_an_item_known(tmp_path):
    """Item z is a test target of one user and in no training event; under both splits it is a miss, and counted."""
    log = [(f"u{u}", f"i{(u + n) % 6}", 10 * n + u % 3) for u in range(8) for n in range(6)]
    write_log(tmp_path, [*log, ("u0", "z", 99), ("u1", "z", 98)])
    for split in ("leave-two-out", "global-time"):
        data = create_dataset("log", root=tmp_path, k_core=2, split=split)
        spec = data.prepare()
        made = find("task", "next_item").load()(Popularity.from_spec(spec), spec, topk=(1, 5))
        made.accept(data)
        part = data.part("test")
        batch = {name: torch.from_numpy(array) for name, array in part.batch(np.arange(len(part))).items()}
        found = made.outputs_to_rows(torch.ones(len(part), spec.size("num_items") + 1), batch)
        missed = np.isin(part.ids, [hash_user("u0"), hash_user("u1")])
        assert missed.sum() == 2 and (found["rank"][missed] == 7).all() and (found["candidates"][missed] == 7).all()
        assert (found["rank"][~missed] == 6).all() and (found["candidates"][~missed] == 6).all()
        assert data.facts()["test_targets_unseen_in_training"] == 2


def test_a_loss_over_more_scores_than_fit_takes_them_in_chunks(monkeypatch):
    """A table of scores beyond the limit is never made whole; loss and gradients are those of the whole."""
    import statezoo.tasks.next_item as module

    data = create_dataset("log").sample(max_len=10)
    spec = data.prepare()
    arrays = data.part("train").batch(np.arange(32))
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = []
    for largest in (module.LARGEST_TABLE, 4096):
        monkeypatch.setattr(module, "LARGEST_TABLE", largest)
        torch.manual_seed(0)
        model = create_model("gru4rec", num_items=spec.size("num_items"), dim=8, hidden=8, dropout=0.0).double()
        made = find("task", "next_item").load()(model, spec)
        assert (made._chunk(int(batch["targets"].count_nonzero())) is None) == (largest > 4096)
        made.loss(batch).backward()
        found.append([made.loss(batch).detach(), *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*found, strict=True):
        assert torch.allclose(whole, chunked, rtol=1e-10, atol=1e-12)
