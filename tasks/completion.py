"""Completion: the whole point cloud from a part of it.

Training: weighed sum of CD-L2, CD-L1 and the density-aware Chamfer distance. Rows: per-sample distances and a hash of
the predicted cloud; `zoo/geometry/distances.py` defines them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..zoo import plots
from ..zoo.backbones.base import Fitted, Model
from ..zoo.data.base import Part
from ..zoo.data.ply import write_cloud
from ..zoo.data.spec import Spec
from ..zoo.geometry.distances import chamfer, density_aware_chamfer, earth_mover
from ..zoo.seeding import generator
from ..zoo.train.task import Rows, Task, part_batches, with_ids


class Completion(Task):
    """The whole cloud from a part of it."""

    rows = "completion"
    kinds = ("points",)

    def __init__(
        self,
        model: Model | Fitted,
        spec: Spec,
        *,
        cd_l2: float = 1.0,
        cd_l1: float = 0.0,
        dcd: float = 0.0,
        emd_points: int = 0,
    ):
        """Weights of the losses; `emd_points`: measure the exact EMD on so many points, or all there are.

        They are drawn at random, the same places of every cloud: its first points would be a strip of a folded grid.
        """
        super().__init__(model, spec)
        self.cd_l2, self.cd_l1, self.dcd, self.emd_points = cd_l2, cd_l1, dcd, emd_points

    def protocol(self) -> dict:
        """The points that the EMD is measured on."""
        return super().protocol() | {"emd_points": self.emd_points}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean over a batch; outputs (B, N, 3), target (B, M, 3)."""
        outputs, target = self.model(*self.inputs(batch)), batch["target"]
        l1, l2 = chamfer(outputs, target)
        total = self.cd_l2 * l2 + self.cd_l1 * l1
        if self.dcd:
            total = total + self.dcd * density_aware_chamfer(outputs, target)
        return total.mean()

    def outputs_to_rows(self, outputs: Tensor, batch: dict[str, Tensor]) -> Rows:
        """Distances per sample, in the units of the clouds."""
        outputs, target = outputs.float(), batch["target"].float()
        l1, l2 = chamfer(outputs, target)
        clouds = outputs.cpu().numpy().astype("<f4")
        hashes = [hashlib.sha256(np.ascontiguousarray(cloud).tobytes()).hexdigest()[:16] for cloud in clouds]
        rows = {"cd_l1": l1.double().cpu().numpy(), "cd_l2": l2.double().cpu().numpy(), "cloud": np.array(hashes)}
        if self.emd_points:
            count = min(self.emd_points, outputs.shape[1], target.shape[1])
            few = (some(name, count, cloud) for name, cloud in (("outputs", outputs), ("target", target)))
            rows["emd"] = earth_mover(*few).cpu().numpy()
        return rows

    def write_files(self, outputs: Tensor, batch: dict[str, Tensor], part: Part, folder: Path) -> None:
        """The completed clouds, in the units of their files, as `<id>.ply`."""
        for i, points in zip(batch["index"].tolist(), outputs.float().cpu().numpy(), strict=True):
            write_cloud(folder / f"{part.ids[i]}.ply", part.to_file_units(i, points))

    def pictures(self, folder: Path, rows: Rows, part: Part) -> None:
        """Three samples: what came in, what was made of it, and the whole."""
        arrays, made = self.few(part)
        parts = {"partial": arrays["points"], "completed": made, "whole": arrays["target"]}
        shown = [
            {title: (clouds[i], np.full(clouds.shape[1], k)) for k, (title, clouds) in enumerate(parts.items())}
            for i in range(len(made))
        ]
        plots.clouds(folder / "clouds.png", shown, list(parts))

    def trivial(self, train: Part, part: Part) -> Rows:
        """The partial cloud itself, as it came in."""
        rows = []
        for arrays in part_batches(part, 16):
            batch = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
            rows.append(self.outputs_to_rows(batch["points"], batch))
        return with_ids(part, {name: np.concatenate([r[name] for r in rows]) for name in rows[0]})


def some(name: str, count: int, clouds: Tensor) -> Tensor:
    """`count` points of clouds (B, N, 3), at places drawn by `name` and N."""
    places = generator("emd", name).permutation(clouds.shape[1])[:count]
    return clouds[:, torch.from_numpy(places).to(clouds.device)]
