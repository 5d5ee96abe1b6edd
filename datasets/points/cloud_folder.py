"""Your own point clouds: a folder of files, in folders by class or with labels for their points.

    zoo train point_ssm/cloud-folder data.root=FOLDER
    FOLDER/<class>/any/folders/<file>       classification and completion; any format that `cloud_reader.py` reads
    FOLDER/any/folders/<file>               segmentation: label masks; clouds or meshes with a column `label`; or any
                                            with one label per point or vertex beside it, a line each, in <name>.seg
    FOLDER/groups.csv                       optional: columns file,group; what must not cross the split (a patient);
                                            and, for a split of your own, a third column, split: train, valid or test

Without groups.csv every file is a group of its own. Whole groups are divided 70/10/20 by `split_seed`. Meshes become
`surface_points` points drawn uniformly over their area. Completion takes the nearest 20 % of the points around a random
one away. `features=true` takes the columns besides x, y, z and label along, which then every file must have; normals
(nx, ny, nz) turn with the points. Labels of points are whole numbers, -1 for none, each met in the training part.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from ...zoo.data.base import Part
from ...zoo.data.cloud_pack import Item
from ...zoo.data.cloud_reader import NAN_POINTS, READERS, SURFACE_POINTS, stem, suffix
from ...zoo.data.cloud_sample import write_folder
from ...zoo.data.cloud_table import read_records
from ...zoo.data.clouds import PointClouds
from ...zoo.data.spec import Spec
from ...zoo.data.splits import by_group
from ...zoo.errors import BadArgument, ZooError, unknown

FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}
PARTS = ("", *FRACTIONS)


class CloudFolder(PointClouds):
    """Your own point clouds, meshes or label masks: a folder by class, or with labels per point."""

    tasks = ("classification", "segmentation", "completion")
    group = "group of groups.csv, else the file"
    license = "that of the data"
    tables = ("groups.csv",)

    def __init__(
        self,
        *,
        split_seed: int = 0,
        surface_points: int = SURFACE_POINTS,
        surface_seed: int = 0,
        background: int = 0,
        nan_points: Literal["refuse", "drop"] = "refuse",
        **clouds,
    ):
        """`split_seed` divides the groups; `surface_points` are drawn from a mesh, by `surface_seed`.

        `background`: the label of voxels of a mask that belong to nothing; those that are NaN never do. `nan_points`:
        points with NaN in place of a number are refused, or dropped and counted.
        """
        super().__init__(**clouds)
        if nan_points not in NAN_POINTS:
            raise unknown("data.nan_points", nan_points, NAN_POINTS, where=self.name)
        if surface_points < 1:
            raise BadArgument(f"{self.name}: data.surface_points={surface_points}; draw at least 1 point from a mesh")
        self.split = "by-group"
        self.split_seed, self.surface_points, self.surface_seed = split_seed, surface_points, surface_seed
        self.background, self.nan_points = background, nan_points

    def read_settings(self) -> dict:
        """Points drawn from a mesh, the background of masks, and what becomes of NaN."""
        names = ("surface_points", "surface_seed", "background", "nan_points")
        return {name: getattr(self, name) for name in names}

    def source_files(self) -> tuple[str, ...]:
        """Every file below the folders (of segmentation: below the root) that is not hidden, and groups.csv."""
        every = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.folder).parts)
        )
        inside = [
            name
            for name in every
            if "/" in name or (self.task == "segmentation" and (_is_cloud(name) or name.endswith(".seg")))
        ]
        groups = ["groups.csv"] if "groups.csv" in every else []
        return (*groups, *(inside or ["<class>/<file>"]))

    def remedy(self) -> str:
        """How the folder should look."""
        return "set data.root=FOLDER with <class>/<file> below it, or add --sample to try the command"

    def items(self) -> list[Item]:
        """One item per cloud; a file that is neither a cloud nor the labels of one is refused."""
        files = [PurePosixPath(name) for name in self.source_files() if name != "groups.csv"]
        groups, labels, items = self._groups(), {}, {}
        for file in files:
            if file.suffix == ".seg":
                labels[str(file.with_suffix(""))] = str(file)
            elif not _is_cloud(file.name):
                raise ZooError(
                    f"{self.folder / file}: no point cloud ({', '.join(READERS)}); take it out of the folder"
                )
        for file in files:
            if file.suffix == ".seg":
                continue
            name = str(file.parent / stem(Path(file)))
            if name in items:
                raise ZooError(f"{self.folder / file}: repeats the name of {items[name].cloud}; rename one of the two")
            row = groups.pop(str(file), None) if groups is not None else (name, "")
            if row is None:
                raise ZooError(f"{self.folder / 'groups.csv'}: has no row for {file}; add one")
            label = labels.pop(name, "")
            segments = self.task == "segmentation"
            category, label = ("", label) if segments else (file.parts[0], "")
            items[name] = Item(name, row[0], str(file), category, PARTS.index(row[1]), label)
        for name in labels.values():
            raise ZooError(f"{self.folder / name}: labels without a cloud of that name beside them; add it")
        for name in groups or ():
            if self.task == "segmentation" or "/" in name:
                raise ZooError(f"{self.folder / 'groups.csv'}: names {name}, which is not there; mend the row")
        return [items[name] for name in sorted(items)]

    def _groups(self) -> dict[str, tuple[str, str]] | None:
        """Group and part (or "") of each file in groups.csv."""
        table = self.folder / "groups.csv"
        if not table.is_file():
            return None
        found = {}
        for number, row in read_records(table):
            if not row.get("file") or not row.get("group"):
                raise ZooError(f"{table}: row {number}: needs columns file and group, both filled; mend the row")
            part = row.get("split", "")
            if part not in PARTS or ("split" in row and not part):
                raise ZooError(
                    f"{table}: row {number}: its split is '{part}', not train, valid or test; mend the row, or leave "
                    "the column out"
                )
            if row["file"] in found:
                raise ZooError(f"{table}: row {number}: {row['file']} has a row above; take one of the two out")
            found[row["file"]] = row["group"], part
        return found

    def places(self, items: list[Item]) -> dict[str, np.ndarray]:
        """As groups.csv says, or whole groups by `split_seed`; every class must be met in training."""
        if items[0].fold:
            places = self._own_places(items)
        else:
            places = by_group([item.group for item in items], FRACTIONS, self.split_seed)
        missing = {item.category for item in items} - {items[i].category for i in places["train"]}
        if missing:
            raise ZooError(
                f"{self.folder}: class '{min(missing)}' has no cloud in the train part; give more clouds, or another "
                "data.split_seed"
            )
        return places

    def _own_places(self, items: list[Item]) -> dict[str, np.ndarray]:
        table = self.folder / "groups.csv"
        if self.split_seed:
            raise BadArgument(
                f"{self.name}: data.split_seed={self.split_seed}, but {table} gives the split; choose one"
            )
        self.split = "own"
        part = np.array([item.fold for item in items])
        places = {name: np.flatnonzero(part == PARTS.index(name)) for name in FRACTIONS}
        for name, place in places.items():
            if not len(place):
                raise ZooError(f"{table}: its split has no file in {name}; give some to train, valid and test each")
        return places

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """As for all clouds; labels of points must be two at least, and every one be met in training."""
        spec, parts = super().build()
        if self.task == "segmentation":
            met = parts["train"].label_counts(len(spec.outputs.classes))
            if len(met) < 2:
                have = f"is {spec.outputs.classes[0]}" if len(met) else "is missing"
                raise ZooError(f"{self.folder}: every label of a point {have}; segmentation needs two labels at least")
            for part in parts.values():
                for i, name in enumerate(part.ids):
                    if not part.has_labels(i):
                        raise ZooError(f"{self.folder / name}: no point of this cloud has a label; take it out")
            if not met.all():
                never = spec.outputs.classes[int(np.argmin(met))]
                raise ZooError(
                    f"{self.folder}: label {never} occurs in no cloud of the train part; give more clouds, or another "
                    "split"
                )
        return spec, parts

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """Organs of four classes as PLY and XYZ with labels beside them, and groups.csv."""
        write_folder(folder, seed)


def _is_cloud(name: str) -> bool:
    return suffix(Path(name)) in READERS
