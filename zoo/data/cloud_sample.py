"""The embedded samples of the point-cloud adapters: the anatomy of `cloud_shapes.py` in each source's layout."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..seeding import generator
from .cloud_layout import FOLDS, write_labels
from .cloud_part import without_nearest
from .cloud_shapes import BONES, ORGANS, VARIATION, Patient, Varied, bent_body, draw_points, tube, worn
from .ply import write_ply

#: points of a cloud: between these two, some fewer than the tiny preset draws
FEWEST, MOST = 200, 700


def write_medpoints(
    folder: Path,
    classes: Mapping[str, Sequence[int]],
    seed: int = 0,
    *,
    patients: int = 50,
    variation: float = VARIATION,
) -> None:
    """MedPointS's three sets: for each patient 10 of the 14 organs one by one, whole and in part, and a posed body.

    `classes` in the order of the coarse labels from 1, each with its fine labels: an organ gets the first on one side
    of the body and the last on the other. A patient is in one fold of all three.
    """
    names = list(ORGANS)
    coarse = np.array([list(classes).index(name) + 1 for name in names])
    first, last = (np.array([classes[name][end] for name in names]) for end in (0, -1))
    for number in range(patients):
        patient = Patient(seed, f"s{number:04d}", variation)
        rng, fold = generator(seed, "patient-files", number), f"fold{number % len(FOLDS) + 1}"
        for name in sorted(rng.permutation(names)[:10].tolist()):
            cloud = patient.cloud(name, int(rng.integers(FEWEST, MOST)))
            part = cloud[without_nearest(cloud, rng)]
            for top, xyz in (("classification", cloud), ("completion", part), ("completion", cloud)):
                role = {"classification": ""}.get(top, "partial" if xyz is part else "target")
                _write(folder / top / fold / role / name / f"{patient.name}.ply", xyz)
        xyz, organ = patient.body(names, 1536)
        _write(folder / "segmentation" / fold / "pcd" / f"{patient.name}.ply", xyz)
        fine = np.where(xyz[:, 0] > 0, last[organ], first[organ])
        for kind, label in (("coarse", coarse[organ]), ("fine", fine)):
            labels = folder / "segmentation" / fold / f"{kind}_label"
            labels.mkdir(parents=True, exist_ok=True)
            write_labels(labels / f"{patient.name}.seg", label)


def write_bones(
    folder: Path, classes: Sequence[str], seed: int = 0, *, models: int = 60, variation: float = VARIATION
) -> None:
    """Anatomy-bones: of each model (a person or an animal) five of the ten bones, left or right, and metadata.csv."""
    rows = []
    for number in range(models):
        rng, fold, group = generator(seed, "bones", number), number % len(FOLDS) + 1, f"model_{number:03d}"
        for name in sorted(rng.permutation(np.array(classes))[:5].tolist()):
            v, side = Varied(rng, variation), "LR"[rng.integers(2)]
            xyz = worn(draw_points(BONES[name](v), int(rng.integers(FEWEST, MOST)), rng), rng, variation)
            xyz = xyz * [1 if side == "L" else -1, 1, 1] * (0.001 if number % 3 == 0 else 1)  # some in metres
            identity = f"{group}_{name}_{side.lower()}"
            _write(folder / "classification" / f"fold{fold}" / name / f"{identity}.ply", xyz)
            rows.append(
                {"id": identity, "set": "classification", "fold": fold, "cls": name, "side": side, "group": group}
            )
    _write_table(folder / "metadata.csv", rows)


def write_hippocampi(folder: Path, seed: int = 0, *, subjects: int = 60, variation: float = VARIATION) -> None:
    """MSD hippocampus parts: bent bodies of 700 points, 0 in the head and 1 behind it, and metadata.csv."""
    rows = []
    for number in range(subjects):
        rng, fold, name = generator(seed, "hippocampi", number), number % len(FOLDS) + 1, f"hippocampus_{number:03d}"
        path, radius, head = bent_body(Varied(rng, variation))
        xyz = tube(path, radius).draw(rng, MOST)
        nearest = np.square(xyz[:, None] - path).sum(2).argmin(1)
        label = (nearest >= head * len(path)).astype(int)
        top = folder / "segmentation" / f"fold{fold}"
        _write(top / "pcd" / f"{name}.ply", worn(xyz, rng, variation))
        (top / "coarse_label").mkdir(parents=True, exist_ok=True)
        write_labels(top / "coarse_label" / f"{name}.seg", label)
        rows.append(
            {"id": name, "fold": fold, "points_anterior": int((label == 0).sum()), "points_posterior": int(label.sum())}
        )
    _write_table(folder / "metadata.csv", rows)


def write_folder(folder: Path, seed: int = 0, *, patients: int = 40, variation: float = VARIATION) -> None:
    """Four organs of each patient by class, as PLY with a feature and the label of the upper half, and groups.csv."""
    rows = []
    for number in range(patients):
        patient, rng = Patient(seed, f"p{number:03d}", variation), generator(seed, "folder", number)
        for name in ("femur", "kidney", "liver", "vertebrae"):
            xyz = patient.cloud(name, int(rng.integers(FEWEST, MOST)))
            upper = (xyz[:, 2] > np.median(xyz[:, 2])).astype(int)
            distance = np.linalg.norm(xyz - xyz.mean(0), axis=1)
            _write(folder / name / f"{patient.name}.ply", xyz, distance=distance, label=upper)
            rows.append({"file": f"{name}/{patient.name}.ply", "group": patient.name})
    _write_table(folder / "groups.csv", rows)


def _write(file: Path, xyz: np.ndarray, **columns: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_ply(file, xyz, **columns)


def _write_table(file: Path, rows: list[dict]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
