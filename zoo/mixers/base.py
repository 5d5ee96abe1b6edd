"""The mixer protocol: what goes into a layer that mixes along the sequence, and what comes out.

    mixer(x, ctx, state, want) -> Out(y, state, aux)        mixer.step(x_t, ctx_t, state) -> Out, one step
    mixer.init_state(batch)                                 mixer.materialize(x, ctx) -> Matrix
    mixer.ports() -> named weights                          mixer.points() -> named observation points

Side information travels in one frozen `SeqContext`: a dataclass of tensors, in which nothing is changed and no function
lives. A mixer says which fields it understands (`uses`) and what may be wanted of it (`wants`); others are refused,
never ignored. No mixer knows a domain.

Padding is taken out before a mixer sees it: `Mixer.forward` brings the valid steps of each sequence to the front, so
that invalid ones, wherever they were, neither write nor decay nor enter a convolution, and the state that comes back is
that behind the last valid step. What they hold is never read; their outputs are zero, and what `Out.aux` holds of them
too. In `step`, a sequence whose step is not valid has ended: it keeps its state to the bit and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadArgument
from ..nn.precision import KeepsWide
from ..ops.checks import expect, expect_floating, expect_integers, expect_segments, readable

State = dict[str, Tensor]
#: fields of a context that hold a value for each step, besides `memory`
PER_STEP = ("mask", "segments", "dt_scale", "log_decay", "write", "positions")


@dataclass(frozen=True)
class SeqContext:
    """Side information of a batch of sequences of L steps; a field that is None does not apply."""

    lengths: Tensor | None = None
    """(B,) int64: valid steps from the left (right padding)."""
    mask: Tensor | None = None
    """(B, L) bool: which steps are valid, anywhere."""
    segments: Tensor | None = None
    """(B, L) whole numbers that never fall: packed sequences, the state is reset where the number changes."""
    orders: Tensor | None = None
    """(P, L) or (B, P, L) int64: scan paths, for the multi-path wrapper."""
    inverses: Tensor | None = None
    """The inverse of each path."""
    dt_scale: Tensor | None = None
    """(B, L, 1) or (B, L, H): multiplies the raw time step before its bias and softplus."""
    log_decay: Tensor | None = None
    """(B, L, 1) or (B, L, H): added to the log decay."""
    write: Tensor | None = None
    """(B, L) bool: False where a step decays the state but does not write."""
    kept: Tensor | None = None
    """(B, K) int64, rising: scan these steps alone; the time of the others passes before the next kept one."""
    positions: Tensor | None = None
    """(B, L) or (B, L, 2): positions for rotary embeddings; by default the number of valid steps before."""
    memory: dict[str, Tensor] | None = None
    """Tensors (B, L, ...) of other layers, by name."""

    def along(self, index: Tensor) -> SeqContext:
        """The context of the sequence taken in the order `index` (B, K): every per-step field is gathered."""
        return self._each(PER_STEP, lambda tensor: take(tensor, index))

    def cleared(self, valid: Tensor) -> SeqContext:
        """The context with zeros in what its floating fields hold of invalid steps (`valid` (B, L) bool)."""
        return self._each(("dt_scale", "log_decay", "positions"), lambda tensor: zeroed(tensor, valid))

    def _each(self, names: tuple[str, ...], change: Callable[[Tensor], Tensor]) -> SeqContext:
        changed = {name: change(getattr(self, name)) for name in names if getattr(self, name) is not None}
        if self.memory is not None:
            changed["memory"] = {name: change(tensor) for name, tensor in self.memory.items()}
        return replace(self, **changed)

    def settled(self) -> SeqContext:
        """Segment numbers in int64, padding at the right with that of the last valid step, so that they never fall."""
        if self.segments is None:
            return self
        segments = self.segments.to(torch.int64)  # reversed sequences have them negated
        if self.lengths is not None:
            last = take(segments, (self.lengths - 1)[:, None])
            segments = torch.where(self.valid(segments.shape[1]), segments, last)
        return replace(self, segments=segments)

    def given(self) -> set[str]:
        """Names of the fields that apply."""
        return {f.name for f in fields(self) if getattr(self, f.name) is not None}

    def valid(self, steps: int) -> Tensor | None:
        """(B, L) bool from `mask` or `lengths`; None where all steps are real."""
        if self.lengths is None:
            return self.mask
        return torch.arange(steps, device=self.lengths.device) < self.lengths[:, None]


torch.export.register_dataclass(SeqContext)
NOTHING = SeqContext()


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Steps `index` (B, K) of `tensor` (B, L, ...); an index (K,) holds for every sequence."""
    if index.ndim == 1:
        return tensor.index_select(1, index)
    index = index.reshape(*index.shape, *(1,) * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.gather(1, index)


def zeroed(tensor: Tensor, valid: Tensor | None) -> Tensor:
    """`tensor` (B, L, ...) with zeros where `valid` (B, L) is False, or (B, ...) and (B,); None: as it is."""
    if valid is None:
        return tensor
    return torch.where(valid.view(*valid.shape, *(1,) * (tensor.ndim - valid.ndim)), tensor, tensor.new_zeros(()))


@dataclass(frozen=True)
class Out:
    """Result of a mixer: y (B, L, D), the state behind the last step where wanted, and what else `want` asked for.

    Tensors of `aux` are (B, L, ...), one value a step, but those that the mixer's `per_sequence` names.
    """

    y: Tensor
    state: State | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)


