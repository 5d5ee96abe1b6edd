"""MSD hippocampus parts: 260 hippocampi as point clouds with two labelled parts, anterior and posterior.

Source: Task04 of the Medical Segmentation Decathlon (A. Simpson et al., arXiv:1902.09063; M. Antonelli et al., Nature
Communications 13:4128, 2022), human MRI with voxel labels. 4,096 points a cloud on the surface of the smoothed union of
both labels; a point has the label of the nearest voxel. Layout: `segmentation/fold{1..5}/{pcd,coarse_label}/<id>`,
52 subjects in each fold, one cloud per subject.
"""

from __future__ import annotations

from pathlib import Path

from ...zoo.data.cloud_layout import FoldedClouds
from ...zoo.data.cloud_sample import write_hippocampi


class MSDHippocampusParts(FoldedClouds):
    """Anterior and posterior part of 260 human hippocampi, as labelled point clouds."""

    tasks = ("segmentation",)
    group = "subject"
    license = "CC BY-SA 4.0"
    citation = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022"
    homepage = "http://medicaldecathlon.com"
    content = {"segmentation": "0c37b0ba0e3650a66a933787364479634de75848b2a25e4c8385bc2c9a1ce7b6"}
    label_values = (0, 1)
    tables = ("metadata.csv",)

    def part_names(self, values: list[int]) -> tuple[str, ...]:
        """What labels 0 and 1 are."""
        return ("anterior", "posterior")

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """60 bent bodies with a head, in the source's layout."""
        write_hippocampi(folder, seed)
