"""docs/points.md says what the records say, and its counts are those of the models."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.leaderboards.board import boards, find_records
from statezoo.zoo.api import create_dataset, create_model
from statezoo.zoo.backbones.base import parameter_count
from statezoo.zoo.data.cloud_pack import frame
from statezoo.zoo.data.cloud_part import without_nearest
from statezoo.zoo.geometry.distances import chamfer
from statezoo.zoo.seeding import generator

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "points.md").read_text(encoding="utf-8")
BONES, PARTS, WHOLE = (
    "anatomy-bones-classification@",
    "msd-hippocampus-parts-segmentation@",
    "anatomy-bones-completion@",
)
HEADS = {
    "pose": "| model | parameters | seeds | balanced accuracy as given | in random poses | accuracy as given |",
    "full": "| model | parameters | clouds of | epochs | balanced accuracy as given | in random poses |",
    "parts": "| model | parameters | seeds | mIoU as given | in random poses | mIoU, mean over clouds | Dice |",
    "whole": "| model | parameters | seeds | epochs | batch | CD-L1 | CD-L2 |",
}
FLOOR = "| the partial cloud itself | - | - | - | - |"
ANOTHER = "| another draw of the whole | - | - | - | - |"
PARAMETERS = "| model | classes or categories | parameters |"


def shown(head):
    """The lines of the page's table under `head`."""
    lines = PAGE.partition(head + "\n")[2].splitlines()[1:]
    return lines[: next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))]


def board(name):
    return next(board for board in boards(find_records()) if board.name == name)


def parameters(row):
    count = row.records[0].record.model.parameters
    return f"{count:,}" if count else "-"


def cell(row, metric):
    low, high = row.interval[metric]
    return f"{row.value[metric]:.3f} [{low:.3f}, {high:.3f}]"


def table(name, *columns):
    """Of each row of a board: model, parameters, seeds, then (view, metric) after (view, metric)."""
    views = {view: {row.model: row for row in board(f"{name}{view}").rows} for view, _ in columns}
    return [
        " | ".join(
            [f"| {row.model}", parameters(row), str(len(row.seeds))]
            + [cell(views[view][row.model], metric) for view, metric in columns]
        )
        + " |"
        for row in board(name).rows
    ]


def pose():
    columns = [("", "balanced_accuracy"), ("/turned", "balanced_accuracy"), ("", "accuracy")]
    return table(f"{BONES}fold1-5", *columns)


def full():
    """Seed 0 on fold 1, the full-size network among them."""
    lines = []
    found = [one.record for one in find_records() if one.record.benchmark.name == f"{BONES}fold1"]
    for record in sorted((r for r in found if r.seed == 0), key=lambda r: -r.metrics[r.primary].value):
        size, how = record.model.parameters, record.recipe.scientific
        epochs = how["train"]["epochs"] if record.cost.train_steps else "-"
        facts = [f"{size:,}" if size else "-", how["data"]["points"], epochs]
        values = [f"{part[record.primary].value:.3f}" for part in (record.metrics, record.slices["turned"])]
        lines.append(f"| {' | '.join(map(str, [record.model.name, *facts, *values]))} |")
    return lines


def parts():
    return table(f"{PARTS}fold1-5", ("", "miou"), ("/turned", "miou"), ("", "miou_sample"), ("", "dice"))


def whole():
    lines = []
    for row in board(f"{WHOLE}fold1-5").rows:
        how = row.records[0].record.recipe.scientific["train"]
        facts = [row.model, parameters(row), len(row.seeds), how["epochs"], how["batch_size"]]
        lines.append(f"| {' | '.join(map(str, [*facts, cell(row, 'cd_l1'), cell(row, 'cd_l2')]))} |")
    return lines


def distances_of_no_network():
    """CD from the whole clouds, over the test parts of the five folds, of the partial ones and of another draw."""
    partial, another = [], []
    for fold in range(1, 6):
        part = create_dataset("anatomy-bones", task="completion", split=f"fold{fold}", points=1024).part("test")
        batch = part.batch(np.arange(len(part)))
        partial += [chamfer(*(torch.from_numpy(batch[name]).double() for name in ("points", "target")))]
        for i, name in enumerate(part.ids):
            cloud = part.cloud(i)
            given = cloud[without_nearest(cloud, generator("evaluation", str(name)))]
            centre, scale = frame(given)  # distances are in the frame of the partial cloud
            order = generator("another draw", str(name)).permutation(len(cloud))
            draws = (torch.from_numpy((cloud[drawn] - centre) / scale)[None] for drawn in (order[:1024], order[-1024:]))
            another += [chamfer(*draws)]
    for name, found in ((FLOOR, partial), (ANOTHER, another)):
        yield f"{name} {' | '.join(f'{torch.cat(values).mean():.3f}' for values in zip(*found, strict=True))} |"


def test_classification_in_given_and_random_poses():
    assert shown(HEADS["pose"]) == pose()


def test_the_full_size_network_beside_the_others_on_its_fold():
    assert shown(HEADS["full"]) == full()
    assert any(line.startswith("| point_ssm |") for line in full())


def test_segmentation_in_given_and_random_poses():
    assert shown(HEADS["parts"]) == parts()


def test_completion():
    assert [line for line in shown(HEADS["whole"]) if not line.startswith((FLOOR, ANOTHER))] == whole()


@pytest.mark.skipif("STATEZOO_DATA" not in os.environ, reason="STATEZOO_DATA is not set")
def test_completion_without_a_network():
    if not Path(os.environ["STATEZOO_DATA"], "points", "anatomy-bones").exists():
        pytest.skip("no points/anatomy-bones in STATEZOO_DATA")
    assert set(distances_of_no_network()) <= set(shown(HEADS["whole"]))


def test_the_parameters_are_those_of_the_models():
    lines = [re.findall(r"[^|]+", line) for line in shown(PARAMETERS)]
    assert len(lines) >= 12
    for name, number, count in ([cell.strip() for cell in line] for line in lines):
        given = "num_categories" if "_cpl" in name else "num_outputs"
        assert f"{parameter_count(create_model(name, **{given: int(number)})):,}" == count, name
