"""Handwritten digits, 1,797 images of 8 x 8 pixels in 10 classes, as shipped with scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the test set of 13 writers).
The source does not say who wrote which image, so that the split is by image and stratified; writers may cross it.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...zoo.data.base import Dataset, Part
from ...zoo.data.spec import Inputs, Outputs, Spec, Tensor
from ...zoo.data.splits import by_group
from ...zoo.errors import ZooError
from ...zoo.seeding import generator


class Digits(Dataset):
    """Handwritten digits, 8 x 8 grey pixels, 10 classes; comes with scikit-learn."""

    domain = "images"
    kind = "image"
    tasks = ("classification",)
    group = "image"
    license = "CC BY 4.0"
    citation = "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49"
    homepage = "https://archive.ics.uci.edu/dataset/80"

    def __init__(self, *, root: Path | str | None = None, subset: str | None = None, split_seed: int = 0):
        """`split_seed` draws the 70/10/20 split within each class."""
        super().__init__(root=root, subset=subset)
        self.split = "stratified"
        self.split_seed = split_seed

    def source_files(self) -> tuple[str, ...]:
        """`digits.csv`: 64 pixels (0 to 16) and the label per line, as in the source."""
        return ("digits.csv",)

    def require(self) -> None:
        """Copy the file out of scikit-learn where it is not there yet."""
        if not self.is_sample and not (self.folder / "digits.csv").is_file():
            from sklearn.datasets import load_digits

            digits = load_digits()
            self._write(self.folder, digits.images.reshape(-1, 64), digits.target)
        super().require()

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Read, verify, scale to 0..1 and split within each class."""
        file = self.folder / "digits.csv"
        images, labels = [], []
        with open(file, encoding="utf-8", newline="") as rows:
            for number, row in enumerate(csv.reader(rows), 1):
                if len(row) != 65 or not all(cell.isdecimal() for cell in row) or int(row[64]) > 9:
                    raise ZooError(f"{file}: row {number}: not 64 pixels and a label; delete the file and run again")
                images.append(row[:64])
                labels.append(row[64])
        image = np.array(images, np.float32).reshape(-1, 1, 8, 8) / 16
        label = np.array(labels, np.int64)
        ids = np.array([f"{number:04d}" for number in range(len(label))])
        places: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
        for digit in range(10):
            mine = np.flatnonzero(label == digit)
            parts = by_group(ids[mine], {"train": 0.7, "valid": 0.1, "test": 0.2}, self.split_seed)
            for name, index in parts.items():
                places[name].append(mine[index])
        parts = {}
        for name, found in places.items():
            index = np.sort(np.concatenate(found))
            parts[name] = Part({"image": image[index], "label": label[index]}, ids[index])
        inputs = Inputs("image", {"image": Tensor((1, 8, 8), "float32")})
        sizes = {"in_channels": 1, "height": 8, "width": 8, "num_outputs": 10}
        return Spec(inputs, Outputs(classes=tuple(str(digit) for digit in range(10))), sizes), parts

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """40 noisy copies of ten fixed random patterns each, in the source's layout."""
        rng = generator(seed, "digits-sample")
        patterns = rng.integers(0, 17, (10, 64))
        label = np.repeat(np.arange(10), 40)
        noise = rng.normal(0, 4, (len(label), 64))
        order = rng.permutation(len(label))
        self._write(folder, np.clip(np.round(patterns[label] + noise), 0, 16)[order], label[order])

    @staticmethod
    def _write(folder: Path, pixels: np.ndarray, label: np.ndarray) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / "digits.csv", np.column_stack([pixels, label]).astype(int), fmt="%d", delimiter=",")
