"""`zoo new`: the commented file of a new data set or model, which keeps the contract as it is."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from .errors import ZooError, unknown
from .files import write_text

DATASET = '''"""{name}: one line that says what the data are, how many, and where they come from.

Say here what a user must know: the source's address, its quirks, what a row means.
    zoo data check {file} --contract     runs every contract test on this file
    zoo train mlp/{file} --sample        trains on the sample below
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from statezoo.zoo.data.base import Dataset, Part
from statezoo.zoo.data.spec import Inputs, Outputs, Spec, Tensor
from statezoo.zoo.data.splits import by_group
from statezoo.zoo.errors import ZooError

CLASSES = ("low", "high")


class {cls}(Dataset):
    """The line that `zoo list` shows."""

    domain = "images"  # points, hyperspectral, bio, recsys or images: data lie in <data root>/<domain>/<name>/
    kind = "image"  # that of its Spec below, for `zoo list`
    tasks = ("classification",)
    group = "patient"  # what must not cross a split; asserted whenever the data are prepared
    license = "CC0-1.0"
    citation = ""
    homepage = ""
    files = {{"data.csv": ""}}  # file -> SHA-256 of the published release ("" where there is no fixed one)
    # urls = {{"data.csv": ("https://...",)}}  # then `files` needs the hash, and `zoo data fetch` downloads

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Read every row, refuse what is wrong with file, row and remedy, split by group."""
        path = self.folder / "data.csv"
        ids, patients, images, labels = [], [], [], []
        with open(path, encoding="utf-8", newline="") as rows:
            for number, row in enumerate(csv.reader(rows), 1):
                if len(row) != 19 or row[2] not in CLASSES:
                    raise ZooError(f"{{path}}: row {{number}}: needs id, patient, class and 16 pixels; mend the row")
                ids.append(row[0])
                patients.append(row[1])
                labels.append(CLASSES.index(row[2]))
                images.append(row[3:])
        arrays = {{
            "image": np.array(images, np.float32).reshape(-1, 1, 4, 4),
            "label": np.array(labels, np.int64),
        }}
        ids, patients = np.array(ids), np.array(patients)
        parts = {{}}
        for name, index in by_group(patients, {{"train": 0.6, "valid": 0.2, "test": 0.2}}).items():
            part = {{key: array[index] for key, array in arrays.items()}}
            parts[name] = Part(part, ids[index], patients[index])
        inputs = Inputs("image", {{"image": Tensor((1, 4, 4), "float32")}})
        # sizes: what a model's constructor may ask for
        sizes = {{"in_channels": 1, "height": 4, "width": 4, "num_outputs": len(CLASSES)}}
        return Spec(inputs, Outputs(classes=CLASSES), sizes), parts

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """A small learnable data set in the same format, read by the same reader: bright images are "high"."""
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "data.csv", "w", encoding="utf-8", newline="") as file:
            for number in range(200):
                label = number % 2
                pixels = rng.normal(label, 1.0, 16).round(3)
                csv.writer(file).writerow([f"s{{number}}", f"p{{number // 4}}", CLASSES[label], *pixels])
'''

CLOUDS = '''"""{name}: one line that says what the clouds are, how many, and where they come from.

Say here what a user must know: the source's address, its units and quirks.
    zoo data check {file} --contract                        runs every contract test on this file
    zoo train pointnet/{file} --sample train.batch_size=8   trains on the sample below
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from statezoo.zoo.data.cloud_pack import Item
from statezoo.zoo.data.clouds import PointClouds
from statezoo.zoo.data.ply import write_cloud
from statezoo.zoo.data.splits import by_group
from statezoo.zoo.errors import ZooError

CLASSES = ("ball", "rod")


