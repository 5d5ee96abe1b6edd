"""docs/points.md says what the records say, and its counts are those of the models."""

import re
from pathlib import Path

from statezoo.leaderboards.board import boards, find_records
from statezoo.zoo.api import create_model
from statezoo.zoo.backbones.base import parameter_count

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "points.md").read_text(encoding="utf-8")
BONES = "anatomy-bones-classification@"
HEADS = {
    "pose": "| model | parameters | seeds | balanced accuracy as given | in random poses | accuracy as given |",
    "full": "| model | parameters | clouds of | epochs | balanced accuracy as given | in random poses |",
}
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


def test_classification_in_given_and_random_poses():
    assert shown(HEADS["pose"]) == pose()


def test_the_full_size_network_beside_the_others_on_its_fold():
    assert shown(HEADS["full"]) == full()
    assert any(line.startswith("| point_ssm |") for line in full())


def test_the_parameters_are_those_of_the_models():
    lines = [re.findall(r"[^|]+", line) for line in shown(PARAMETERS)]
    assert len(lines) >= 12
    for name, number, count in ([cell.strip() for cell in line] for line in lines):
        given = "num_categories" if "_cpl" in name else "num_outputs"
        assert f"{parameter_count(create_model(name, **{given: int(number)})):,}" == count, name
