"""The model contract: networks (`Model`) and models that are not networks (`Fitted`).

A class states, as literals: `configs` (registered names and the constructor arguments they change), `accepts` (input
kinds), `inputs` (named tensors its forward takes), `given` (constructor arguments that the data decide), `tiny` (the
preset for samples and tests). Constructor arguments are the config, recorded by the metaclass; weights are
safetensors beside `config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import given
from ..bounds import check_numbers
from ..data.base import Part
from ..data.spec import Spec
from ..errors import BadArgument, ZooError
from ..files import atomic, write_json
from ..foreign import reading
from ..mixers.base import Mixer
from ..stored import check_fit, read_weights


class _Recorded(type):
    """Keeps the arguments that an object was made with as its `config`; numbers that mean nothing are refused."""

    def __call__(cls, *args, **kwargs):
        try:
            config = given(cls, args, kwargs)
        except TypeError:  # the constructor tells which argument is wrong
            return super().__call__(*args, **kwargs)
        check_numbers(cls, config, f"{cls.__name__}: ")
        made = super().__call__(*args, **kwargs)
        made.config = config
        return made


class _Contract(metaclass=_Recorded):
    """What networks and fitted models have in common."""

    configs: ClassVar[dict[str, dict]]
    accepts: ClassVar[tuple[str, ...]]
    inputs: ClassVar[tuple[str, ...]]
    #: tensors that it takes as well where the data set was asked for them
    optional: ClassVar[tuple[str, ...]] = ()
    given: ClassVar[tuple[str, ...]] = ()
    #: the tasks that its outputs are for, where the kind of the data does not tell; (): any
    serves: ClassVar[tuple[str, ...]] = ()
    tiny: ClassVar[dict] = {}
    config: dict

    @classmethod
    def from_spec(cls, spec: Spec, **config):
        """Build for a prepared dataset; fails in one line where the pair is impossible."""
        if spec.inputs.kind not in cls.accepts:
            raise ZooError(
                f"{cls.__name__} takes {' or '.join(cls.accepts)}, this data set gives {spec.inputs.kind}; "
                "`zoo list models` shows what fits"
            )
        missing = [name for name in cls.inputs if name not in spec.inputs.tensors]
        if missing:
            raise ZooError(
                f"{cls.__name__} needs the tensor {missing[0]}, this data set gives "
                f"{', '.join(spec.inputs.tensors)}; choose another model"
            )
        if "features" in spec.inputs.tensors and "features" not in (*cls.inputs, *cls.optional):
            raise ZooError(
                f"{cls.__name__} reads coordinates alone and would ignore the features; leave data.features out, or "
                "choose pointnet (for segmentation pointnet_seg)"
            )
        return cls(**{name: spec.size(name) for name in cls.given}, **config)

    def save(self, folder: Path, name: str, code: str | None = None) -> None:
        """Write `config.json` and `model.safetensors`; `code` is the SHA-256 of the file that `name` is the path of."""
        config = {"name": name, "config": self.config, **({"code": code} if code else {})}
        write_json(folder / "config.json", config)
        with atomic(folder / "model.safetensors") as temporary:
            self._write(temporary)


class Model(_Contract, nn.Module):
    """A network: an nn.Module with `forward_features`, `forward_head` and the constructor as its config."""

    #: whether position t of `forward_features` depends on steps up to t alone, so that one pass trains all positions;
    #: a fact of the model that was built, not of its class: see `mixers_are_causal`
    causal: bool = False

    def mixers_are_causal(self) -> bool:
        """Whether every mixer in it is: what `causal` says of a model that looks along the sequence by mixers alone."""
        return all(part.causal for part in self.modules() if isinstance(part, Mixer))

    def forward_features(self, *inputs: Tensor) -> Tensor:
        """Named inputs to features."""
        raise TypeError(f"{type(self).__name__} does not implement forward_features()")

    def forward_head(self, features: Tensor) -> Tensor:
        """Features to outputs."""
        raise TypeError(f"{type(self).__name__} does not implement forward_head()")

    def forward(self, *inputs: Tensor) -> Tensor:
        """The tensors named in `inputs`, in order, to outputs."""
        return self.forward_head(self.forward_features(*inputs))

    def pooled_features(self, *inputs: Tensor) -> Tensor:
        """One vector (B, dim) for each sample, as the last layer sees it: what `zoo predict --features` writes.

        Here what `forward_features` gives. A model whose features have steps or points pools them as its head does, and
        says how in its own `pooled_features`.
        """
        features = self.forward_features(*inputs)
        if features.ndim != 2:
            raise ZooError(
                f"{type(self).__name__} gives features {tuple(features.shape)}, not one vector for each sample; "
                "implement pooled_features() in it"
            )
        return features

    def init_states(self, batch: int) -> list[dict[str, Tensor]]:
        """States before the first event or token, for models that offer `step`; others refuse."""
        raise ZooError(
            f"{type(self).__name__} cannot be updated event by event: its weights are bound to places in a window; "
            "predict from the whole history"
        )

    def idle(self) -> set[str]:
        """Names of parameters that no output depends on, kept because published counts hold them."""
        return set()

    def tied(self) -> str | None:
        """Name of the embedding whose weight the head multiplies by: the one layer that nothing can stand in for."""
        return None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides vectors and scalars (norms, biases)."""
        return set()

    def load_original(self, weights: dict[str, Tensor]) -> None:
        """Load authors' weights under our names and switch to evaluation; `idle` ones need not be there."""
        own = self.state_dict()
        missing = [name for name in own if name not in weights and name not in self.idle()]
        unexpected = [name for name in weights if name not in own]
        told = [
            f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        if missing or unexpected:
            lacks, more = (", ".join(names[:3]) or "nothing" for names in (missing, unexpected))
            told = [f"misses {lacks}, has {more} too many"]
        if told:
            raise BadArgument(f"{type(self).__name__}.from_original: {told[0]}; check the configuration")
        self.load_state_dict(weights, strict=False)
        self.eval()

    def _write(self, path: Path) -> None:
        from safetensors.torch import save_file

        # copies: on a GPU, recurrent layers keep all their weights in one block, which safetensors refuses
        weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.state_dict().items()
        }
        save_file(weights, path)

    def load_file(self, path: Path) -> None:
        """Load weights written by `save`, strictly, and switch to evaluation."""
        weights, own = read_weights(path), self.state_dict()
        check_fit(weights, own, path)
        self.load_state_dict(weights)
        self.eval()