class {cls}(PointClouds):
    """The line that `zoo list` shows."""

    tasks = ("classification",)  # and completion: the nearest 20 % around a random point are then taken away
    group = "patient"  # what must not cross a split; asserted whenever the data are prepared
    license = "CC0-1.0"
    citation = ""
    homepage = ""
    files = {{"clouds.csv": ""}}  # file -> SHA-256 of the published release ("" where there is no fixed one)
    tables = ("clouds.csv",)  # no cloud, though clouds may be .csv

    def source_files(self) -> tuple[str, ...]:
        """The table, and the clouds that it names: PLY, PCD, XYZ, STL, OBJ, OFF or NIfTI."""
        there = (self.folder / "clouds.csv").is_file()  # where not, it is what is missing
        return ("clouds.csv", *(row["file"] for row in self.rows())) if there else ("clouds.csv",)

    def rows(self) -> list[dict[str, str]]:
        """Rows of clouds.csv; what is wrong is refused with file, row and remedy."""
        table = self.folder / "clouds.csv"
        with open(table, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        for number, row in enumerate(rows, 2):
            if not row.get("file") or not row.get("patient") or row.get("class") not in CLASSES:
                raise ZooError(f"{{table}}: row {{number}}: needs file, patient and class; mend the row")
        return rows

    def items(self) -> list[Item]:
        """Of each cloud its id, group, file and class; points are read, checked and put into a frame by the base."""
        return [Item(row["file"], row["patient"], row["file"], row["class"]) for row in self.rows()]

    def places(self, items: list[Item]) -> dict[str, np.ndarray]:
        """Numbers of the items of each part."""
        return by_group([item.group for item in items], {{"train": 0.6, "valid": 0.2, "test": 0.2}})

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """A small learnable data set in the same format, read by the same reader: "rods" are five times as long."""
        rng = np.random.default_rng(seed)
        lines = ["file,patient,class"]
        for number in range(200):
            kind, patient = CLASSES[number % 2], f"p{{number // 4}}"
            xyz = rng.normal(size=(rng.integers(100, 400), 3)) * [1, 1, 5 if kind == "rod" else 1]
            write_cloud(folder / kind / f"{{number}}.ply", xyz)
            lines.append(f"{{kind}}/{{number}}.ply,{{patient}},{{kind}}")
        (folder / "clouds.csv").write_text("\\n".join(lines) + "\\n", encoding="utf-8")
'''

MODEL = '''"""{name}: what it is, and the paper with its equation numbers.

    h = GELU(W1 x + b1);   y = W2 h + b2
"""

from __future__ import annotations

from statezoo.zoo.backbones.base import Model
from torch import Tensor, nn


class {cls}(Model):
    """The line that `zoo list` shows."""

    configs = {{"{name}": {{}}, "{name}_wide": {{"dim": 256}}}}  # registered names: constructor arguments they change
    accepts = ("image",)  # input kinds: points, patches, tokens, log, image
    inputs = ("image",)  # named tensors that forward takes, in this order
    given = ("in_channels", "height", "width", "num_outputs")  # constructor arguments that the data decide
    tiny = {{"dim": 16}}  # the preset of --sample and of the tests

    def __init__(self, in_channels: int, height: int, width: int, num_outputs: int, *, dim: int = 64):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_channels * height * width, dim), nn.GELU())
        self.dim = dim
        self.reset_head(num_outputs)

    def reset_head(self, num_outputs: int) -> None:
        """A new head for `num_outputs` classes; 0 for none, so that the model gives features."""
        self.head = nn.Linear(self.dim, num_outputs) if num_outputs else nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        """image (B, C, H, W) to features (B, dim)."""
        return self.embed(image.flatten(1))

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (B, dim) to scores (B, num_outputs)."""
        return self.head(features)
'''


#: domain -> template of a data set, a model that trains on its sample, and with which settings
DOMAINS = {"images": (DATASET, "mlp", ""), "points": (CLOUDS, "pointnet", " train.batch_size=8")}


def write(kind: str, name: str, folder: Path, domain: str = "images") -> tuple[Path, list[str]]:
    """Write the file of a new `kind` ("dataset", of a domain, or "model"); returns it and what to do next."""
    if domain not in DOMAINS:
        raise unknown("domain", domain, DOMAINS, where="zoo new")
    stem = name.lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stem) or keyword.iskeyword(stem):
        raise ZooError(f"'{name}' cannot be a file's name; use letters, digits and - or _, beginning with a letter")
    file = folder / f"{stem}.py"
    if file.exists():
        raise ZooError(f"{file} is there already; choose another name or delete it")
    cls = "".join(word.capitalize() for word in stem.split("_"))
    shown = stem.replace("_", "-") if kind == "dataset" else stem
    dataset, model, settings = DOMAINS[domain]
    template = dataset if kind == "dataset" else MODEL
    write_text(file, template.format(name=shown, file=file, cls=cls))
    if kind == "dataset":
        return file, [f"next: zoo data check {file} --contract", f"      zoo train {model}/{file} --sample{settings}"]
    return file, [f"next: zoo train {file}/digits --sample"]