class Matrix(NamedTuple):
    """A mixer as a matrix: `finish(einsum("bhts,bshp->bthp", matrix, values), parts)` is its output.

    For the same context: with `kept` the K kept steps stand for the L; padded steps have zeros in all, y among them.
    """

    matrix: Tensor
    """(B, H, L, L), row t mixes the steps s."""
    values: Tensor
    """(B, L, H, P)."""
    parts: NamedTuple
    """What `finish` needs besides: gates and skips."""


class Mixer(KeepsWide):
    """Base of all mixers: a subclass implements `mix` (or `project`, `scan` and `finish`) and states what it can do.

    Parameters of its own that define its dynamics are named in `wide`: they stay in float32 when it is cast.
    """

    #: whether y_t depends on steps up to t alone
    causal: ClassVar[bool] = True
    #: fields of the context it understands besides lengths and mask
    uses: ClassVar[frozenset[str]] = frozenset({"segments"})
    #: what may be wanted
    wants: ClassVar[frozenset[str]] = frozenset({"state"})
    #: what of `aux` is one tensor (B, ...) for a sequence and not one for each of its steps: padding leaves it as it is
    per_sequence: ClassVar[frozenset[str]] = frozenset()
    #: whether valid steps are brought to the front before `mix`; otherwise it gets the mask as it came
    packs: ClassVar[bool] = True
    #: laws of the suite that do not hold for it: name -> reason
    exempt: ClassVar[dict[str, str]] = {}
    #: names of the observation points, in order
    observed: ClassVar[tuple[str, ...]] = ("in", "out")

    def __init_subclass__(cls, **kwargs):
        """Refuse what would take the place of padding, checks and ended sequences, which are looked after here."""
        super().__init_subclass__(**kwargs)
        for name, own in (("forward", "mix"), ("step", "_step"), ("materialize", "_matrix")):
            if name in vars(cls):
                raise BadArgument(
                    f"{cls.__name__}: {name}() is the protocol's, which checks what is given and takes padding out; "
                    f"implement {own}() instead"
                )

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.observe = nn.ModuleDict({name: nn.Identity() for name in self.observed})

    # what a mixer implements ------------------------------------------------------------------------------------------

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Mix x (B, L, D), whose padding, if any, is at the right (`ctx.lengths`)."""
        raise TypeError(f"{type(self).__name__} does not implement mix()")

    def init_state(self, batch: int, *, dtype: torch.dtype = torch.float32, device=None) -> State:
        """The state before the first step: recurrent parts in float32 (or float64), caches of inputs in `dtype`."""
        raise TypeError(f"{type(self).__name__} has no state")

    def _matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        """The mixing matrix of x (B, L, D), whose padding, if any, is at the right (`ctx.lengths`)."""
        raise TypeError(f"{type(self).__name__} has no mixing matrix")

    def _step(self, x_t: Tensor, ctx: SeqContext, state: State) -> Out:
        """One step x_t (B, D) of sequences that have all a valid one; here a pass over one step.

        Tensors of `aux` are (B, ...) then.
        """
        out = self(x_t[:, None], ctx, state, frozenset({"state"}))
        aux = {name: t if name in self.per_sequence else t[:, 0] for name, t in out.aux.items()}
        return Out(out.y[:, 0], out.state, aux)

    def ports(self) -> dict[str, Tensor]:
        """Views of the weights by their part in the scan (q, k, v, out, gate, decay); writing to one changes it."""
        return {}

    # what every mixer has ---------------------------------------------------------------------------------------------

    def points(self) -> dict[str, nn.Module]:
        """Observation points by name: identity modules on which hooks look at a tensor or replace it."""
        return dict(self.observe)

    def forward(
        self,
        x: Tensor,
        ctx: SeqContext | None = None,
        state: State | None = None,
        want: frozenset[str] = frozenset(),
    ) -> Out:
        """Mix x (B, L, D) along L; `want` may ask for "state" and what `wants` lists. ValueError on bad arguments."""
        ctx = NOTHING if ctx is None else ctx
        self.check(x, ctx, state, want)
        if ctx.mask is None or not self.packs:
            return self._only_valid(self.mix(*self._ready(x, ctx), state, want), ctx)
        order, x, inner = self._to_the_front(x, ctx)
        out, back = self._only_valid(self.mix(*self._ready(x, inner), state, want), inner), order.argsort(dim=1)
        aux = {name: t if name in self.per_sequence else take(t, back) for name, t in out.aux.items()}
        return Out(take(out.y, back), out.state, aux)

    @staticmethod
    def _to_the_front(x: Tensor, ctx: SeqContext) -> tuple[Tensor, Tensor, SeqContext]:
        """The order (B, L) of valid steps first, each in its order; and x and the context in that order."""
        order = ctx.mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        return order, take(x, order), replace(ctx.along(order), mask=None, lengths=ctx.mask.sum(1))

    def _ready(self, x: Tensor, ctx: SeqContext) -> tuple[Tensor, SeqContext]:
        """What `mix` and `_matrix` get: nothing of what padding held, segments checked."""
        ctx, valid = ctx.settled(), ctx.valid(x.shape[1])
        expect_segments(type(self).__name__, ctx.segments, *x.shape[:2])
        return (x, ctx) if valid is None else (zeroed(x, valid), ctx.cleared(valid))

    def _only_valid(self, out: Out, ctx: SeqContext) -> Out:
        valid = ctx.valid(out.y.shape[1])
        if valid is None:
            return out
        aux = {name: t if name in self.per_sequence else zeroed(t, valid) for name, t in out.aux.items()}
        return Out(zeroed(out.y, valid), out.state, aux)

    def materialize(self, x: Tensor, ctx: SeqContext | None = None) -> Matrix:
        """The mixing matrix for x (B, L, D) and whatever `forward` takes; refuses, in the same words, what it refuses.

        TypeError for a mixer that is no matrix.
        """
        ctx = NOTHING if ctx is None else ctx
        self.check(x, ctx, None, frozenset())
        if ctx.mask is None:
            return self._valid_matrix(x, ctx)
        order, x, inner = self._to_the_front(x, ctx)
        matrix, values, parts = self._valid_matrix(x, inner)
        back = order.argsort(dim=1)
        rows = take(matrix.permute(0, 2, 3, 1), back)
        matrix = take(rows.transpose(1, 2), back).permute(0, 3, 2, 1)
        return Matrix(matrix, take(values, back), at_steps(parts, back))

    def _valid_matrix(self, x: Tensor, ctx: SeqContext) -> Matrix:
        found, valid = self._matrix(*self._ready(x, ctx)), ctx.valid(x.shape[1])
        if valid is None:
            return found
        both = (valid[:, :, None] & valid[:, None, :])[:, None]
        return Matrix(found.matrix.masked_fill(~both, 0), zeroed(found.values, valid), found.parts)

    def step(self, x_t: Tensor, ctx: SeqContext | None, state: State) -> Out:
        """One step x_t (B, D); per-step fields of `ctx` have L = 1. Returns y (B, D) and the next state.

        Where `ctx.mask` (B, 1) is False, or `ctx.lengths` (B,) 0, a sequence has ended.
        """
        ctx = NOTHING if ctx is None else ctx
        self.check_step(x_t, ctx, state)
        valid = ctx.valid(1)
        if valid is None:
            return self._step(x_t, ctx, state)
        out = self._step(zeroed(x_t, valid[:, 0]), replace(ctx, mask=None, lengths=None).cleared(valid), state)
        goes_on = valid[:, 0]
        if readable(goes_on) and not bool(goes_on.any()):
            after = state  # a cache does not grow
        else:
            after = {name: _moved_on(tensor, state[name], goes_on) for name, tensor in out.state.items()}
        aux = {name: t if name in self.per_sequence else zeroed(t, goes_on) for name, t in out.aux.items()}
        return Out(zeroed(out.y, goes_on), after, aux)

    def check(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str], *, least: int = 1) -> None:
        """Raise ValueError, naming argument, expected and got, where something does not fit.

        `least`: the fewest valid steps of a sequence.
        """
        name = type(self).__name__
        expect(name, "x", x, "B", "L", self.dim)
        expect_floating(name, "x", x)
        if not isinstance(ctx, SeqContext):
            raise BadArgument(f"{name}: ctx: expected a SeqContext or None, got {type(ctx).__name__}")
        batch, steps = x.shape[:2]
        known = self.uses | {"lengths", "mask"}
        for field_name in sorted(ctx.given() - known):
            raise BadArgument(
                f"{name}: ctx.{field_name}: expected None ({name} uses {', '.join(sorted(known))}), got a value"
            )
        for asked in sorted(want - self.wants):
            raise BadArgument(f"{name}: want: expected some of {', '.join(sorted(self.wants))}, got '{asked}'")
        if ctx.lengths is not None and ctx.mask is not None:
            raise BadArgument(f"{name}: ctx.mask: expected None beside ctx.lengths, got both; give one of them")
        if ctx.lengths is not None:
            expect(name, "ctx.lengths", ctx.lengths, batch)
            expect_numbers(name, "ctx.lengths", ctx.lengths)
        for field_name in ("mask", "write"):
            if getattr(ctx, field_name) is not None:
                expect(name, f"ctx.{field_name}", getattr(ctx, field_name), batch, steps)
                if getattr(ctx, field_name).dtype != torch.bool:
                    raise BadArgument(f"{name}: ctx.{field_name}: expected bool, got {getattr(ctx, field_name).dtype}")
        if ctx.segments is not None:
            expect(name, "ctx.segments", ctx.segments, batch, steps)
            expect_integers(name, "ctx.segments", ctx.segments)
        for field_name in ("dt_scale", "log_decay"):
            tensor = getattr(ctx, field_name)
            if tensor is not None:
                expect(name, f"ctx.{field_name}", tensor, batch, steps, f"1 or {self.scales()}")
                if tensor.shape[-1] != 1:
                    expect(name, f"ctx.{field_name}", tensor, batch, steps, self.scales())
        if ctx.kept is not None:
            expect(name, "ctx.kept", ctx.kept, batch, "K")
            expect_numbers(name, "ctx.kept", ctx.kept)
            if ctx.lengths is not None or ctx.mask is not None:
                raise BadArgument(
                    f"{name}: ctx.kept: expected no padding beside it, got lengths or a mask; keep valid steps alone"
                )
        if ctx.memory is not None:
            if not isinstance(ctx.memory, dict):
                raise BadArgument(f"{name}: ctx.memory: expected a dict of tensors, got {type(ctx.memory).__name__}")
            for key, tensor in ctx.memory.items():
                more = range(max(0, tensor.ndim - 2)) if isinstance(tensor, Tensor) else ("...",)
                expect(name, f"ctx.memory['{key}']", tensor, batch, steps, *(f"N{i}" for i in more))
        self._check_values(name, ctx, steps, least)
        if state is not None and "state" not in self.wants:
            raise BadArgument(f"{name}: state: expected None, for it has no state to hand on, got a state")
        if state is not None:
            self._check_state(name, state, batch, x)

    def check_step(self, x_t: Tensor, ctx: SeqContext, state: State) -> None:
        """The same for the arguments of `step`."""
        name = type(self).__name__
        expect(name, "x_t", x_t, "B", self.dim)
        self.check(x_t[:, None], ctx, state, frozenset(), least=0)
        if ctx.segments is not None:
            raise BadArgument(
                f"{name}: ctx.segments: expected None in a step, which sees no other one beside it, got numbers; begin "
                "each sequence with a new state"
            )
        if state is None and "state" in self.wants:
            raise BadArgument(f"{name}: state: expected that of init_state(batch) or of a pass, got None")

    def scales(self) -> int:
        """How many decays a step has: heads, or channels."""
        return 1

    @staticmethod
    def _check_values(name: str, ctx: SeqContext, steps: int, least: int) -> None:
        """What depends on values, where a program can branch on them."""
        if ctx.lengths is not None and readable(ctx.lengths):
            if bool(((ctx.lengths < least) | (ctx.lengths > steps)).any()):
                raise BadArgument(f"{name}: ctx.lengths: expected {least} to {steps}, got {ctx.lengths.tolist()[:8]}")
        if ctx.mask is not None and least and readable(ctx.mask) and not bool(ctx.mask.any(1).all()):
            row = int((~ctx.mask.any(1)).nonzero()[0])
            raise BadArgument(f"{name}: ctx.mask: expected a valid step in every sequence, got none in row {row}")
        if ctx.kept is not None and readable(ctx.kept):
            rises = (ctx.kept[:, 1:] > ctx.kept[:, :-1]).all(1)
            wrong = ~rises | (ctx.kept[:, 0] < 0) | (ctx.kept[:, -1] >= steps)
            if bool(wrong.any()):
                row = ctx.kept[wrong][0].tolist()
                raise BadArgument(f"{name}: ctx.kept: expected rising step numbers in 0..{steps - 1}, got {row}")

    def _check_state(self, name: str, state: State, batch: int, x: Tensor) -> None:
        wanted = self.init_state(0, dtype=x.dtype)  # of no sequences: shapes alone, ten times as fast as on "meta"
        if not isinstance(state, dict) or set(state) != set(wanted):
            got = ", ".join(sorted(state)) if isinstance(state, dict) else type(state).__name__
            raise BadArgument(f"{name}: state: expected {', '.join(sorted(wanted))}, got {got}")
        for key, tensor in wanted.items():
            sizes = (batch, *tensor.shape[1:])
            if state[key].ndim != tensor.ndim or any(
                want not in (0, have) for want, have in zip(sizes, state[key].shape, strict=True)
            ):  # a size of 0 grows, as a cache does
                shown = tuple("any" if size == 0 else size for size in sizes)
                raise BadArgument(f"{name}: state['{key}']: expected {shown}, got {tuple(state[key].shape)}")


def expect_numbers(where: str, name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is int64, in which steps are numbered."""
    if tensor.dtype != torch.int64:
        raise BadArgument(f"{where}: {name}: expected torch.int64, got {tensor.dtype}")


