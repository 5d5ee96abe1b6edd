"""Point clouds: the adapter base. What a batch holds depends on the task (`cloud_part.py`), which the recipe tells."""

from __future__ import annotations

import os
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ..errors import BadArgument, ZooError, unknown
from ..files import hash_json, read_json, write_json
from .base import Dataset, Part
from .cloud_columns import Cloud
from .cloud_pack import Item, pack, read_item
from .cloud_part import Clouds, Drawing, normal_columns
from .cloud_reader import READERS, stem, suffix
from .spec import Inputs, Outputs, Spec, Tensor

CODE_VERSION = 4  # raise when reading or packing changes: cached arrays are then made anew
POINTS = {"classification": 2048, "segmentation": 4096, "completion": 2048}
ROTATIONS = ("none", "z", "so3")


class PointClouds(Dataset):
    """Base of the point-cloud adapters: a subclass lists its samples and says which part each belongs to."""

    domain = "points"
    kind = "points"
    #: batches depend on the task, which is an argument of the constructor
    by_task: ClassVar[bool] = True
    tiny = {"points": 256}
    added_later = {"farthest": False}
    #: task -> SHA-256 over names and hashes of the files read for it, where there is one published copy
    content: ClassVar[dict[str, str]] = {}
    #: labels in files of labels, in the order of the class names; None: those that are found
    label_values: ClassVar[tuple[int, ...] | None] = None
    #: suffixes of the files that `read` understands, for predicting on a folder
    reads: ClassVar[tuple[str, ...]] = tuple(READERS)
    #: files beside the clouds that are none, though their suffix might be one's
    tables: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        root: Path | str | None = None,
        subset: str | None = None,
        task: Literal["classification", "segmentation", "completion"] | None = None,
        points: int | None = None,
        replace: bool = False,
        farthest: bool = False,
        rotate: Literal["none", "z", "so3"] = "none",
        own_frames: bool = False,
        features: bool = False,
    ):
        """What is drawn from each cloud.

        `task`: one of the adapter's, default its first. `points` per sample, default 2,048 (segmentation 4,096).
        `farthest`: points far from each other in place of random ones, so that they cover the cloud. `rotate`: turn
        training clouds at random, about z or in all ways. `features`: take the files' further columns along. Quirks of
        the original loader of MedPointS: `replace` draws points with replacement; `own_frames` gives the target of
        completion a frame of its own, so that it does not lie where the partial cloud does.
        """
        super().__init__(root=root, subset=subset)
        self.task = task or self.tasks[0]
        if self.task not in self.tasks:
            raise unknown("task", self.task, self.tasks, where=f"data set {self.name}")
        if rotate not in ROTATIONS:
            raise unknown("rotation", rotate, ROTATIONS, where=self.name)
        if own_frames and self.task != "completion":
            raise BadArgument(f"{self.name}: data.own_frames is for completion, not for {self.task}; leave it out")
        if replace and farthest:
            raise BadArgument(f"{self.name}: data.replace and data.farthest are two ways to draw points; choose one")
        self.points = POINTS[self.task] if points is None else points
        if self.points < 1:
            raise BadArgument(f"{self.name}: data.points={points}; draw at least 1 point from each cloud")
        self.features, self.rotate = features, rotate
        self.how = Drawing(self.task, self.points, replace, farthest, rotate, own_frames)
        self._files: dict[str, str] | None = None
        self._scaler: dict | None = None

    # what a subclass implements -----------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """All samples of the task, whichever part they belong to."""
        raise TypeError(f"{type(self).__name__} does not implement items()")

    def places(self, items: list[Item]) -> dict[str, np.ndarray]:
        """Numbers of the items of `train`, `valid` and `test`."""
        raise TypeError(f"{type(self).__name__} does not implement places()")

    def category_names(self, items: list[Item]) -> tuple[str, ...]:
        """Classes of whole clouds."""
        return tuple(sorted({item.category for item in items}))

    def part_names(self, values: list[int]) -> tuple[str, ...]:
        """Classes of points, for their labels."""
        return tuple(map(str, values))

    def read_settings(self) -> dict:
        """What `read` depends on beyond the files and the task, such as `surface_points`."""
        return {}

    def read(self, item: Item) -> Cloud:
        """The cloud of an item, and the labels of its points where the task is segmentation.

        Override it for a format of your own, or for files that hold several clouds: `items()` then names the file in
        `Item.cloud` as often as it needs to, and the cloud within it by `Item.id`. For completion it is called with
        each target, too, as `Item.cloud`. What it returns is checked as the zoo's own readers' clouds are. A change of
        the file that defines it, or of an argument of your own, makes the cached arrays anew.
        """
        labelled = self.task == "segmentation"
        return read_item(self.folder, item, labelled=labelled, **self.read_settings())

    def new_items(self, files: list[Path]) -> list[Item]:
        """Items of files to predict on, relative to `folder`; override it beside `read` where files hold several."""
        return [Item((file.parent / stem(file)).as_posix(), str(file), file.as_posix()) for file in files]

    # what every adapter has ---------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, str]:
        """SHA-256 per file, taken once."""
        if self._files is None:
            self._files = super().manifest()
        return dict(self._files)

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Read the clouds once into the cache, split, and count."""
        files, items = self.manifest(), self.items()
        settings = {
            "labelled": self.task == "segmentation",
            "values": None if self.label_values is None else list(self.label_values),
            "features": self.features,
        }
        key = {"files": files, "items": [list(item) for item in items], "code": CODE_VERSION, **settings}
        key |= self.read_settings()
        own = type(self).read is not PointClouds.read
        arrays, facts = self.cached(key, lambda: pack(self.folder, items, read=self.read, **settings), own)
        places = self.places(items)
        how = replace(self.how, cut=self.task == "completion" and "target" not in arrays)
        if self.features:
            how = self._standardised(arrays, places["train"], facts["features"], how)
        names = self.category_names(items)
        category = np.array([names.index(item.category) if item.category else -1 for item in items], np.int64)
        parts = {
            name: Clouds(arrays, place, items, category, replace(how, carry=name != "train"))
            for name, place in places.items()
        }
        self._count(arrays, facts, items, places, names)
        if self.task != "segmentation":
            return self._spec(names, (), len(facts["features"])), parts
        values = tuple(facts["labels"])
        classes = self.part_names(facts["labels"])
        points = sum(part.label_counts(len(classes)) for part in parts.values()).tolist()
        self.counts["points_without_label"] = len(arrays["label"]) - sum(points)
        self.per_class = dict(zip(classes, points, strict=True))
        return self._spec(classes, () if values == (*range(len(values)),) else values, len(facts["features"])), parts

    def _spec(self, classes: tuple[str, ...], values: tuple[int, ...], features: int) -> Spec:
        tensors = {"points": Tensor((self.points, 3), "float32")}
        sizes = {"in_channels": 3, "num_points": self.points, "num_features": features}
        if features:
            tensors["features"] = Tensor((self.points, features), "float32")
        if self.task == "completion":
            tensors["category"] = Tensor((), "int64")
            sizes |= {"num_categories": len(classes), "target_points": self.points}
        else:
            sizes["num_outputs"] = len(classes)
        return Spec(Inputs("points", tensors), Outputs(classes=classes, values=values), sizes)

    def _standardised(self, arrays: dict, train: np.ndarray, names: list[str], how: Drawing) -> Drawing:
        normals = normal_columns(names)
        total, square, count = 0.0, 0.0, 0
        for i in train:
            rows = arrays["features"][arrays["start"][i] : arrays["start"][i + 1]].astype(np.float64)
            total, square, count = total + rows.sum(0), square + np.square(rows).sum(0), count + len(rows)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0))
        deviation[deviation < 1e-6 * np.maximum(np.abs(mean), 1)] = 1  # a feature that is the same everywhere
        if (
            normals
        ):  # one deviation for the three, so that turned ones are standardised alike; no mean, which would turn
            mean[normals], deviation[normals] = 0, np.sqrt(np.mean(square[normals] / count)) or 1
        self._scaler = {"names": names, "mean": mean.tolist(), "deviation": deviation.tolist()}
        return replace(how, normals=tuple(normals), mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def _count(self, arrays: dict, facts: dict, items: list[Item], places: dict, names: tuple[str, ...]) -> None:
        size, given = np.diff(arrays["start"]), [item.category for item in items]
        known, shared = set(), 0
        for place in places.values():
            mine = [facts["hashes"][i] for i in place]
            shared += sum(one in known for one in mine)
            known.update(mine)
        self.counts = {
            "clouds": len(items),
            "groups": len({item.group for item in items}),
            "fewest_points": int(size.min()),
            "most_points": int(size.max()),
            "clouds_of_fewer_points_than_drawn": int((size < self.points).sum()),
            "repeated_points": facts["repeated_points"],
            "colinear_clouds": facts["colinear_clouds"],
            "exact_duplicates_across_parts": shared,
            **facts["left_out"],
        }
        self.per_class = {name: given.count(name) for name in names} if any(given) else {}

    def slices(self) -> dict[str, Part]:
        """`turned`: the test clouds in random poses, where labels do not turn with them."""
        return {} if self.task == "completion" else {"turned": self.part("test").turned()}

    def check(self) -> dict:
        """As for every adapter; the files' hashes as one, which is compared with the published copy's."""
        facts = super().check()
        facts["files"] = {"count": len(facts["files"]), "sha256": hash_json(facts["files"])}
        wanted = self.content.get(self.task)
        if wanted and not self.is_sample and facts["files"]["sha256"] != wanted:
            raise ZooError(
                f"{self.folder}: the files of {self.task} are not the published ones (SHA-256 over all of them "
                f"{facts['files']['sha256'][:12]}…, not {wanted[:12]}…); get them again, or use cloud-folder for yours"
            )
        unit = "points" if self.task == "segmentation" else "clouds"
        return facts | ({f"{unit}_per_class": self.per_class} if self.per_class else {})

    def save_prep(self, folder: Path) -> None:
        """Mean and deviation of the features, where there are any."""
        if self._scaler:
            write_json(folder / "features.json", self._scaler)

    def inference(self, source: Path, prep: Path) -> Part:
        """The clouds of a file or of a folder and those below it, but hidden ones; for completion, the partial ones.

        For completion each lies below a folder named as its class, which is its category.
        """
        spec, folder = Spec.load(prep), source if source.is_dir() else source.parent
        files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if self._is_cloud(p, source))
        if not files:
            raise ZooError(f"{source}: holds no file of {', '.join(self.reads)}; check the path")
        names = spec.outputs.classes
        reader = copy(self)
        reader.folder = folder
        items = reader.new_items([file.relative_to(folder) for file in files])
        first = {item.id: item.cloud for item in reversed(items)}
        for item in items:
            if first[item.id] != item.cloud:
                raise ZooError(f"{folder / item.cloud}: repeats the name of {first[item.id]}; rename one of the two")
        features = "features" in spec.inputs.tensors
        arrays, facts = pack(folder, items, features=features, read=reader.read)
        if features and facts["features"] != (saved := read_json(prep / "features.json"))["names"]:
            raise ZooError(f"{files[0]}: its features are not {', '.join(saved['names'])} as in training; add them")
        how = replace(self.how, points=spec.inputs.tensors["points"].shape[0], carry=True, rotate="none")
        if features:
            how = replace(how, mean=tuple(saved["mean"]), deviation=tuple(saved["deviation"]))
        category = None
        if self.task == "completion":
            category = np.array([_class_of(folder / item.cloud, names) for item in items], np.int64)
        self.counts = {"clouds": len(items), **facts["left_out"]}
        keys = [self._key(item, folder) for item in items]
        return Clouds(arrays, np.arange(len(items)), items, category, how, keys)

    def _key(self, item: Item, folder: Path) -> str:
        """What the draws of a cloud to predict for are a function of: its id as a sample of this data set."""
        place = Path(item.cloud)
        alone = (place.parent / stem(place)).as_posix()  # a file may hold several clouds, told apart behind its name
        return self.sample_id(folder / item.cloud, folder) + item.id.removeprefix(alone)

    def sample_id(self, file: Path, folder: Path) -> str:
        """The id, but for a suffix, that a file below `folder` has, or would have, as a sample of this data set.

        An adapter whose ids are not the paths of its files overrides it, so that predicting draws as evaluation did.
        """
        file = Path(os.path.abspath(file))
        root = next((r for r in (self.folder, folder) if file.is_relative_to(os.path.abspath(r))), file.parent)
        place = file.relative_to(os.path.abspath(root))
        return (place.parent / stem(place)).as_posix()

    def write_evaluated(self, folder: Path) -> Path | None:
        """The test clouds of the sample, in the folders they lie in; for completion the partial ones, where stored."""
        if self.part("test").how.cut:
            return None
        keep = set(self.part("test").ids.tolist())
        for item in self.items():
            if item.id in keep:
                (folder / item.cloud).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / item.cloud, folder / item.cloud)
        return folder

    def _is_cloud(self, file: Path, folder: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return suffix(file) in self.reads and not hidden and file.name not in self.tables


def _class_of(file: Path, names: tuple[str, ...]) -> int:
    """Number of the class that the nearest folder above is named as."""
    above = [folder.name for folder in Path(os.path.abspath(file)).parents]
    for name in above:
        if name in names:
            return names.index(name)
    raise unknown("class folder", above[0], names, where=str(file))
