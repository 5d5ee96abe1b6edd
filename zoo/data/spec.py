"""What a prepared dataset is made of, in words that a model can be built from and a run can save."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import ZooError, unknown
from ..files import read_json, write_json
from ..foreign import reading

KINDS = ("points", "patches", "tokens", "log", "image")
LARGEST = 256 << 20  # bytes of a saved spec: a vocabulary of twenty million items
MOST = 1 << 24  # numbers in one tensor of a sample: an image of 2,300 x 2,300 in three colours


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
        """Read the `spec.json` that `save` wrote, and nothing else; raises `ZooError` with what is wrong."""
        path = folder / "spec.json"
        saved = read_json(path, largest=LARGEST)
        with reading(path, "description of prepared data", "restore the run's prep/"):
            _keys(saved, ("inputs", "outputs", "sizes"))
            inputs, outputs = saved["inputs"], saved["outputs"]
            _keys({"counts": [], **inputs}, ("kind", "tensors", "vocabulary", "counts"))
            _keys({"values": [], **outputs}, ("classes", "targets", "values"))
            tensors = {name: _tensor(name, tensor) for name, tensor in inputs["tensors"].items()}
            texts = {name: _all(str, inputs, name) for name in ("vocabulary",)}
            texts |= {name: _all(str, outputs, name) for name in ("classes", "targets")}
            for name, size in saved["sizes"].items():
                if type(size) is not int or not 0 <= size < 1 << 48:
                    raise ValueError(f"sizes.{name} is {str(size)[:40]}, no whole number from 0")
            made = Outputs(texts["classes"], texts["targets"], _all(int, {"values": [], **outputs}, "values"))
            counts = _all(int, {"counts": [], **inputs}, "counts")
            if counts and len(counts) != len(texts["vocabulary"]) or min(counts, default=0) < 0:
                raise ValueError("counts are not one for each of the vocabulary")
            return cls(Inputs(inputs["kind"], tensors, texts["vocabulary"], counts), made, saved["sizes"])


def _keys(saved: object, names: tuple[str, ...]) -> None:
    if not isinstance(saved, dict) or set(saved) != set(names):
        raise ValueError(f"it does not consist of {', '.join(names)}")


def _all(kind: type, saved: dict, name: str) -> tuple:
    if not isinstance(saved[name], list) or not all(type(value) is kind for value in saved[name]):
        raise ValueError(f"{name} is no list of {kind.__name__}")
    return tuple(saved[name])


def _tensor(name: str, saved: object) -> Tensor:
    _keys(saved, ("shape", "dtype"))
    shape, numbers = saved["shape"], 1
    for size in shape if isinstance(shape, list) else [shape]:
        if type(size) not in (int, str) or isinstance(size, int) and size < 0:
            raise ValueError(f"the shape of {name} is {str(shape)[:80]}")
        numbers *= size if isinstance(size, int) else 1
    if not isinstance(shape, list) or numbers > MOST or not isinstance(saved["dtype"], str):
        raise ValueError(f"{name} of shape {str(shape)[:80]} is no tensor of a sample")
    return Tensor(tuple(shape), saved["dtype"])
