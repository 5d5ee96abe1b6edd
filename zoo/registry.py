"""Names to classes: files are the registry, read without importing them.

A file's syntax tree tells its entries, so that `zoo list` needs no torch. A public class is an entry when it states
the attribute that marks its kind, as a literal, in its own body:

- model: `configs`, a dict of registered names to the constructor arguments they change (one file may hold several);
- dataset: `tasks`; the key is the file's stem with `_` shown as `-`, and `key:subset` for each of its `subsets`;
- task: `rows`, its prediction-row schema; the key is the file's stem.

Besides the zoo's own folders there are entry points (`statezoo.models|datasets|tasks`, name = "module:Class") and
plain paths: `my_set.py` wherever a name is asked for. A path is read here; what runs it says `trust.py`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from .errors import ZooError, unknown
from .foreign import safe_name
from .syntax import outline
from .trust import code_file, code_hash, import_code, read_code

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
    sha256: str = ""  #: of a file from outside the zoo

    def load(self) -> type:
        """Import the class; a file from outside the zoo only where it is trusted."""
        module = import_code(self.file, self.sha256) if self.sha256 else importlib.import_module(self.module)
        return getattr(module, self.cls)

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
    file, name = code_file(key)
    if file:
        if not os.path.isfile(safe_name(file.name, f"a {kind}'s file", file.parent) and file):
            raise ZooError(f"no file {file}; check the path, or `zoo new {kind} NAME` writes one")
        here = {entry.key: entry for entry in read_file(kind, file, "")}
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
    """The entries that a file defines, from its syntax tree; a file from outside the zoo has no `module`."""
    text = read_code(file)
    try:
        tree = outline(file)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        told = getattr(error, "msg", None) or str(error) or "it is too deep"
        raise ZooError(f"{file}, line {getattr(error, 'lineno', 1)}: {told}; mend the file") from error
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        declared = dict(_literals(node))
        if MARK[kind] not in declared:
            continue
        summary = (ast.get_docstring(node) or ast.get_docstring(tree) or "").split("\n")[0]
        keys = declared["configs"] if kind == "model" else [_key(kind, file)]
        subsets = declared.get("subsets", ()) if kind == "dataset" else ()
        if not isinstance(keys, (dict, list)) or not isinstance(subsets, (tuple, list)):
            raise ZooError(f"{file}: {node.name} states configs or subsets that are no dict or tuple; mend the file")
        for key in [*keys, *(f"{keys[0]}:{subset}" for subset in subsets)]:
            safe_name(key, f"the {kind}", file)
            yield Entry(kind, key, module, node.name, summary, file, declared, "" if module else code_hash(text))


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
        yield Entry(kind, safe_name(point.name, f"the {kind}", source), module, cls, source)


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, object]]:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(targets[0], ast.Name) and statement.value:
            try:
                yield targets[0].id, ast.literal_eval(statement.value)
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue  # not a literal: known only once imported
