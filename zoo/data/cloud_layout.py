"""Point clouds in the layout of MedPointS (https://github.com/wlsdzyzl/flemme): five folds as folders.

    classification/fold{1..5}/<class>/<id>.ply
    completion/fold{1..5}/{partial,target}/<class>/<id>.ply
    segmentation/fold{1..5}/{pcd,coarse_label,fine_label}/<id>.{ply,seg}

The published archives have some of these folders in another order (`<class>/fold1`); any order is read. Other folders
of a segmentation (colorized_pcd, and labels of the kind that was not asked for) are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from ..errors import ZooError, unknown
from .cloud_pack import Item
from .cloud_reader import stem
from .clouds import PointClouds

FOLDS = (1, 2, 3, 4, 5)
SUFFIXES = {"coarse_label": ".seg", "fine_label": ".seg"}


class FoldedClouds(PointClouds):
    """Base of adapters in this layout: fold k is tested, the next one validates, the other three train.

    Split names are `fold1` to `fold5`; together the five test parts hold every sample once.
    """

    #: task -> its top folder, and the folders of roles below it
    layout: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {
        "classification": ("classification", ()),
        "completion": ("completion", ("partial", "target")),
        "segmentation": ("segmentation", ("pcd", "coarse_label")),
    }
    #: classes of clouds, of which a sample need not have all
    classes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, split: Literal["fold1", "fold2", "fold3", "fold4", "fold5"] = "fold1", **clouds):
        """`split`: the fold that is tested."""
        super().__init__(**clouds)
        self.split = split
        if split not in self.splits():
            raise unknown("split", split, self.splits(), where=self.name)

    def splits(self) -> tuple[str, ...]:
        """Valid values of `split`."""
        return tuple(f"fold{fold}" for fold in FOLDS)

    def group_of(self, cloud: PurePosixPath) -> str:
        """What must not cross a split, of a cloud's file; the file's stem unless the source says more."""
        return cloud.stem

    def category_names(self, items: list[Item]) -> tuple[str, ...]:
        """The classes of the source, whether or not they occur."""
        return self.classes

    def sample_id(self, file: Path, folder: Path) -> str:
        """`<class>/<file>` by the nearest folder above that is named as a class; of a segmentation `<file>`."""
        above = [parent.name for parent in file.absolute().parents if parent.name in self.classes]
        return "/".join([*(above[:1] if self.task != "segmentation" else ()), stem(file)])

    def source_files(self) -> tuple[str, ...]:
        """The files of the task (where there are none: the folders that should hold them), and `files`."""
        top, roles = self.layout[self.task]
        found = sorted(
            path.relative_to(self.folder).as_posix()
            for path in (self.folder / top).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        if self.task == "segmentation":
            found = [name for name in found if set(roles) & set(PurePosixPath(name).parts)]
        return (*self.files, *(found or [f"{top}/fold{fold}" for fold in FOLDS]))

    def items(self) -> list[Item]:
        """One item per cloud, by the folders it lies in."""
        roles = self.layout[self.task][1]
        found: dict[str, dict[str, Item]] = {role: {} for role in roles or ("",)}
        for name in self.source_files():
            if name not in self.files:
                role, item = self._item(PurePosixPath(name), roles)
                if item.id in found[role]:
                    raise ZooError(
                        f"{self.folder / name}: repeats '{item.id}' of {found[role][item.id].cloud}; "
                        "one of the two is to go, or to be renamed"
                    )
                found[role][item.id] = item
        items, other = (found[role] for role in roles) if roles else (found[""], None)
        if other is not None:
            beside = "target" if self.task == "completion" else "label"
            items = {name: self._joined(item, other.pop(name, None), beside) for name, item in items.items()}
            for item in other.values():
                raise ZooError(f"{self.folder / item.cloud}: has no cloud in {roles[0]}/; complete the data")
        self._check_folds(items.values())
        return [items[name] for name in sorted(items)]

    def _item(self, file: PurePosixPath, roles: tuple[str, ...]) -> tuple[str, Item]:
        fold, role, rest = 0, "", []
        for part in file.parts[1:-1]:
            if number := re.fullmatch(r"fold([1-5])", part):
                fold = int(number[1])
            elif part in roles:
                role = part
            else:
                rest.append(part)
        where = self.folder / file
        wanted = 0 if self.task == "segmentation" else 1
        if not fold or bool(roles) != bool(role) or len(rest) != wanted:
            folders = "/".join(["fold1..5", *(["|".join(roles)] if roles else []), *["<class>"] * wanted])
            raise ZooError(f"{where}: lies in {'/'.join(file.parts[:-1])}, not in {file.parts[0]}/{folders}; move it")
        if rest and rest[0] not in self.classes:
            raise unknown("class folder", rest[0], self.classes, where=str(where.parent))
        if file.suffix != SUFFIXES.get(role, ".ply"):
            raise ZooError(f"{where}: is no {SUFFIXES.get(role, '.ply')} file; take it out of the folder")
        name = "/".join([*rest, file.stem])
        return role, Item(name, self.group_of(file), file.as_posix(), "".join(rest), fold)

    def _joined(self, item: Item, other: Item | None, beside: str) -> Item:
        if other is None:
            raise ZooError(
                f"{self.folder / item.cloud}: has no file of its name in {self.layout[self.task][1][1]}/; add it"
            )
        if other.fold != item.fold:
            raise ZooError(
                f"{self.folder / item.cloud}: is in fold {item.fold}, its {beside} in {other.fold}; move one"
            )
        return item._replace(**{beside: other.cloud})

    def _check_folds(self, items: Iterable[Item]) -> None:
        missing = set(FOLDS) - {item.fold for item in items}
        if missing:
            top = self.folder / self.layout[self.task][0]
            raise ZooError(
                f"{top}: fold{min(missing)} holds no cloud; complete the data, or use cloud-folder for your own"
            )

    def places(self, items: list[Item]) -> dict[str, np.ndarray]:
        """Test, validation and training samples by fold."""
        test = int(self.split[-1])
        return by_fold(items, test=test, valid=test % len(FOLDS) + 1)


def by_fold(items: list[Item], test: int, valid: int) -> dict[str, np.ndarray]:
    """Numbers of the items of each part."""
    fold = np.array([item.fold for item in items])
    return {
        "train": np.flatnonzero((fold != test) & (fold != valid)),
        "valid": np.flatnonzero(fold == valid),
        "test": np.flatnonzero(fold == test),
    }


def write_labels(file: Path, label: np.ndarray) -> None:
    """A `.seg` file: one label per line."""
    np.savetxt(file, label, fmt="%d")
