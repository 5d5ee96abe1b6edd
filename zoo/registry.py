"""Names to classes: files are the registry, read without importing them.

A file's syntax tree tells its entries, so that `zoo list` needs no torch. A public class is an entry when it states
the attribute that marks its kind, as a literal, in its own body:

- model: `configs`, a dict of registered names to the constructor arguments they change (one file may hold several);
- dataset: `tasks`; the key is the file's stem with `_` shown as `-`, and `key:subset` for each of its `subsets`;
- task: `rows`, its prediction-row schema; the key is the file's stem.

Besides the zoo's own folders there are entry points (`statezoo.models|datasets|tasks`, name = "module:Class") and
plain paths: `my_set.py` wherever a name is asked for.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from .errors import ZooError, unknown
from .syntax import outline

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"model": ("zoo/backbones", "zoo/backbones/baselines"), "dataset": ("datasets/*",), "task": ("tasks",)}
MARK = {"model": "configs", "dataset": "tasks", "task": "rows"}


@dataclass(frozen=True)
class Entry:
    """One registered name: where its class is and what its source states, known without importing it."""

    kind: str
    key: str
    module: str
    cls: str
    summary: str
    file: Path | None = None
    declared: dict = field(default_factory=dict, hash=False)

    def load(self) -> type:
        """Import the class."""
        if self.file is not None and not self.module.startswith("statezoo."):
            return getattr(_import_file(self.module, self.file), self.cls)
        return getattr(importlib.import_module(self.module), self.cls)

    @property
    def config(self) -> dict:
        """The constructor arguments that this name stands for (a model's registered configuration)."""
        configs = self.declared.get("configs") or getattr(self.load(), "configs", {})
        return dict(configs.get(self.key.rpartition(":")[2], {}))


@functools.cache
def entries(kind: str) -> dict[str, Entry]:
    """All names of a kind ('model', 'dataset', 'task'), sorted; a name claimed twice is an error."""
    found: dict[str, Entry] = {}
    for entry in [*_own(kind), *_plugins(kind)]:
        if entry.key in found:
            raise ZooError(
                f"{kind} '{entry.key}' is defined twice: {found[entry.key].module} and {entry.module}; rename one"
            )
        found[entry.key] = entry
    return dict(sorted(found.items()))


def find(kind: str, key: str) -> Entry:
    """The entry of a name, or of a path to a .py file; an unknown name fails with the nearest one."""
    path, _, name = key.partition(".py:") if ".py:" in key else (key, "", "")
    if path.endswith(".py") or ".py:" in key:
        file = Path(path if path.endswith(".py") else path + ".py").expanduser().resolve()
        if not file.is_file():
            raise ZooError(f"no file {file}; check the path, or `zoo new {kind} NAME` writes one")
        module = f"statezoo_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
        here = {entry.key: entry for entry in read_file(kind, file, module)}
        if not here:
            raise ZooError(f"{file}: no public class states `{MARK[kind]}`, which makes it a {kind}; add it")
        if not name:
            return next(iter(here.values()))
        if name in here or f"{_key(kind, file)}:{name}" in here:
            return here.get(name) or here[f"{_key(kind, file)}:{name}"]
        raise unknown(kind, name, here, where=str(file))
    if key not in entries(kind):
        raise unknown(kind, key, entries(kind))
    return entries(kind)[key]


def read_file(kind: str, file: Path, module: str) -> Iterator[Entry]:
    """The entries that a file defines, from its syntax tree."""
    try:
        tree = outline(file)
    except SyntaxError as error:
        raise ZooError(f"{file}, line {error.lineno}: {error.msg}; mend the file") from error
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        declared = dict(_literals(node))
        if MARK[kind] not in declared:
            continue
        summary = (ast.get_docstring(node) or ast.get_docstring(tree) or "").split("\n")[0]
        keys = list(declared["configs"]) if kind == "model" else [_key(kind, file)]
        if kind == "dataset":
            keys += [f"{keys[0]}:{subset}" for subset in declared.get("subsets", ())]
        for key in keys:
            yield Entry(kind, key, module, node.name, summary, file, declared)


def _key(kind: str, file: Path) -> str:
    return file.stem.replace("_", "-") if kind == "dataset" else file.stem


def _own(kind: str) -> Iterator[Entry]:
    for pattern in FOLDERS[kind]:
        for file in sorted(ROOT.glob(f"{pattern}/*.py")):
            if not file.name.startswith("_"):
                yield from read_file(kind, file, "statezoo." + ".".join(file.relative_to(ROOT).with_suffix("").parts))


def _plugins(kind: str) -> Iterator[Entry]:
    for point in entry_points(group=f"statezoo.{kind}s"):
        module, _, cls = point.value.partition(":")
        source = f"plug-in of {point.dist.name}" if point.dist else "plug-in"
        yield Entry(kind, point.name, module, cls, source)


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, object]]:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(targets[0], ast.Name) and statement.value:
            try:
                yield targets[0].id, ast.literal_eval(statement.value)
            except ValueError:
                continue  # not a literal: known only once imported


def _import_file(module: str, file: Path):
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]
