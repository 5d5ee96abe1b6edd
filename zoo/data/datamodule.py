"""One LightningDataModule for every adapter, and the loaders under it.

Order, sampling and augmentation are pure functions of (seed, epoch, step, sample): a loader can begin at any step, on
any number of workers and ranks, and delivers the same batches. Evaluation goes in the order of the samples, sharded
over ranks without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from ..errors import ZooError, unknown
from ..seeding import derive, generator
from .base import Dataset, Part

SAMPLERS = ("uniform", "balanced")


class Batch(NamedTuple):
    """What a batch sampler asks for: sample numbers, and the epoch that seeds their augmentation (None: evaluation)."""

    index: np.ndarray
    epoch: int | None


class _Served(torch.utils.data.Dataset):
    """A Part as torch sees it: the fetcher hands `__getitems__` whatever the batch sampler yields, here a `Batch`."""

    def __init__(self, part: Part, seed: int):
        self.part, self.seed = part, seed

    def __len__(self) -> int:
        return len(self.part)

    def __getitems__(self, asked: Batch) -> dict:
        seeds = None
        if asked.epoch is not None and self.part.augments:
            seeds = np.array([derive(self.seed, "item", asked.epoch, int(i)) for i in asked.index])
        arrays = self.part.batch(asked.index, seeds)
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return batch | {"index": torch.from_numpy(asked.index)}


def _as_is(batch):
    return batch


class TrainSteps:
    """Batches for the steps `first` to `last` (not included) counted over all epochs; one shard of them per rank."""

    def __init__(
        self,
        part: Part,
        batch_size: int,
        seed: int,
        *,
        first: int = 0,
        last: int | None = None,
        sampler: str = "uniform",
        rank: int = 0,
        world: int = 1,
    ):
        if sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        self.part, self.batch_size, self.seed, self.rank, self.world = part, batch_size, seed, rank, world
        self.per_epoch = -(-len(part) // (batch_size * world))
        self.first, self.last = first, self.per_epoch if last is None else last
        self.labels = part.labels() if sampler == "balanced" else None
        if sampler == "balanced" and self.labels is None:
            raise ZooError(
                "train.sampler=balanced needs one class label per sample, which this task has not; use uniform"
            )
        if last is None:
            self.sampler = self  # where Lightning looks for set_epoch; a stream over all epochs has no use for it

    def set_epoch(self, epoch: int) -> None:
        """Serve the steps of one epoch (Lightning calls this on anyone's Trainer)."""
        self.first, self.last = epoch * self.per_epoch, (epoch + 1) * self.per_epoch

    def __len__(self) -> int:
        return self.last - self.first

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in order: a permutation, or draws with equal chance for each class."""
        rng = generator(self.seed, "order", epoch)
        if self.labels is None:
            return rng.permutation(len(self.part))
        weight = 1 / np.bincount(self.labels)[self.labels]
        return rng.choice(len(self.labels), len(self.labels), p=weight / weight.sum())

    def __iter__(self) -> Iterator[Batch]:
        step, whole = self.first, self.batch_size * self.world
        while step < self.last:
            epoch, within = divmod(step, self.per_epoch)
            order = self.order(epoch)
            for at in range(within, min(self.per_epoch, within + self.last - step)):
                mine = order[at * whole : (at + 1) * whole][self.rank :: self.world]
                # the last batch may be too short to give every rank a sample; each rank must step all the same
                yield Batch(mine if len(mine) else order[self.rank : self.rank + 1], epoch)
                step += 1


class EvalSteps:
    """All samples of this rank's shard, in order."""

    def __init__(self, part: Part, batch_size: int, rank: int = 0, world: int = 1):
        self.index, self.batch_size = np.arange(len(part))[rank::world], batch_size

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for at in range(0, len(self.index), self.batch_size):
            yield Batch(self.index[at : at + self.batch_size], None)


class DataModule(L.LightningDataModule):
    """Loaders over an adapter's parts: `batch_size` per rank, `workers` processes, everything seeded by `seed`."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        sampler: Literal["uniform", "balanced"] = "uniform",
    ):
        super().__init__()
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size or 2 * batch_size
        self.workers, self.seed, self.sampler = workers, seed, sampler

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data; asserts that no group crosses the split."""
        self.dataset.prepare()

    def _ranks(self) -> dict[str, int]:
        trainer = getattr(self, "trainer", None)
        return {"rank": trainer.global_rank, "world": trainer.world_size} if trainer else {"rank": 0, "world": 1}

    def _loader(self, part: Part, batches) -> DataLoader:
        return DataLoader(
            _Served(part, self.seed),
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )

    def train_steps(self, first: int = 0, last: int | None = None, ranks: dict | None = None) -> DataLoader:
        """The training batches of steps `first` to `last`, counted over all epochs."""
        part = self.dataset.part("train")
        steps = TrainSteps(
            part, self.batch_size, self.seed, first=first, last=last, sampler=self.sampler, **(ranks or self._ranks())
        )
        return self._loader(part, steps)

    def train_dataloader(self) -> DataLoader:
        """One epoch; Lightning moves it on by `set_epoch`."""
        return self.train_steps()

    def eval_dataloader(self, part: str | Part, ranks: dict | None = None) -> DataLoader:
        """A part (by name, or any Part) in order."""
        part = self.dataset.part(part) if isinstance(part, str) else part
        return self._loader(part, EvalSteps(part, self.eval_batch_size, **(ranks or self._ranks())))

    def val_dataloader(self) -> DataLoader:
        """The validation part."""
        return self.eval_dataloader("valid")

    def test_dataloader(self) -> DataLoader:
        """The test part."""
        return self.eval_dataloader("test")
