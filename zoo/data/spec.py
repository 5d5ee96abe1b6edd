"""What a prepared dataset is made of, in words that a model can be built from and a run can save."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import ZooError, unknown
from ..files import read_json, write_json

KINDS = ("points", "patches", "tokens", "log", "image")


@dataclass(frozen=True)
class Tensor:
    """A named tensor of a batch without its batch axis: sizes as numbers, or as names where they vary."""

    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Inputs:
    """What goes in: the kind of data, the named tensors, and the token or item vocabulary where there is one.

    The vocabulary holds the ids as the source writes them; index 0 of the model is padding, so that
    `vocabulary[i]` is index i + 1. `counts`: how often each of them occurs in training, where that is known.
    """

    kind: str
    tensors: dict[str, Tensor]
    vocabulary: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown("input kind", self.kind, KINDS)


@dataclass(frozen=True)
class Outputs:
    """What comes out: class names (classification, segmentation) or target names (property).

    `values`: the numbers that stand for the classes in the data's own files; empty where they are 0, 1, ...
    """

    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Spec:
    """Inputs, outputs and the sizes that a model's constructor may ask for by name (`given`)."""

    inputs: Inputs
    outputs: Outputs = Outputs()
    sizes: dict[str, int] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """A size such as `num_items` or `num_outputs`; an unknown one names those this data set has."""
        if name not in self.sizes:
            raise ZooError(
                f"this data set ({self.inputs.kind}) gives no '{name}', only {', '.join(self.sizes) or 'nothing'}; "
                "choose another model or state it in the recipe"
            )
        return self.sizes[name]

    def save(self, folder: Path) -> None:
        """Write `spec.json` into a run's `prep/`."""
        saved = asdict(self)
        if not self.inputs.counts:  # as before there were any, so that the file of other kinds keeps its hash
            del saved["inputs"]["counts"]
        write_json(folder / "spec.json", saved)

    @classmethod
    def load(cls, folder: Path) -> Spec:
        """Read the `spec.json` that `save` wrote."""
        saved = read_json(folder / "spec.json")
        inputs = saved["inputs"]
        tensors = {name: Tensor(tuple(t["shape"]), t["dtype"]) for name, t in inputs["tensors"].items()}
        outputs = {name: tuple(values) for name, values in saved["outputs"].items()}
        words = {name: tuple(inputs.get(name, ())) for name in ("vocabulary", "counts")}
        return cls(Inputs(inputs["kind"], tensors, **words), Outputs(**outputs), saved["sizes"])
