"""Whether a model looks ahead: later steps of its inputs are changed, and its outputs at earlier ones have to stay.

That a class states `causal` is a promise. Where training takes all positions at once a model that breaks it learns to
read the answer, so the promise is checked on the model itself, whoever wrote it. The check works on a copy, in float64,
where rounding (an FFT moves earlier outputs by 1e-16 of the largest) lies far below any leak; its weights are moved a
little first, because a branch whose weights begin at zero hides what it reads. It looks twice: as the model evaluates,
and as it trains, where other branches run and a leak is learnt. Whatever the model draws it draws alike in each pass,
and each pass begins with the same buffers; all are left as they were. `length` stays, as do padding and everything that
has no steps.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..backbones.base import Fitted, Model
from ..data.base import Part
from ..errors import ZooError

#: largest change of an earlier output that is rounding, as a share of the largest output
ROUNDING = 1e-10
#: the same where a model computes in float32, whatever it is given, or cannot run in float64
ROUNDING_FLOAT32 = 1e-5
#: parameters from which on a model is neither copied nor run for more than a few changes
LARGE = 50_000_000
#: samples looked at to choose two
SAMPLES = 64
#: limits of a batch in which each row is changed elsewhere: tokens, tokens x parameters, elements of the outputs
TOKENS, WORK, ELEMENTS = 1 << 14, 1 << 30, 1 << 24

Run = Callable[[Model | Fitted, list[Tensor]], Tensor]


def features(model: Model, inputs: list[Tensor]) -> Tensor:
    """What a model that scores features step by step is checked on."""
    return model.forward_features(*inputs)


def assert_causal(model: Model | Fitted, part: Part, run: Run, remedy: str) -> bool:
    """Raise `ZooError` where `run(model, inputs)` (B, L, ...) depends on later steps of the inputs.

    `part` gives samples to try with; `remedy` ends the error. Returns whether outputs at the changed steps themselves
    changed: False says that there was nothing to see.
    """
    probe = _Probe(model, part)
    if probe.steps < 2:
        return False
    with _unseen(model):
        moved = _search(model, probe, run, remedy)
        if isinstance(model, nn.Module):
            moved = _search(model, probe, run, remedy, training=True) or moved
    return moved


def _search(model: Model | Fitted, probe: _Probe, run: Run, remedy: str, training: bool = False) -> bool:
    name, when = type(model).__name__, " in training" if training else ""
    model, inputs, before, rounding = _ready(model, probe, run, training)
    if before.ndim < 2 or before.shape[:2] != (2, probe.steps):
        raise ZooError(
            f"{name} gives outputs {tuple(before.shape)} for 2 sequences of {probe.steps} steps, not one at each step; "
            f"{remedy}"
        )
    size, step = _size(before), torch.arange(probe.steps)
    trials = [(inputs, np.full(2, cut)) for cut in probe.cuts()]
    rows = _rows(model, probe.steps, before[0].numel())
    if rows > 1:  # every step, or as many as there is room for, each in a row of its own behind one without a change
        wide = [tensor[:1].expand(1 + rows, *tensor.shape[1:]) for tensor in inputs]
        cuts = np.linspace(1, probe.steps - 1, rows).round().astype(np.int64)
        trials.append((wide, np.append(probe.steps, cuts)))
    moved = False
    for given, cuts in trials:
        earlier = step < torch.from_numpy(cuts)[:, None]

        def change(alone: str | None = None, given=given, cuts=cuts, earlier=earlier) -> Tensor:
            after = _run(model, run, probe.change(given, cuts, alone))
            if given is inputs:
                return _difference(before, after)
            difference = _difference(after[:1], after)
            if float(difference[earlier].max()) > rounding * size:  # or do rows differ by what the model draws?
                difference = torch.minimum(difference, _difference(_run(model, run, given), after))
            return difference

        difference = change()
        moved = moved or bool((difference[~earlier] > 0).any())
        leak = difference.masked_fill(~earlier, 0)
        worst = float(leak.max()) / size
        if worst <= rounding or (worst <= ROUNDING_FLOAT32 and _computes_in_float32(model, run, inputs)):
            continue
        row, place = divmod(int(leak.argmax()), probe.steps)
        through = [n for n in probe.per_step if float(change(n)[earlier].max()) > rounding * size]
        shown = f" ({', '.join(through)})" if through and len(probe.per_step) > 1 else ""
        raise ZooError(
            f"{name} states `causal` but looks ahead{when}: its output at step {place + 1} of {probe.steps} changes "
            f"with the inputs{shown} from step {int(cuts[row]) + 1} on; {remedy}"
        )
    return moved


class _Probe:
    """Two samples of a part, one of them without padding, and ways to change their later steps."""

    def __init__(self, model: Model | Fitted, part: Part):
        arrays = part.batch(np.arange(min(SAMPLES, len(part))))
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.names = tuple(model.inputs)
        stepped = [name for name in self.names if name != "length" and batch[name].ndim > 1]
        self.steps = batch[stepped[0]].shape[1] if stepped else 0
        self.per_step = [name for name in stepped if batch[name].shape[1] == self.steps]
        if self.steps < 2:
            return
        length = self._lengths(batch)
        longest, shortest = int(length.argmax()), int(torch.where(length > 1, length, self.steps + 1).argmin())
        named = [name for name in self.per_step if not _is_measured(name, batch[name])]
        self.known = {name: batch[name][batch[name] != 0].unique() for name in named}
        self.inputs = {name: batch[name][[longest, shortest]].clone() for name in self.names}
        self.length = length[[longest, shortest]].clone()
        self._fill()

    def _lengths(self, batch: dict[str, Tensor]) -> Tensor:
        """Steps that are no padding: as the data say, or up to the last token that is not 0."""
        if "length" in batch:
            return batch["length"].clamp(1, self.steps)
        whole = torch.full((len(batch[self.per_step[0]]),), self.steps)
        for name in self.per_step:
            if not _is_measured(name, batch[name]) and batch[name].ndim == 2:
                step = torch.arange(1, self.steps + 1)
                return torch.where(batch[name] != 0, step, 0).amax(1).clamp(min=1)
        return whole

    def _fill(self) -> None:
        """The first sample goes on to the last step, for some leaks read that one."""
        have = int(self.length[0])
        again = torch.arange(self.steps) % have
        for name in self.per_step:
            row = self.inputs[name][0]
            if name == "times":
                gaps = torch.arange(1, self.steps - have + 1).to(row.dtype) * 1000
                row[have:] = row[have - 1] + gaps
            else:
                row[have:] = row[again][have:]
        self.length[0] = self.steps
        if "length" in self.inputs:
            self.inputs["length"][0] = self.steps

    def cuts(self) -> list[int]:
        """Steps from which on both samples are changed."""
        last, n = self.steps - 1, self.steps
        wanted = {1, n // 2, n // 2 + 1, int(self.length[1]) - 1, last - 1, last}
        return sorted(cut for cut in wanted if 1 <= cut <= last)

    def change(self, inputs: list[Tensor], cuts: np.ndarray, alone: str | None = None) -> list[Tensor]:
        """Inputs whose row i has other values from step cuts[i] on, where it is no padding; in one tensor `alone`."""
        draw, changed = torch.Generator().manual_seed(int(cuts.sum())), []
        step, cut = torch.arange(self.steps), torch.from_numpy(cuts)[:, None]
        length = self.length if len(self.length) == len(cuts) else self.length[:1].expand(len(cuts))
        for name, tensor in zip(self.names, inputs, strict=True):
            if name not in self.per_step or alone not in (None, name):
                changed.append(tensor)
                continue
            later = (step >= cut) & (step < length[:, None])
            later = later.reshape(*later.shape, *(1,) * (tensor.ndim - 2))
            changed.append(torch.where(later, self._other(name, tensor, step, cut, draw), tensor))
        return changed

    def _other(self, name: str, tensor: Tensor, step: Tensor, cut: Tensor, draw: torch.Generator) -> Tensor:
        if name == "times":  # in every second row the gaps are longer than all others, or shorter
            last = tensor.gather(1, cut.clamp(max=self.steps) - 1)
            gap = torch.where(cut % 2 == 0, 1, 10 * (tensor.amax(1, keepdim=True) - tensor[:, :1] + 1))
            return last + (step - cut + 1) * gap.to(tensor.dtype)
        if tensor.dtype == torch.bool:
            return ~tensor
        if name not in self.known:
            noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(tensor.dtype)
            return noise * (tensor.std() + 0.1) - tensor
        known = self.known[name]
        shift = torch.randint(1, max(2, len(known)), tensor.shape, generator=draw)
        return known[(torch.searchsorted(known, tensor.contiguous()) + shift) % len(known)] if len(known) else tensor


def _is_measured(name: str, tensor: Tensor) -> bool:
    """Times and floating-point numbers; other integers are names of things, and only those that occur are known."""
    return name == "times" or tensor.is_floating_point() or tensor.dtype == torch.bool


def _ready(
    model: Model | Fitted, probe: _Probe, run: Run, training: bool
) -> tuple[Model | Fitted, list[Tensor], Tensor, float]:
    """What is run: a copy of the model, its inputs, its outputs for them, and how large rounding may be."""
    given = [probe.inputs[name] for name in probe.names]
    if isinstance(model, Fitted):
        return model, given, _run(model, run, given), ROUNDING_FLOAT32
    try:
        own = None if _is_large(model) else copy.deepcopy(model)
    except (RuntimeError, TypeError):  # it holds what cannot be copied
        own = None
    if own is None:
        model.train(training)
        device = next((p.device for p in model.parameters()), "cpu")
        given = [tensor.to(device) for tensor in given]
        return model, given, _run(model, run, given), ROUNDING_FLOAT32
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in given]
    refused = None
    for dtype, inputs, rounding in ((torch.float64, wide, ROUNDING), (torch.float32, given, ROUNDING_FLOAT32)):
        for stir in (True, False):
            one = copy.deepcopy(own).to("cpu", dtype).train(training)
            if stir:
                _stir(one)
            try:
                before = _run(one, run, inputs)
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                refused = error  # some models are bound to float32
                break
            if not (stir and before.isnan().any()):
                return one, inputs, before, rounding
    raise refused


def _rows(model: Model | Fitted, steps: int, elements: int) -> int:
    if _is_large(model):
        return 0
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 1
    tokens = min(TOKENS, WORK // max(1, parameters))
    return min(steps - 1, max(8, tokens // steps), ELEMENTS // max(1, elements))


def _is_large(model: Model | Fitted) -> bool:
    return isinstance(model, nn.Module) and sum(p.numel() for p in model.parameters()) >= LARGE


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Move every weight that training would move by about a tenth of their size."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.numel():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype)
            parameter.add_(noise * (0.1 * parameter.square().mean().sqrt() + 0.01))


def _fresh(model: Model | Fitted) -> Model | Fitted:
    """The model with its own weights and copies of all else, so that no pass leaves anything to the next."""
    if not isinstance(model, nn.Module):
        return model
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except (RuntimeError, TypeError):  # it holds what cannot be copied
        return model


def _run(model: Model | Fitted, run: Run, inputs: list[Tensor]) -> Tensor:
    torch.default_generator.manual_seed(0)  # whatever a model draws, it draws again
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    np.random.seed(0)
    random.seed(0)
    training = isinstance(model, nn.Module) and model.training
    with torch.set_grad_enabled(training and len(inputs[0]) == 2):  # a graph of many rows would need much memory
        with _buffers_kept(model):
            found = run(_fresh(model), inputs).detach().cpu()
    return found if found.dtype == torch.float64 else found.float()


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """(B, L): the largest change at each step; a number that is none in both is no change."""
    same = (before == after) | (before.isnan() & after.isnan())
    change = torch.where(same, 0, (before - after).abs()).nan_to_num(nan=torch.inf)
    return change.flatten(2).amax(2) if change.ndim > 2 else change


def _size(before: Tensor) -> float:
    finite = before[before.isfinite()]
    return float(finite.abs().max()) if len(finite) else 1.0


class _Narrow(TorchDispatchMode):
    """Notices results in less than float64."""

    found = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.dtype in (
                torch.float32, torch.float16, torch.bfloat16, torch.complex64
            ):  # fmt: skip
                self.found = True
        return result


def _computes_in_float32(model: Model, run: Run, inputs: list[Tensor]) -> bool:
    with _Narrow() as seen:
        _run(model, run, inputs)
    return seen.found


@contextmanager
def _unseen(model: Model | Fitted) -> Iterator[None]:
    """Random states, and the modes and buffers of the model, are afterwards what they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        with _buffers_kept(model):
            yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cards:
            torch.cuda.set_rng_state_all(on_cards)


@contextmanager
def _buffers_kept(model: Model | Fitted) -> Iterator[None]:
    """Buffers are afterwards what they were, those too that the model has replaced."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    kept = [(part, name, b, b.detach().clone()) for part in parts for name, b in part._buffers.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, was in kept:
                part._buffers[name] = buffer.copy_(was)
