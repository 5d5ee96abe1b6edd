"""Outlines of Python files: their syntax trees, read once, without what functions do."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


def outline(file: Path) -> ast.Module:
    """Classes, assignments and imports of a file as it is now; SyntaxError where it has no tree.

    Of functions only constructors that pass keywords on keep their bodies: whole trees take memory, and the garbage
    collector so long to walk that lists would not answer at once.
    """
    return _outline(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _outline(file: Path, _changed: int) -> ast.Module:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not (inner.name == "__init__" and inner.args.kwarg):
                    inner.body = []
    return tree
