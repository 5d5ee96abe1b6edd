"""Run folders as they lie on the disk: what can be told of one before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path

from .errors import ZooError, unknown
from .registry import Entry, find
from .source import arguments, stated

#: what a run writes last, and so is finished by: its record, or what it was where nothing was held out to score
FINISHED = ("record.json", "final.json")


def finished(run: Path) -> Path | None:
    """The file that a run is finished by; None where it is not."""
    return next((run / name for name in FINISHED if (run / name).is_file()), None)


def require_finished(run: Path) -> None:
    """Refuse a folder that is not that of a finished run."""
    for name in ("recipe.yaml", "model.safetensors"):
        if not (run / name).is_file():
            raise ZooError(f"{run}: no {name}; give the folder of a finished run")
    if finished(run) is None:
        raise ZooError(f"{run}: no {FINISHED[0]}; give the folder of a finished run")


def refuse_unscored(run: Path) -> None:
    """Refuse a finished run that has no record."""
    if finished(run) == run / "final.json":
        raise ZooError(
            f"{run}: was trained on everything, nothing was held out to score it by; train another run with a split "
            "that holds something out"
        )


def require_begun(run: Path) -> None:
    """Refuse a folder that holds no run to go on with."""
    if not (run / "recipe.yaml").is_file():
        hint = "nothing has begun there, start it without --resume" if run.is_dir() else "check the path"
        raise ZooError(f"{run}: no recipe.yaml, so no run to resume; {hint}")


def reading_of(words: Iterable[str]) -> dict:
    """The changes that `data.key=value` words make to how files are read for a run."""
    from .recipe import parse_override

    changes = {}
    for word in words:
        path, value = parse_override(word)
        if len(path) != 2 or path[0] != "data":
            raise ZooError(f"'{word}': of a run only how a file is read can be changed, by data.key=value; drop it")
        changes[path[1]] = value
    return changes


def reader_of(trained: Entry, changes: Mapping) -> Entry:
    """The adapter that reads for a run of `trained`, refusing changes that say more than how a file is read.

    `name` among the changes is another adapter; its arguments begin with their defaults.
    """
    reader = find("dataset", str(changes["name"])) if "name" in changes else trained
    allowed, known = stated(reader, "reading", ()), arguments(reader)
    options = ", ".join(f"data.{name}" for name in allowed) or "none"
    plain = stated(trained, "plain", "")
    hint = f"; data.name={plain} reads the plain form" if plain and reader.key != plain else ""
    for key in changes:
        if key == "name" or key in allowed:
            continue
        if known is not None and key not in known:
            raise unknown("key", f"data.{key}", [f"data.{name}" for name in (*allowed, "name")], where=reader.key)
        raise ZooError(
            f"data.{key} says more than how a file is read, which is as in training; {reader.key} lets predict change "
            f"{options}{hint}"
        )
    return reader


def task_options(task: str, declared: Mapping, given: Mapping, told: Callable[[str], str] = str) -> dict:
    """All options of prediction that a task declares (`Task.predict_options`), as given or by default.

    `told` words an option's name for messages.
    """
    for name, value in given.items():
        if name not in declared:
            has = ", ".join(told(option) for option in declared) or "none"
            raise ZooError(f"{told(name)} is no option of {task}, which has {has}; leave it out")
        option = declared[name]
        choices, least = option.get("choices"), option.get("least")
        if value is None and option["default"] is None:
            continue
        # 1 is equal to True, and no answer to yes or no
        if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ZooError(f"{told(name)} {value!r}: give {' or '.join(map(str, choices))}")
        if isinstance(option["default"], int) and not choices:
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ZooError(f"{told(name)} {value!r}: give a whole number")
            if least is not None and value < least:
                raise ZooError(f"{told(name)} {value}: give at least {least}")
    return {name: given.get(name, option["default"]) for name, option in declared.items()}
