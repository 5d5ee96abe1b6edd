"""Loaders: whatever the rank, the first step or the epoch, a batch is a function of seed, step and sample alone."""

import numpy as np
import pytest
from statezoo.zoo.data.base import Part
from statezoo.zoo.data.datamodule import DataModule, EvalSteps, TrainSteps
from statezoo.zoo.errors import ZooError
from statezoo.zoo.seeding import derive

SIZES = [(n, batch, world) for n in (1, 2, 3, 7, 12, 13) for batch in (1, 2, 5) for world in (1, 2, 3) if n >= world]


class Seen(Part):
    """A part that gives back the seeds it was asked with."""

    def __init__(self, n, augments):
        super().__init__({"x": np.arange(n)}, [f"s{i}" for i in range(n)])
        self.augments = augments

    def batch(self, index, seeds=None):
        given = np.zeros(len(index), np.int64) if seeds is None else seeds.astype(np.int64)
        return {"x": self.arrays["x"][index], "seeds": given}


def module(n, augments=True, **options):
    dataset = type("Data", (), {"part": lambda self, name: Seen(n, augments)})()
    return DataModule(dataset, **options)


def steps(n, batch, **options):
    return [(one.index.tolist(), one.epoch) for one in TrainSteps(Seen(n, False), batch, 5, **options)]


@pytest.mark.parametrize(("n", "batch", "world"), SIZES)
def test_the_shards_of_a_step_are_the_batch_of_one_process(n, batch, world):
    last = 2 * -(-n // (batch * world))
    whole = steps(n, batch * world, last=last)
    shards = [steps(n, batch, last=last, rank=rank, world=world) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(whole)} == {last}, "every rank steps as often"
    order = {epoch: TrainSteps(Seen(n, False), batch, 5).order(epoch) for epoch in (0, 1)}
    for (index, epoch), *each in zip(whole, *shards, strict=True):
        assert {at for _, at in each} == {epoch} and all(mine for mine, _ in each)
        for rank, (mine, _) in enumerate(each):
            assert mine == (index[rank::world] or [order[epoch][rank]])
    for epoch in (0, 1):
        assert sorted(i for index, at in whole if at == epoch for i in index) == list(range(n))
        assert sum((index for index, at in whole if at == epoch), []) == order[epoch].tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [TrainSteps(Seen(50, False), 8, seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[1] == TrainSteps(Seen(50, False), 3, 0).order(1).tolist()


@pytest.mark.parametrize(("first", "last"), [(0, 9), (1, 2), (3, 9), (2, 4), (8, 9), (4, 4)])
def test_a_stream_may_begin_and_end_at_any_step(first, last):
    """Three batches an epoch."""
    assert steps(7, 3, first=first, last=last) == steps(7, 3, last=9)[first:last]
    assert len(TrainSteps(Seen(7, False), 3, 5, first=first, last=last)) == last - first


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_a_loader_of_one_epoch_moves_on_to_any(epoch):
    loader = TrainSteps(Seen(7, False), 3, 5)
    loader.set_epoch(epoch)
    assert len(loader) == 3
    found = [(one.index.tolist(), one.epoch) for one in loader]
    assert found == steps(7, 3, first=3 * epoch, last=3 * epoch + 3) and {at for _, at in found} == {epoch}


def test_a_sample_is_augmented_by_seed_epoch_and_its_number_alone():
    found = {}
    for batch_size in (2, 5):
        for step in module(5, batch_size=batch_size, seed=3).train_steps(0, 2 * -(-5 // batch_size)):
            for i, seed in zip(step["index"].tolist(), step["seeds"].tolist(), strict=True):
                found.setdefault(i, []).append(seed)
    for i, seeds in found.items():
        wanted = [int(np.array([derive(3, "item", epoch, i)]).astype(np.int64)[0]) for epoch in (0, 1)]
        assert seeds == wanted * 2 and wanted[0] != wanted[1]
    evaluated = [step["seeds"] for step in module(5, batch_size=2).eval_dataloader("test")]
    plain = [step["seeds"] for step in module(5, augments=False, batch_size=2).train_steps(0, 3)]
    assert not any(seeds.any() for seeds in evaluated + plain)


@pytest.mark.parametrize(("n", "batch", "world"), SIZES)
def test_evaluation_sees_every_sample_once_in_order_and_pads_no_shard(n, batch, world):
    shards = [EvalSteps(Seen(n, False), batch, rank, world) for rank in range(world)]
    for rank, shard in enumerate(shards):
        batches = [one.index.tolist() for one in shard]
        assert sum(batches, []) == list(range(n))[rank::world] and len(batches) == len(shard)
        assert all(len(one) == batch for one in batches[:-1])


def test_evaluation_takes_twice_the_batch_unless_it_is_told():
    assert module(5, batch_size=3).eval_batch_size == 6 and module(5, eval_batch_size=4).eval_batch_size == 4


def test_samplers_have_names_and_the_balanced_one_needs_labels():
    with pytest.raises(ZooError, match="unknown sampler 'balance'; did you mean 'balanced'"):
        TrainSteps(Seen(5, False), 2, 0, sampler="balance")
    with pytest.raises(ZooError, match="needs one class label per sample"):
        TrainSteps(Seen(5, False), 2, 0, sampler="balanced")
