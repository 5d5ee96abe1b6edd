"""How many parameters the zoo's networks have, known without building them: what lists show.

The counts lie in `zoo/backbones/parameters.json`, measured for the configuration that each name stands for, on data of
`SIZES`; `python -m statezoo.zoo.parameters` measures them anew where a network was changed or added.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from .files import read_json, write_json
from .registry import ROOT, Entry, entries
from .source import stated

FILE = ROOT / "zoo" / "backbones" / "parameters.json"
#: what data decide of a network, with the words for it
SIZES = {
    "num_items": (1000, "items"), "max_len": (50, "events"), "vocab_size": (256, "tokens"),
    "in_channels": (3, "channels"), "height": (32, "rows"), "width": (32, "columns"),
    "num_outputs": (10, "outputs"), "num_features": (0, "features"), "num_categories": (10, "categories"),
}  # fmt: skip


def facts(entry: Entry) -> dict:
    """`parameters` of a model and the `sizes` that they are for; None for fitted models and those from elsewhere.

    Fitted models have as many numbers as the data give them.
    """
    count = _counts(FILE.stat().st_mtime_ns).get(entry.key) if entry.module.startswith("statezoo.") else None
    sizes = {name: SIZES[name][0] for name in stated(entry, "given", ())} if count is not None else None
    return {"parameters": count, "sizes": sizes}


@functools.lru_cache(maxsize=1)
def _counts(_changed: int) -> dict[str, int | None]:
    return read_json(FILE)


def told(models: Iterable[dict]) -> list[str]:
    """A line with the sizes that the counts of listed models are for; none where nothing is counted."""
    used = {name for facts in models for name in facts["sizes"] or {}}
    words = ", ".join(f"{size} {word}" for name, (size, word) in SIZES.items() if name in used)
    return [f"parameters for {words}"] if words else []


def measure(entry: Entry) -> int | None:
    """The parameters of a network by building it, without memory for its weights; None for fitted models."""
    import torch

    from .backbones.base import Fitted, parameter_count

    cls = entry.load()
    if issubclass(cls, Fitted):
        return None
    with torch.device("meta"):
        return parameter_count(cls(**{name: SIZES[name][0] for name in cls.given}, **entry.config))


if __name__ == "__main__":
    own = {key: entry for key, entry in entries("model").items() if entry.module.startswith("statezoo.")}
    write_json(FILE, {key: measure(entry) for key, entry in own.items()})
