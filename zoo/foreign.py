"""What somebody else wrote, read without trust: names that become paths, YAML of plain values, libraries' errors.

A file that comes from elsewhere may be broken by chance or made to do harm. Whatever it holds, reading it gives a
value or one line (`ZooError`): no code runs, no path leaves its root, no short file fills the memory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ZooError

NAME = r"[A-Za-z0-9._@+:-]+"
LONGEST_NAME = 255  # bytes that a file system gives a name
LARGEST_YAML = 128 << 10  # bytes: the parser takes a second for as many
DEEPEST = 32  # levels of nesting: recipes have five


def is_name(name: object) -> bool:
    """Whether a text may stand as one part of a path: letters, digits and . _ @ + : - alone, not `.` and not `..`."""
    if not isinstance(name, str) or name in (".", ".."):
        return False
    return re.fullmatch(NAME, name) is not None and len(name) <= LONGEST_NAME


def safe_name(name: object, what: str, where: object) -> str:
    """`name` itself where it is one; else a `ZooError` that says what it was read as and from where."""
    if is_name(name):
        return name
    text = repr(name)
    text = text if len(text) <= 80 else f"{text[:77]}…"
    raise ZooError(f"{where}: {what} {text} is no name; use up to {LONGEST_NAME} letters, digits and . _ @ + : - alone")


def below(root: Path, *names: str) -> Path:
    """`root/name/...`, each part a name (`safe_name`): never a place outside `root`."""
    return root.joinpath(*(safe_name(name, "the part of a path", root) for name in names))


def refuse_links_out(folder: Path) -> None:
    """Raise where a link in `folder` leads out of it: what is written or read there would be somebody else's file."""
    root = folder.resolve()
    for above, folders, files in os.walk(root):
        for path in (Path(above, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ZooError(f"{path}: is a link that leads out of {folder}; put what it leads to in its place")


@contextmanager
def reading(path: Path | str, what: str, remedy: str = "restore the file or get it anew") -> Iterator[None]:
    """Whatever a library raises on the bytes of `path` becomes one line; errors of the disk stay what they are.

    Parsers of other people's formats raise every class there is on bytes that are not what they say.
    """
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        said = " ".join(str(error).split())[:200] or "no reason is given"
        raise ZooError(f"{path}: is no {what} that can be read ({type(error).__name__}: {said}); {remedy}") from error


# YAML ---------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path | str):
    """The value of a YAML file: mappings with text keys, lists, and plain scalars; raises `ZooError` with the line.

    Refused, because a recipe needs none of them: a key that stands twice, aliases (a few lines of which make
    gigabytes), tags, numbers that are not finite or beyond 64 bits, more than 32 levels, more than 128 KB.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ZooError(f"{path}: no such file; check the path")
    if path.stat().st_size > LARGEST_YAML:
        raise ZooError(f"{path}: {path.stat().st_size} bytes are more than a recipe has ({LARGEST_YAML}); shorten it")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ZooError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); mend the file") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", -1) + 1
        told = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise ZooError(f"{path}, line {line}: not valid YAML ({told}); mend the file") from error


def parse_yaml(text: str):
    """The value of a YAML text, as `read_yaml` takes it; raises `yaml.YAMLError` with its place."""
    import yaml

    if len(text) > LARGEST_YAML:
        raise yaml.MarkedYAMLError(problem=f"it is longer than {LARGEST_YAML} characters")
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node)
    finally:
        loader.dispose()


def _loader():
    import yaml

    class Loader(yaml.SafeLoader):
        """Makes nodes, and refuses what expands or nests without end before it does."""

        level = 0

        def compose_node(self, parent, index):
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise _problem("aliases (*name) are not taken, write the value out", event)
            self.level += 1
            if self.level > DEEPEST:
                raise _problem(f"it nests deeper than {DEEPEST} levels", event)
            try:
                return super().compose_node(parent, index)
            finally:
                self.level -= 1

    return Loader


def _value(loader, node):
    import yaml

    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        made: dict = {}
        for key_node, value_node in node.value:
            key = _value(loader, key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key_node.tag.endswith(":merge"):
                raise _problem("a key is not text, quote it", key_node)
            if key in made:
                raise _problem(f"the key '{key[:80]}' stands twice, drop one", key_node)
            made[key] = _value(loader, value_node)
        return made
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(loader, item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and kind in ("str", "timestamp", "value", "merge"):
        return node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in ("int", "float", "bool", "null"):
        raise _problem(f"the tag {node.tag[:80]} is not taken, write a plain value", node)
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError) as error:  # a tag that does not fit its text; digits without end
        raise _problem(f"'{node.value[:80]}' is no {kind}", node) from error
    if kind == "float" and not math.isfinite(value) or kind == "int" and not -(1 << 63) <= value < 1 << 63:
        raise _problem(f"the number {node.value[:40]} is not finite or beyond 64 bits", node)
    return value


def _problem(text: str, at):
    import yaml

    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)
