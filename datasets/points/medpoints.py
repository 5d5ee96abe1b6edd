"""MedPointS: organs, bones and vessels of about a thousand patients as point clouds, in 46 classes.

Source: G. Zhang, J. Yang and Y. Li, Hierarchical Feature Learning for Medical Point Clouds via State Space Model,
MICCAI 2025, arXiv:2504.13015; made from MedShapeNet. Three sets: classification, 28,737 clouds of at most 16,384
points, the parts of an organ and both sides of the body together; completion, the same clouds whole and without the
nearest 20 % of the points around a random one; segmentation, 1,020 patients of 65,536 points, coarse labels 1 to 46 and
fine ones 1 to 145 (0: none).

What is read are the full PLYs, in the layout of `cloud_layout.py`. The sets of the Hugging Face hub
(wlsdzyzl/MedPointS-{cls,cpl,seg}) are not: by the script that made them they hold normalised clouds of 2,048 or 4,096
points, drawn once and for all, and labels, with neither patient nor fold, so that no split could keep patients apart.

Splits. `official`: folds 1 to 3 train, 4 validates, 5 tests, as published. The group is the patient, whose name is the
file's stem. Whether the published folds of classification and completion keep patients apart is not documented, and
the authors' scripts split each class on its own (`<class>/fold1`, scripts/random_split_k_fold.py), which scatters a
patient's organs over the folds. Where patients cross, `official` therefore fails and says so; `official-crossing` takes
the folds as they are and counts the patients, for comparison with published numbers; `by-patient` divides the patients
60/20/20. Clavicle and clavicula, costa and rib are separate classes from two sources; they overlap in meaning.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from ...zoo.data.base import Part
from ...zoo.data.cloud_layout import FoldedClouds, by_fold
from ...zoo.data.cloud_pack import Item
from ...zoo.data.cloud_sample import write_medpoints
from ...zoo.data.splits import assert_disjoint, by_group
from ...zoo.errors import BadArgument, ZooError, unknown

#: clouds of each class of the published classification set, in the order of the labels 1 to 46
CLOUDS = {
    **{"adrenalgland": 947, "aorta": 1025, "autochthon": 1004, "bladder": 643, "brain": 329, "breast": 265},
    **{"bronchie": 277, "celiactrunk": 277, "cheek": 269, "clavicle": 277, "colon": 921, "costa": 277, "duodenum": 849},
    **{"esophagus": 1019, "eyeball": 275, "femur": 661, "gallbladder": 791, "gluteusmaximus": 682, "heart": 1016},
    **{"hip": 690, "humerus": 817, "iliacartery": 696, "iliacvena": 686, "iliopsoas": 876, "inferiorvenacava": 1019},
    **{"kidney": 915, "liver": 1018, "lung": 1021, "mediastinaltissue": 276, "pancreas": 638},
    **{"portalveinandsplenicvein": 672, "smallbowel": 558, "spleen": 719, "stomach": 729, "thymus": 122},
    **{"thyroid": 271, "trachea": 814, "uterocervix": 151, "uterus": 249, "vertebrae": 1024, "gonads": 108},
    **{"sacrum": 396, "clavicula": 517, "pulmonaryartery": 592, "rib": 747, "scapula": 612},
}
PATIENTS = 1020  # of the segmentation set
SIDES = ("left", "right")
SIDED = (
    *("adrenalgland", "autochthon", "breast", "cheek", "clavicle", "clavicula", "eyeball", "femur", "hip", "humerus"),
    *("iliacartery", "iliacvena", "iliopsoas", "kidney", "scapula", "thyroid"),
)
#: the fine classes that a coarse one consists of, where it is not one of them itself
PARTS = {
    **{name: [name + side for side in SIDES] for name in SIDED},
    "costa": [f"costa{number}{side}" for number in range(1, 13) for side in SIDES],
    "gluteusmaximus": [f"gluteus{part}{side}" for part in ("maximus", "medius", "minimus") for side in SIDES],
    "heart": [f"heart{part}{side}" for part in ("atrium", "ventricle") for side in SIDES]
    + ["heartmyocardium", "hearttissue"],
    "lung": [f"lung{part}lobe{side}" for part in ("lower", "upper") for side in SIDES] + ["lungmiddleloberight"],
    "rib": [f"rib{side}{number}" for number in range(1, 13) for side in SIDES],
    "vertebrae": [f"vertebrae{part}{number + 1}" for part, n in (("C", 7), ("L", 5), ("T", 12)) for number in range(n)],
}


def _fine(classes: list[str]) -> list[str]:
    return sorted(part for name in classes for part in PARTS.get(name, [name]))


#: fine classes in the order of the labels 1 to 145: those of coarse labels up to 41 by name, sacrum, the others by name
FINE = (*_fine([*CLOUDS][:41]), *_fine([*CLOUDS][41:42]), *_fine([*CLOUDS][42:]))


class MedPointS(FoldedClouds):
    """Organs, bones and vessels from MedShapeNet as point clouds: 46 classes, three tasks."""

    tasks = ("classification", "segmentation", "completion")
    group = "patient"
    license = "that of MedShapeNet and its sources: research, non-commercial; see the homepage"
    citation = (
        "Zhang, Yang and Li, Hierarchical Feature Learning for Medical Point Clouds via State Space Model, "
        "MICCAI 2025, arXiv:2504.13015"
    )
    homepage = "https://flemme-docs.readthedocs.io/en/latest/medpoints.html"
    classes = tuple(CLOUDS)
    label_values = tuple(range(1, len(CLOUDS) + 1))

    def __init__(
        self,
        *,
        split: Literal["official", "official-crossing", "by-patient"] = "official",
        labels: Literal["coarse", "fine"] = "coarse",
        **clouds,
    ):
        """`split`: the published folds where they keep patients apart, or (`-crossing`) as they are, or our own.

        `labels` of segmentation: the 46 coarse ones or the 145 fine ones.
        """
        super().__init__(split=split, **clouds)
        if labels not in ("coarse", "fine"):
            raise unknown("labels", labels, ("coarse", "fine"), where=self.name)
        if labels == "fine" and self.task != "segmentation":
            raise BadArgument(f"{self.name}: data.labels=fine is for segmentation, not for {self.task}; leave it out")
        self.layout = self.layout | {"segmentation": ("segmentation", ("pcd", f"{labels}_label"))}
        self.labels = labels
        if labels == "fine":
            self.label_values = tuple(range(1, len(FINE) + 1))

    @property
    def split_name(self) -> str:
        """The split, and that labels are fine where they are: they have boards of their own."""
        return self.split if self.labels == "coarse" else f"{self.split}-fine"

    def splits(self) -> tuple[str, ...]:
        """Valid values of `split`."""
        return "official", "official-crossing", "by-patient"

    def part_names(self, values: list[int]) -> tuple[str, ...]:
        """The coarse classes, which are those of whole clouds, or the fine ones."""
        return self.classes if self.labels == "coarse" else FINE

    def places(self, items: list[Item]) -> dict[str, np.ndarray]:
        """By the published folds, or by patient."""
        if self.split == "by-patient":
            return by_group([item.group for item in items], {"train": 0.6, "valid": 0.2, "test": 0.2})
        return by_fold(items, test=5, valid=4)

    def assert_no_leakage(self, parts: dict[str, Part]) -> None:
        """No patient is in two parts, or no cloud where the split says that patients may be."""
        occurs = Counter(patient for part in parts.values() for patient in set(part.groups.tolist()))
        self.counts["patients_in_several_parts"] = sum(count > 1 for count in occurs.values())
        if self.split == "official-crossing":
            assert_disjoint({name: part.ids for name, part in parts.items()}, "cloud")
            return
        try:
            super().assert_no_leakage(parts)
        except ZooError as error:
            raise ZooError(
                f"{self.key}: {error}: data.split=by-patient does, data.split=official-crossing takes the folds as "
                "they are and counts the patients"
            ) from error

    def check(self) -> dict:
        """As for every adapter, and the published counts."""
        facts = super().check()
        if not self.is_sample:
            wanted = {"patients": PATIENTS} if self.task == "segmentation" else CLOUDS
            have = {"patients": self.counts["groups"]} if self.task == "segmentation" else self.per_class
            for name, count in wanted.items():
                if have[name] != count:
                    raise ZooError(
                        f"{self.folder}: {have[name]} clouds of {name} for {self.task}, published are {count} "
                        f"({sum(have.values())} and {sum(wanted.values())} in all); complete the download"
                    )
        return facts

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """50 patients with ten of 14 organs each, and their bodies, for all three tasks, in the source's layout."""
        number = {name: label for label, name in enumerate(FINE, 1)}
        write_medpoints(folder, {name: [number[p] for p in PARTS.get(name, [name])] for name in self.classes}, seed)
