"""What a registered class states in its source, its bases included: known without importing anything.

Bases are followed through the imports of the files that they stand in, and a plug-in's module is looked up without
being run. What cannot be followed is unknown, never guessed.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .registry import ROOT, Entry
from .syntax import outline


@dataclass(frozen=True)
class _Class:
    """A class statement, the module that it stands in, and that module's file."""

    node: ast.ClassDef
    module: str
    file: Path


def stated(entry: Entry, name: str, default=None):
    """The literal that a class, or else the nearest of its bases, gives to the attribute `name`."""
    for one in _lineage(entry)[0]:
        for statement in one.node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
                if isinstance(targets[0], ast.Name) and targets[0].id == name:
                    try:
                        return ast.literal_eval(statement.value)
                    except ValueError:
                        return default
    return default


def summary(entry: Entry) -> str:
    """The first line of the class's docstring, and of a plug-in whose it is; without one what the registry knows."""
    found = _lineage(entry)[0]
    line = ((ast.get_docstring(found[0].node) or "") if found else "").split("\n")[0]
    return f"{line} ({entry.summary})" if line and entry.file is None else line or entry.summary


def arguments(entry: Entry) -> dict[str, tuple[str, ...]] | None:
    """The keyword arguments of the constructor and the names that each is a choice of, () where it is none.

    None where the source does not tell: a base that cannot be followed, or keywords that go elsewhere than to a base.
    """
    found: dict[str, tuple[str, ...]] = {}
    classes, whole = _lineage(entry)
    for one in classes:
        if any(_name(call) == "dataclass" for call in one.node.decorator_list):
            return None
        made = next((f for f in one.node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        if made is None:
            continue
        for argument in [*made.args.args[1:], *made.args.kwonlyargs]:
            found.setdefault(argument.arg, _choices(argument.annotation))
        if made.args.kwarg is None:
            return found
        if not _only_for_bases(made):
            return None
    return found if whole else None


def _only_for_bases(made: ast.FunctionDef) -> bool:
    """Whether `**keywords` are used once, as `super().__init__(..., **keywords)`."""
    uses = [node for node in ast.walk(made) if isinstance(node, ast.Name) and node.id == made.args.kwarg.arg]
    calls = [node for node in ast.walk(made) if isinstance(node, ast.Call) and _to_base(node)]
    passed = [k.value for call in calls for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name)]
    return len(uses) == 1 and uses[0] in passed


def _to_base(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr != "__init__":
        return False
    return isinstance(function.value, ast.Call) and _name(function.value.func) == "super"


def _choices(annotation: ast.expr | None) -> tuple[str, ...]:
    if not isinstance(annotation, ast.Subscript) or _name(annotation.value) != "Literal":
        return ()
    inner = annotation.slice
    values = [v.value for v in (inner.elts if isinstance(inner, ast.Tuple) else [inner]) if isinstance(v, ast.Constant)]
    return tuple(values) if all(isinstance(value, str) for value in values) else ()


def _name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _lineage(entry: Entry) -> tuple[list[_Class], bool]:
    """The class and its bases, nearest first, and whether all could be followed."""
    file = entry.file or _file_of(entry.module)
    return _whole(entry.module, file, entry.cls, file.stat().st_mtime_ns) if file else ([], False)


@functools.lru_cache(maxsize=512)
def _whole(module: str, file: Path, name: str, _changed: int) -> tuple[list[_Class], bool]:
    return _bases(module, file, name)


def _bases(module: str, file: Path, name: str, seen: tuple = ()) -> tuple[list[_Class], bool]:
    try:
        tree = outline(file)
    except (SyntaxError, UnicodeDecodeError):
        return [], False
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if (file, name) in seen or node is None:
        return [], False
    found, whole = [_Class(node, module, file)], True
    for base in node.bases:
        place = _place(base, tree, module, file)
        above, all_of_it = _bases(*place, (*seen, (file, name))) if place else ([], _name(base) == "object")
        found += [one for one in above if one.node not in [known.node for known in found]]
        whole &= all_of_it
    return found, whole


def _place(base: ast.expr, tree: ast.Module, module: str, file: Path) -> tuple[str, Path, str] | None:
    """Module, file and name of a base that is a plain name: of the same file, or imported by `from ... import`."""
    if not isinstance(base, ast.Name):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return module, file, base.id
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == base.id:
                    above = module.split(".")[: -node.level] if node.level else []
                    source = ".".join([*above, *([node.module] if node.module else [])])
                    found = _file_of(source)
                    return (source, found, alias.name) if found else None
    return None


def _file_of(module: str) -> Path | None:
    """The file of a module by where its package lies; only the topmost package is looked up, and nothing is run."""
    top, *rest = module.split(".")
    if top == "statezoo":
        folder = ROOT
    else:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            return None
        if spec is None or not (rest and spec.submodule_search_locations or spec.origin):
            return None
        if not rest:
            return _source(Path(spec.origin))
        folder = Path(next(iter(spec.submodule_search_locations), ""))
    place = folder.joinpath(*rest)
    return _source(place.with_name(place.name + ".py")) or _source(place / "__init__.py")


def _source(file: Path) -> Path | None:
    return file if file.suffix == ".py" and file.is_file() else None
