"""Anatomy-bones: 360 surfaces of ten bones (and the hippocampus) of 131 people and animals, as point clouds.

4,096 points a cloud, drawn uniformly over the area of meshes from ten public sources (VSD, STAPLE, OpenSim, Visible
Human, dog, rat, mouse and knee models, Medical Segmentation Decathlon). Left and right are one class, and so are
species. Layout: `metadata.csv` and `classification/fold{1..5}/<class>/<id>.ply`; the group is the source model (person
or animal), of which no two folds share one. Units and scale differ by source and are not kept (`cloud_pack.py`).

Two classes are easy: the skulls are nearly all mice, the hippocampi come from MRI. A 5-nearest-neighbour classifier on
distance histograms (D2) reaches 0.919 accuracy over the five folds. Completion takes the nearest 20 % of the points
around a random one away; category is the bone.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ...zoo.data.cloud_layout import FoldedClouds
from ...zoo.data.cloud_pack import Item
from ...zoo.data.cloud_sample import write_bones
from ...zoo.data.cloud_table import read_records
from ...zoo.errors import ZooError


class AnatomyBones(FoldedClouds):
    """Ten bones of people and animals, 360 real surfaces as point clouds, folds by person."""

    tasks = ("classification", "completion")
    group = "source model (person or animal)"
    license = "research only: the strictest of its parts (CC BY-NC-SA 4.0, and parts without redistribution)"
    citation = (
        "Fischer, Database of segmentations and surface models of bones of the entire lower body, Sci Data 10:763, "
        "2023; Modenese and Renault, J Biomech 116:110186, 2021; and the other sources named in metadata.csv"
    )
    homepage = "https://github.com/MCM-Fischer/VSDFullBodyBoneModels"
    files = {"metadata.csv": "13e917b99b79326d41d41c15881dbc50fbb7bd3b778619c14d8c7d93695d9b1d"}
    content = dict.fromkeys(
        ("classification", "completion"), "568d3e2e22ce915e6a9b19cbf96cce9b50bbe77364e773214d2216911b3c75d8"
    )
    layout = {"classification": ("classification", ()), "completion": ("classification", ())}
    tables = ("metadata.csv",)
    classes = (
        *("calcaneus", "femur", "fibula", "hip_bone", "hippocampus"),
        *("patella", "sacrum", "skull", "talus", "tibia"),
    )

    def items(self) -> list[Item]:
        """The clouds, with what metadata.csv says about them: every cloud has its row, every row its cloud."""
        table = self.folder / "metadata.csv"
        known: dict[str, tuple[int, dict[str, str]]] = {}
        for number, row in read_records(table):
            missing = {"id", "set", "cls", "fold", "group"} - set(row)
            if missing or row["id"] in known:
                what = f"no column '{min(missing)}'" if missing else f"{row['id']} has a row above"
                raise ZooError(f"{table}: row {number}: {what}; get the data again")
            if row["set"] == "classification":
                known[row["id"]] = number, row
        self._rows = known
        items = super().items()
        here = {PurePosixPath(item.cloud).stem: item for item in items}
        for name, (number, row) in known.items():
            item = here.get(name)
            if item is None or (item.category, str(item.fold)) != (row["cls"], row["fold"]):
                where = "is missing" if item is None else f"lies in fold{item.fold}/{item.category}"
                raise ZooError(
                    f"{table}: row {number}: {name}, {row['cls']} of fold {row['fold']}, {where}; get the data again"
                )
        return items

    def group_of(self, cloud: PurePosixPath) -> str:
        """The source model."""
        if cloud.stem not in self._rows:
            raise ZooError(f"{self.folder / cloud}: has no row in metadata.csv; get the data again")
        return self._rows[cloud.stem][1]["group"]

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """60 models with five of the ten bones each, in the source's layout."""
        write_bones(folder, self.classes, seed)
