"""Characters: English-like sentences that this file writes itself, with an entropy that is known exactly.

Every sentence is drawn from a grammar by independent choices, and no text can be drawn in two ways, so that the
negative log-likelihood of a sentence under its own source is the sum of log(number of options) over its choices. The
mean over the test part is the floor that no model can beat except by chance, `source_nll_per_token` among the counts.
The grammar has what character models find easy (spelling, word order) and what asks for memory: the verb agrees with a
subject several words before, and the last clause names two things that the first one introduced.

    the old captain who sells lamps has a kite and a drum; the kite is green, and the captain sells lamps.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ...zoo.data.base import Dataset, Part
from ...zoo.data.spec import Inputs, Spec, Tensor
from ...zoo.data.splits import by_group
from ...zoo.errors import ZooError
from ...zoo.files import write_text
from ...zoo.seeding import generator

ADJECTIVES = ("old", "young", "quiet", "tired", "brave", "clever", "happy", "strange")
PEOPLE = ("captain", "gardener", "painter", "doctor", "fisher", "teacher", "baker", "weaver")
VERBS = ("sell", "carry", "mend", "paint", "find", "hide", "count", "borrow")
GOODS = ("lamps", "ropes", "maps", "boots", "pots", "coins", "seeds", "books")
THINGS = ("kite", "drum", "clock", "bell", "chair", "boat", "mirror", "violin")
COLOURS = ("green", "yellow", "black", "white", "purple", "brown", "orange", "grey")
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz;,."
LINES = 6000
#: choices of a sentence: number, adjective, person, verb, goods, first thing, second thing (another), which, colour
BITS = math.log(2) + 5 * math.log(8) + math.log(7) + math.log(2) + math.log(8)


def sentence(rng: np.random.Generator) -> str:
    """One sentence; each choice is uniform and independent of the others."""
    plural = bool(rng.integers(2))
    adjective, person, verb, goods = (words[rng.integers(8)] for words in (ADJECTIVES, PEOPLE, VERBS, GOODS))
    things = rng.permutation(8)[:2]
    one, other = THINGS[things[0]], THINGS[things[1]]
    again, colour = (one, other)[rng.integers(2)], COLOURS[rng.integers(8)]
    who = person + "s" * plural
    does = verb if plural else {"carry": "carries"}.get(verb, verb + "s")
    have = "have" if plural else "has"
    return (
        f"the {adjective} {who} who {does} {goods} {have} a {one} and a {other}; "
        f"the {again} is {colour}, and the {who} {does} {goods}."
    )


class Characters(Dataset):
    """Sentences of a small grammar, character by character, with a known entropy; written by the zoo itself."""

    domain = "text"
    kind = "tokens"
    tasks = ("language_model",)
    group = "line"
    license = "CC0-1.0"
    citation = ""

    def __init__(self, *, root: Path | str | None = None, subset: str | None = None):
        """Lines are independent draws: the split is by line."""
        super().__init__(root=root, subset=subset)

    def source_files(self) -> tuple[str, ...]:
        """`text.txt`: one sentence a line."""
        return ("text.txt",)

    def require(self) -> None:
        """Write the text where it is not there yet."""
        if not self.is_sample and not (self.folder / "text.txt").is_file():
            self._write(self.folder, 0, LINES)
        super().require()

    def build(self) -> tuple[Spec, dict[str, Part]]:
        """Encode every line as newline, text, newline; token 0 is padding, token i + 1 is ALPHABET[i]."""
        file = self.folder / "text.txt"
        lines = file.read_text(encoding="utf-8").splitlines()
        code = {character: i + 1 for i, character in enumerate(ALPHABET)}
        width = max((len(line) for line in lines), default=0) + 2
        tokens = np.zeros((len(lines), width), np.int64)
        for row, line in enumerate(lines):
            strange = next((character for character in line if character not in code), None)
            if strange is not None or not line:
                what = "is empty" if not line else f"holds {strange!r}"
                raise ZooError(f"{file}: row {row + 1}: {what}; the alphabet is a-z, space and ;,. - mend the row")
            tokens[row, : len(line) + 2] = [code[character] for character in f"\n{line}\n"]
        ids = np.array([f"{row:05d}" for row in range(len(lines))])
        same = np.unique(np.array(lines), return_inverse=True)[1].astype(str)  # equal lines stay in one part
        parts = {}
        for name, index in by_group(same, {"train": 0.8, "valid": 0.1, "test": 0.1}).items():
            parts[name] = Part({"tokens": tokens[index, :-1], "target": tokens[index, 1:]}, ids[index], same[index])
        self.counts = {"lines": len(lines), "longest": width - 2}
        tensors = {"tokens": Tensor((width - 1,), "int64")}
        sizes = {"vocab_size": len(ALPHABET) + 1, "max_len": width - 1}
        return Spec(Inputs("tokens", tensors, tuple(ALPHABET)), sizes=sizes), parts

    def describe_counts(self) -> dict[str, float]:
        """Lines, and the source's own nats per token on the test part: no model can do better but by chance."""
        tokens = int((self.part("test").arrays["target"] != 0).sum())
        return {**self.counts, "source_nll_per_token": BITS * len(self.part("test")) / tokens}

    def write_sample(self, folder: Path, seed: int = 0) -> None:
        """400 sentences of the same grammar."""
        self._write(folder, seed + 1, 400)

    @staticmethod
    def _write(folder: Path, seed: int, lines: int) -> None:
        rng = generator(seed, "characters")
        write_text(folder / "text.txt", "".join(sentence(rng) + "\n" for _ in range(lines)))
