"""What `zoo list` and `list_models` show: names, with kinds of input, tasks and parameters, by name or by what fits.

All of it comes from the sources (`zoo/source.py`) and a file of counts (`zoo/parameters.py`); nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from . import parameters
from .errors import unknown
from .recipe import recipe_files
from .registry import Entry, entries
from .source import stated, summary

LISTS = ("models", "datasets", "tasks", "recipes")


def select(what: str, pattern: str | None = None, *, task: str | None = None, kind: str | None = None) -> dict:
    """Name to facts of the entries of a list (`facts`); of a recipe its command.

    `pattern` is a glob ("mamba*"), a name, or a part of names; `task` and `kind` keep what serves that task or takes
    that kind of input. Names of neither fail; a pattern may match nothing.
    """
    if task is not None and task not in entries("task"):
        raise unknown("task", task, entries("task"))
    if kind is not None and kind not in (known := kinds()):
        raise unknown("kind", kind, known)
    if what == "recipes":
        found = {name: _of_recipe(name) for name in recipe_files()}
    else:
        found = {key: facts(entry) for key, entry in entries(what[:-1]).items()}
    names = matching(found, pattern)
    fits = {
        name: one
        for name, one in found.items()
        if name in names and (task is None or task in one["tasks"]) and (kind is None or kind in one["kinds"])
    }
    return {name: f"zoo train {name}" for name in fits} if what == "recipes" else fits


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """The names that a glob matches; without a wildcard the name itself, or else those that hold the word."""
    names = list(names)
    if pattern is None:
        return names
    wanted = pattern.lower()
    if is_glob(pattern):
        return [name for name in names if fnmatchcase(name.lower(), wanted)]
    return [name for name in names if name.lower() == wanted] or [name for name in names if wanted in name.lower()]


def is_glob(pattern: str) -> bool:
    """Whether a pattern has a wildcard."""
    return any(sign in pattern for sign in "*?[")


def facts(entry: Entry) -> dict:
    """The `summary`, the `kinds` of input and the `tasks` of an entry; of a model `parameters` for `sizes` of data."""
    if entry.kind == "task":
        of, tasks = stated(entry, "kinds", ()), [entry.key]
    elif entry.kind == "dataset":
        of, tasks = [stated(entry, "kind")] if stated(entry, "kind") else [], stated(entry, "tasks", ())
    else:
        of = stated(entry, "accepts", ())
        # where a model does not say what its outputs are for, its kind of input tells
        tasks = stated(entry, "serves", ()) or [
            key for key, one in entries("task").items() if set(of) & set(stated(one, "kinds", ()))
        ]
    found = {"summary": summary(entry), "kinds": [*of], "tasks": [*tasks]}
    return found | parameters.facts(entry) if entry.kind == "model" else found


def kinds() -> list[str]:
    """The kinds of input that models take."""
    return sorted({kind for entry in entries("model").values() for kind in stated(entry, "accepts", ())})


def _of_recipe(name: str) -> dict:
    """By its id: the kinds of its model, and its task, which is the data set's first where the id names none."""
    model, _, rest = name.partition("/")
    rest = rest.partition("@")[0]
    named = next((task for task in entries("task") if rest.endswith(f"-{task}")), None)
    folder = rest.removesuffix(f"-{named}") if named else rest
    data = next((entry for key, entry in entries("dataset").items() if key.replace(":", "-") == folder), None)
    tasks = [named] if named else [*stated(data, "tasks", ())][:1] if data else []
    return {"kinds": [*stated(entries("model")[model], "accepts", ())], "tasks": tasks}
