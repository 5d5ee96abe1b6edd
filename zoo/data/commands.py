"""`zoo data`: describe, fetch, check, sample."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from ..errors import ZooError, unknown
from ..foreign import parse_yaml
from ..registry import Entry, find
from ..source import arguments
from ..trust import typed


def run_action(
    action: str, dataset: str, overrides: Iterable[str], *, contract: bool, folder: Path | None, seed: int
) -> tuple[dict, list[str]]:
    """Facts and lines of one action on one data set; the user typed its name."""
    with typed(dataset):
        entry = find("dataset", dataset)
        _check_names(entry, overrides)
        return _run_action(action, entry, overrides, contract, folder, seed)


def _run_action(action: str, entry: Entry, overrides: Iterable[str], contract: bool, folder: Path | None, seed: int):
    cls, config = entry.load(), _arguments(entry.load(), overrides)
    if entry.key.partition(":")[2]:
        config.setdefault("subset", entry.key.partition(":")[2])
    if action == "check" and contract:
        from ..contracts import check_dataset

        passed = check_dataset(cls, **config)
        return {"passed": passed}, [
            *(f"ok  {name}" for name in passed),
            f"{entry.key} keeps the whole contract ({len(passed)} checks)",
        ]
    if contract:
        raise ZooError(f"--contract belongs to `zoo data check`, not to `{action}`")
    if action == "sample":
        made = cls.sample(seed, folder or Path(f"{cls(**config).name}-sample"), **config)
        return {"folder": str(made.folder)}, [f"wrote the sample to {made.folder}; use it by data.root={made.folder}"]
    adapter = cls(**config)
    if action == "fetch":
        return {"folder": str(adapter.fetch())}, [f"{adapter.key} is complete in {adapter.folder}"]
    facts = adapter.describe() if action == "describe" else adapter.check()
    return facts, [f"{name:<34}{_short(value)}" for name, value in facts.items()]


def _check_names(entry: Entry, overrides: Iterable[str]) -> None:
    """Refuse an argument that the source is known not to have, before it is imported."""
    valid = arguments(entry)
    for text in overrides if valid is not None else ():
        key = text.removeprefix("data.").partition("=")[0]
        if key not in valid:
            raise unknown("argument", key, valid, where=entry.cls)


def _arguments(cls: type, overrides: Iterable[str]) -> dict:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    valid = [action.dest for action in parser._actions if action.dest != "help"]
    config = {}
    for text in overrides:
        key, _, value = text.removeprefix("data.").partition("=")
        if key not in valid:
            raise unknown("argument", key, valid, where=cls.__name__)
        try:
            config[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ZooError(f"'{text}': the value is not valid YAML; quote it") from error
    return config


def _short(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value) if len(str(value)) < 200 else str(value)[:200] + "…"