class Fitted(_Contract):
    """A model that is not a network: fitted once on the training part, state as arrays."""

    #: as a network's; a task that hands it whole sequences looks at its predictions
    causal: bool = True

    def fit(self, part: Part, spec: Spec) -> None:
        """Learn from the training part."""
        raise TypeError(f"{type(self).__name__} does not implement fit()")

    def predict(self, **inputs: np.ndarray) -> np.ndarray:
        """Outputs for a batch of the tensors named in `inputs`: what a network's head gives, as numpy."""
        raise TypeError(f"{type(self).__name__} does not implement predict()")

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learned."""
        raise TypeError(f"{type(self).__name__} does not implement state()")

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave; ValueError where it is not that of such a model (`stored.array`)."""
        raise TypeError(f"{type(self).__name__} does not implement load_state()")

    def parameter_count(self) -> int:
        """Numbers in the state."""
        return int(sum(np.size(array) for array in self.state().values()))

    def _write(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in self.state().items()}, path)

    def load_file(self, path: Path) -> None:
        """Load the state written by `save`."""
        with reading(path, "state of this model", "take weights and config from one run"):
            self.load_state(read_weights(path, numpy=True))


def parameter_count(model: Model | Fitted) -> int:
    """Trainable numbers of a network, or numbers in the state of a fitted model."""
    if isinstance(model, Fitted):
        return model.parameter_count()
    return sum(p.numel() for p in model.parameters())


def outputs(model: Model | Fitted, inputs: list[Tensor]) -> Tensor:
    """What a model gives for the tensors that its `inputs` names, in order: of a fitted one its prediction."""
    if isinstance(model, Fitted):
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(model.inputs, inputs, strict=True)}
        return torch.from_numpy(np.array(model.predict(**arrays)))
    return model(*inputs)