def _moved_on(after: Tensor, before: Tensor, valid: Tensor) -> Tensor:
    """A part of a state behind a step: that before it where `valid` (B,) is False; a cache that grew, by zeros."""
    if after.shape != before.shape:
        before = F.pad(before, (0, 0) * (before.ndim - 2) + (0, after.shape[1] - before.shape[1]))
    return torch.where(valid.view(-1, *(1,) * (after.ndim - 1)), after, before.to(after.dtype))


def at_steps(parts, index: Tensor):
    """Projected parts, a named tuple, at the steps `index` (B, K); its `whole` names what is not per step, if any."""
    whole = getattr(parts, "whole", ())
    per_step = {name: tensor for name, tensor in parts._asdict().items() if name not in whole and tensor is not None}
    return parts._replace(**{name: take(tensor, index) for name, tensor in per_step.items()})


def reach(ctx: SeqContext, steps: int, device) -> Tensor:
    """(L, L), or (B, 1, L, L) where sequences are packed: which steps s a causal mixer's step t can see."""
    causal = torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
    if ctx.segments is None:
        return causal
    return (causal & (ctx.segments[:, :, None] == ctx.segments[:, None, :]))[:, None]


def condense(time: Tensor, kept: Tensor) -> Tensor:
    """Time (B, L, ...) of the kept steps (B, K + 1, ...): each with that of the dropped steps before it.

    The last entry is the time that passes behind the last kept step; scanned as a step that does not write, it brings
    the state to where the whole sequence ends.
    """
    steps = torch.arange(time.shape[1], device=time.device).expand(time.shape[0], -1).contiguous()
    slot = torch.searchsorted(kept.contiguous(), steps)
    slot = slot.reshape(*slot.shape, *(1,) * (time.ndim - 2)).expand_as(time)
    return time.new_zeros(time.shape[0], kept.shape[1] + 1, *time.shape[2:]).scatter_add(1, slot, time)


def last_valid(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """The last valid step of `tensor` (B, L, ...): (B, ...)."""
    return tensor[:, -1] if lengths is None else take(tensor, (lengths - 1)[:, None])[:, 0]
