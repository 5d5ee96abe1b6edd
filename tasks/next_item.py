"""Next-item recommendation: given a user's events so far, rank every item.

Training: cross entropy over all items (padding excluded) at every position that has a target, which for a causal model
in one pass equals the mean over all prefixes. Evaluation: full ranking; the target's rank counts all items scored
higher and, pessimistically, all items scored the same. History may be masked (`mask_history`) or not (the papers'
choice). Candidates are the items that training saw; a target that it never saw ranks behind all of them and is a miss
at every cut-off, which is why a cut-off not below their number is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..zoo.backbones.base import Fitted, Model
from ..zoo.backbones.baselines.popularity import Popularity
from ..zoo.bounds import check_numbers
from ..zoo.data.base import Dataset, Part
from ..zoo.data.spec import Spec
from ..zoo.errors import ZooError
from ..zoo.nn.losses import chunked_cross_entropy
from ..zoo.train.causality import assert_causal, features
from ..zoo.train.task import Rows, Task, part_batches, with_ids

LARGEST_TABLE = 1 << 30  # scores of a batch made at once: 4 GB, and as much again for their gradient
REMEDY = "set data.windows=per-prefix"


class NextItem(Task):
    """Rank all items for each user's next event."""

    rows = "next_item"
    kinds = ("log",)
    operational = ("loss_chunk",)
    predict_options = {
        "top": {"default": 10, "least": 1, "help": "items per user"},
        "hide_seen": {
            "default": None,
            "choices": (True, False),
            "help": "leave out the items of the user's history, or not; default as in the evaluation of the run",
        },
        "fallback": {
            "default": "none",
            "choices": ("none", "popularity"),
            "help": "what users get of whose items none is known: nothing, or the most popular items of training",
        },
    }
    nothing_left = "this user has seen every item that the model recommends"
    sample_train = {"epochs": 12, "batch_size": 64, "lr": 0.003, "patience": None, "max_steps": None}

    def __init__(
        self,
        model: Model | Fitted,
        spec: Spec,
        *,
        topk: tuple[int, ...] = (10, 20, 50),
        mask_history: bool = False,
        loss_chunk: int | None = None,
    ):
        """`topk`: cut-offs of HR, NDCG and MRR; `mask_history`: take items of the history out of the ranking.

        `loss_chunk`: so many items at a time in the training loss (None: all, or as many as fit where the scores of all
        items for all positions of a batch are over 2^30 numbers).
        """
        super().__init__(model, spec)
        check_numbers(NextItem, {"topk": topk, "loss_chunk": loss_chunk}, "task.")
        self.topk, self.mask_history, self.loss_chunk = tuple(topk), mask_history, loss_chunk
        self.per_prefix = False  # each window trains its last position alone; the data set says so
        never = torch.tensor([count == 0 for count in spec.inputs.counts]).nonzero().flatten() + 1
        self.register_buffer("never_trained", never, persistent=False)

    def metric_options(self) -> dict:
        """The cut-offs."""
        return {"topk": self.topk}

    def protocol(self) -> dict:
        """Cut-offs and masking."""
        return super().protocol() | {"mask_history": self.mask_history}

    def memory_remedies(self) -> tuple[str, ...]:
        """The loss over all items at once is the largest tensor of a step."""
        items = len(self.spec.inputs.vocabulary)
        chunk = min(1024, items // 4) if self.loss_chunk is None else self.loss_chunk // 2
        return (f"set task.loss_chunk={chunk}",) if chunk else ()

    def accept(self, dataset: Dataset) -> None:
        """Cut-offs are below the number of candidates; one pass over all positions needs a model that is causal.

        Fitted models are given the past alone, and models that fill gaps are trained on what is hidden.
        """
        candidates = self.spec.size("num_items") - len(self.never_trained)
        if max(self.topk) >= candidates:
            raise self._too_deep(f"{candidates} items that training saw")
        self.per_prefix = getattr(dataset, "windows", "") == "per-prefix"
        fills_gaps = hasattr(self.model, "fill_gaps")  # trains both ways by hidden items
        if fills_gaps or isinstance(self.model, Fitted) or getattr(dataset, "windows", "") != "all-positions":
            return
        if not getattr(self.model, "causal", False):
            raise ZooError(
                f"{type(self.model).__name__} is not causal, so that one pass cannot train all positions; {REMEDY}"
            )
        if dataset.prepared:
            assert_causal(self.model, dataset.part("train"), features, REMEDY)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy over all positions with a target."""
        if hasattr(self.model, "fill_gaps"):
            features, targets = self.model.fill_gaps(batch["items"], batch["targets"], batch["length"])
        elif self.per_prefix:
            features, targets = self.last_features(batch), batch["targets"].amax(1)
        else:
            features, targets = self.model.forward_features(*self.inputs(batch)), batch["targets"]
        if features.ndim == 3:
            features, targets = features.flatten(0, 1), targets.flatten()
            # index_select: its backward is deterministic, that of boolean indexing is not
            trained = targets.nonzero().squeeze(1)
            features, targets = features.index_select(0, trained), targets.index_select(0, trained)
        first = 0 if self.model.pad_competes else 1  # column 0 is padding
        chunk = self._chunk(len(targets)) if self.loss_chunk is None else self.loss_chunk
        if chunk is None:
            return F.cross_entropy(self.model.forward_head(features)[:, first:], targets - first)
        weight, bias = self.model.item_scorer()
        bias = None if bias is None else bias[first:]
        return chunked_cross_entropy(features, weight[first:], targets - first, bias, chunk=chunk)

    def _chunk(self, targets: int) -> int | None:
        """Items at a time where the scores of all would fill a card; a function of sizes alone, as a resume needs."""
        whole = targets * (self.spec.size("num_items") + 1) <= LARGEST_TABLE
        return None if whole or not hasattr(self.model, "item_scorer") else max(1024, LARGEST_TABLE // (8 * targets))

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, num_items + 1) behind each user's last event."""
        if isinstance(self.model, Fitted):
            return super().outputs(batch)
        return self.model.forward_head(self.last_features(batch))

    def last_features(self, batch: dict[str, Tensor]) -> Tensor:
        """Features (B, dim) behind each user's last event; some models make them without those of all others."""
        if hasattr(self.model, "last_features"):
            return self.model.last_features(*self.inputs(batch))
        features = self.model.forward_features(*self.inputs(batch))
        last = (batch["length"] - 1)[:, None, None].expand(-1, 1, features.shape[2])
        return features.gather(1, last).squeeze(1)

    def _too_deep(self, candidates: str) -> ZooError:
        return ZooError(
            f"task.topk={list(self.topk)}: {max(self.topk)} is not below the {candidates}, so that anything would be a "
            "hit; give smaller cut-offs or more data"
        )

    def candidates(self, scores: Tensor, batch: dict[str, Tensor], mask_history: bool) -> Tensor:
        """Scores with -inf where an item is no candidate: padding, items never trained, the history where masked."""
        scores = scores.float().clone()
        if mask_history:
            scores.scatter_(1, batch["history"].to(scores.device), -torch.inf)
        scores.index_fill_(1, self.never_trained.to(scores.device), -torch.inf)
        scores[:, 0] = -torch.inf
        return scores

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Pessimistic rank, number of other items with the same score, number of candidates."""
        scores = self.candidates(outputs, batch, self.mask_history)
        target = batch["target"].to(scores.device)[:, None]
        own = scores.gather(1, target)
        size = (scores > -torch.inf).sum(1)
        if self.mask_history and bool((size <= max(self.topk)).any()):
            raise self._too_deep(f"{int(size.min())} items that are left for a user whose history is masked")
        # a target that is no candidate (never trained, or masked as history) joins the list behind everything
        missing = own.squeeze(1) == -torch.inf
        ties = (scores == own).sum(1) - 1
        rank = torch.where(missing, size + 1, 1 + (scores > own).sum(1) + ties)
        columns = {"rank": rank, "ties": torch.where(missing, 0, ties), "candidates": size + missing}
        return {name: value.cpu().numpy().astype(np.int64) for name, value in columns.items()}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The most popular items of the training part for everyone."""
        floor = NextItem(Popularity.from_spec(self.spec), self.spec, topk=self.topk, mask_history=self.mask_history)
        floor.model.fit(train, self.spec)
        rows = []
        for arrays in part_batches(part):
            batch = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
            rows.append(floor.outputs_to_rows(floor.outputs(batch), batch))
        return with_ids(part, {name: np.concatenate([r[name] for r in rows]) for name in rows[0]})

    def asks(self, hide_seen: bool | None = None, **options) -> set[str]:
        """Whole histories, where they are hidden."""
        return {"history"} if (self.mask_history if hide_seen is None else hide_seen) else set()

    def predictions(
        self,
        outputs: Tensor,
        batch: dict[str, Tensor],
        top: int = 10,
        hide_seen: bool | None = None,
        fallback: str = "none",
    ) -> dict[str, np.ma.MaskedArray]:
        """The `top` best items per user with their scores, (B, top) each; masked where fewer candidates are left.

        `hide_seen`: whether items of the user's history are left out; None: as the run was evaluated.
        """
        scores = self.candidates(outputs, batch, self.mask_history if hide_seen is None else hide_seen)
        best = scores.topk(min(top, len(self.spec.inputs.vocabulary)), dim=1)
        names, value = np.array(["", *self.spec.inputs.vocabulary]), best.values.cpu().numpy()
        none = value == -np.inf
        return {
            "item": np.ma.masked_array(names[best.indices.cpu().numpy()], none),
            "score": np.ma.masked_array(value, none),
        }

    def without_inputs(self, top: int = 10, fallback: str = "none", **options) -> dict[str, np.ndarray]:
        """With the fallback "popularity" the `top` most frequent items of training and their counts, else nothing."""
        counts = np.array(self.spec.inputs.counts)
        if fallback == "popularity" and not len(counts):
            raise ZooError("the run does not know how often items occur in training; train it anew for this fallback")
        some = min(top, int((counts > 0).sum())) if fallback == "popularity" else 0
        best = np.argsort(-counts, kind="stable")[:some]
        names = np.array(self.spec.inputs.vocabulary, dtype=object)
        return {"item": names[best], "score": counts[best].astype(np.float32)}
