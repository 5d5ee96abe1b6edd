"""Completion: the whole point cloud from a part of it.

Training: the Chamfer distance. Rows: per-sample Chamfer distances and a hash of the predicted cloud. With
d(x, Y) the distance of a point to the nearest of a cloud, CD-L1 = (mean_x d(x, Y) + mean_y d(y, X)) / 2 and
CD-L2 = mean_x d(x, Y)^2 + mean_y d(y, X)^2 (the convention of Yuan et al., PCN, 3DV 2018, arXiv:1808.00671).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from ..zoo.data.base import Part
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class Completion(Task):
    """The whole cloud from a part of it."""

    rows = "completion"

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean CD-L2 of a batch; outputs (B, N, 3), target (B, M, 3)."""
        return chamfer(self.model(*self.inputs(batch)), batch["target"])[1].mean()

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Distances per sample, in the units of the clouds."""
        outputs = outputs.float()
        l1, l2 = chamfer(outputs, batch["target"].float())
        clouds = outputs.cpu().numpy().astype("<f4")
        hashes = [hashlib.sha256(np.ascontiguousarray(cloud).tobytes()).hexdigest()[:16] for cloud in clouds]
        return {"cd_l1": l1.double().cpu().numpy(), "cd_l2": l2.double().cpu().numpy(), "cloud": np.array(hashes)}

    def trivial(self, train: Part, part: Part) -> Rows:
        """The partial cloud itself, as it came in."""
        rows = []
        for arrays in part_batches(part, 16):
            batch = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
            rows.append(self.outputs_to_rows(batch["points"], batch))
        return with_ids(part, {name: np.concatenate([r[name] for r in rows]) for name in rows[0]})


def chamfer(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """CD-L1 and CD-L2 (B,) each of clouds (B, N, 3) and (B, M, 3); O(N M) memory."""
    # the differences themselves: the expanded square loses half of the digits of small distances
    distance = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    there, back = distance.amin(2), distance.amin(1)
    return (there.mean(1) + back.mean(1)) / 2, there.square().mean(1) + back.square().mean(1)
