"""Mixers made of mixers: both directions of a sequence, and several paths through one.

A path is a permutation of the steps with its inverse, optionally with a permutation of the channels (the reverse
complement of DNA is the flipped sequence with complementary channels). It numbers all steps, padded ones among them,
and skips those that are not valid. Wrappers hand every per-step field of the context along the path and take it out of
what the inner mixer sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import BadArgument
from ..ops.checks import expect
from .base import Mixer, Out, SeqContext, State, expect_numbers, take

NO_STATE = "a scan against the direction of time has no state to hand on"


def flip_steps(ctx: SeqContext, batch: int, steps: int, device) -> Tensor:
    """(B, L): the valid steps in reverse, padding where it was."""
    step = torch.arange(steps, device=device).expand(batch, -1)
    if ctx.lengths is None:
        return step.flip(1)
    return torch.where(step < ctx.lengths[:, None], ctx.lengths[:, None] - 1 - step, step)


def _merge(ys: list[Tensor], how: str, project: Callable) -> Tensor:
    if how == "concat":
        return project(torch.cat(ys, -1))
    total = torch.stack(ys).sum(0)
    return total / len(ys) if how == "mean" else total


def _pathless(where: str, mixer: Mixer) -> Mixer:
    if "orders" in mixer.uses:
        raise BadArgument(
            f"{where}: make: expected a mixer without paths, whose orders number steps as they came, got "
            f"{type(mixer).__name__}; put the paths outside: MultiPath(lambda: Bidirectional(...), ...)"
        )
    return mixer


class Bidirectional(Mixer):
    """A causal mixer run forward and on the reversed sequence: y = merge(m(x), flip(m'(flip(x))))."""

    causal = False
    exempt = {
        "step": NO_STATE,
        "split": NO_STATE,
        "causal": "it looks both ways",
        "matrix": "the two directions end in read-outs of their own",
    }

    MERGES = ("sum", "mean", "concat", "alternate")

    def __init__(self, make: Callable[[], Mixer], *, tied: bool = False, merge: str = "mean", layer: int = 0):
        """`make()` builds a mixer; tied: one serves both directions.

        `merge`: "sum", "mean", "concat" (then a projection back to D), or "alternate": forward alone in odd layers and
        backward alone in even ones.
        """
        forward = _pathless("Bidirectional", make())
        super().__init__(forward.dim)
        if merge not in self.MERGES:
            raise BadArgument(f"Bidirectional: merge: expected one of {', '.join(self.MERGES)}, got {merge!r}")
        self.uses, self.wants = forward.uses - {"kept"}, frozenset()
        self.merge, self.layer = merge, layer
        self.there, self.decays = forward, forward.scales()
        self.back = None if tied or merge == "alternate" else make()
        self.project = nn.Linear(2 * self.dim, self.dim, bias=False) if merge == "concat" else None

    def scales(self) -> int:
        """Those of the inner mixer."""
        return self.decays

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Both directions, merged."""
        order = flip_steps(ctx, *x.shape[:2], x.device)
        backward = self.there if self.back is None else self.back
        reverse = (backward, take(x, order), replace(ctx.along(order), segments=self._falling(ctx, order)))
        if self.merge == "alternate":
            return Out(self._run(*reverse, order) if self.layer % 2 == 0 else self.there(x, ctx).y)
        return Out(_merge([self.there(x, ctx).y, self._run(*reverse, order)], self.merge, self.project))

    @staticmethod
    def _falling(ctx: SeqContext, order: Tensor) -> Tensor | None:
        return None if ctx.segments is None else ~take(ctx.segments.to(torch.int64), order)

    @staticmethod
    def _run(mixer: Mixer, x: Tensor, ctx: SeqContext, order: Tensor) -> Tensor:
        return take(mixer(x, ctx).y, order)  # a reversal is its own inverse


class MultiPath(Mixer):
    """One mixer, or one per path, along the paths of `ctx.orders`: y = merge_p(unpermute_p(m_p(permute_p(x))))."""

    causal = False
    exempt = {
        "step": NO_STATE,
        "split": NO_STATE,
        "causal": "a path goes anywhere",
        "packed": "a path through several packed sequences is no path of one",
        "matrix": "the paths end in read-outs of their own",
    }

    packs = False  # paths number the steps of the whole sequence: each mixer inside packs along its own
    MERGES = ("sum", "mean", "concat")

    def __init__(
        self,
        make: Callable[[], Mixer],
        paths: int,
        *,
        tied: bool = False,
        merge: str = "sum",
        channels: Tensor | None = None,
    ):
        """`channels` (paths, D) int64: the channel permutation of each path, an involution; None: none."""
        first = _pathless("MultiPath", make())
        super().__init__(first.dim)
        if paths < 1:
            raise BadArgument(f"MultiPath: paths: expected at least 1, got {paths}")
        if merge not in self.MERGES:
            raise BadArgument(f"MultiPath: merge: expected one of {', '.join(self.MERGES)}, got {merge!r}")
        self.uses, self.wants = (first.uses | {"orders", "inverses"}) - {"kept", "segments"}, frozenset()
        self.paths, self.merge, self.decays = paths, merge, first.scales()
        self.mixers = nn.ModuleList([first] if tied else [first, *(make() for _ in range(paths - 1))])
        self.project = nn.Linear(paths * self.dim, self.dim, bias=False) if merge == "concat" else None
        if channels is not None:
            expect("MultiPath", "channels", channels, paths, self.dim)
            expect_numbers("MultiPath", "channels", channels)
            inside = bool(((channels >= 0) & (channels < self.dim)).all())
            if not inside or not torch.equal(channels.gather(1, channels), torch.arange(self.dim).expand(paths, -1)):
                raise BadArgument(
                    "MultiPath: channels: expected involutions (applied twice, nothing changes), got others"
                )
        self.register_buffer("channels", channels, persistent=False)

    def scales(self) -> int:
        """Those of the inner mixers."""
        return self.decays

    def check(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str], *, least: int = 1) -> None:
        """As any mixer's; orders and inverses of all paths must be there, and be permutations and their inverses."""
        super().check(x, ctx, state, want, least=least)
        batch, steps, _ = x.shape
        if ctx.orders is None or ctx.inverses is None:
            raise BadArgument(f"MultiPath: ctx.orders: expected orders and inverses of {self.paths} paths, got None")
        for name in ("orders", "inverses"):
            tensor = getattr(ctx, name)
            expect("MultiPath", f"ctx.{name}", tensor, *((batch,) if tensor.ndim == 3 else ()), self.paths, steps)
            expect_numbers("MultiPath", f"ctx.{name}", tensor)
        if torch.compiler.is_compiling():
            return
        count = torch.arange(steps, device=x.device)
        if torch.equal(back := _there_and_back(ctx.orders, ctx.inverses), count.expand_as(back)):
            return  # then every step is in its order
        for name, kind, tensor in (
            ("orders", f"a permutation of 0..{steps - 1}", ctx.orders.sort(-1).values),
            ("inverses", "the inverse of its order", back),
        ):
            wrong = (tensor != count).any(-1)
            if bool(wrong.any()):
                *row, path = wrong.nonzero()[0].tolist()
                where = f"path {path} of row {row[0]}" if row else f"path {path}"
                got = getattr(ctx, name)[(*row, path) if getattr(ctx, name).ndim == tensor.ndim else path].tolist()
                raise BadArgument(f"MultiPath: ctx.{name}: expected {kind} in {where}, got {got[:8]}")

    def mix(self, x: Tensor, ctx: SeqContext, state: State | None, want: frozenset[str]) -> Out:
        """Every path, merged; with tied weights the paths are one batch."""
        orders, inverses = (t if t.ndim == 3 else t.expand(x.shape[0], -1, -1) for t in (ctx.orders, ctx.inverses))
        plain = replace(ctx, orders=None, inverses=None, lengths=None, mask=ctx.valid(x.shape[1]))
        if len(self.mixers) == 1:
            ys = self._together(x, plain, orders, inverses)
        else:
            ys = [self._path(mixer, x, plain, orders[:, p], inverses[:, p], p) for p, mixer in enumerate(self.mixers)]
        return Out(_merge(ys, self.merge, self.project))

    def _path(self, mixer: Mixer, x: Tensor, ctx: SeqContext, order: Tensor, inverse: Tensor, p: int) -> Tensor:
        moved = take(x, order) if self.channels is None else take(x, order)[..., self.channels[p]]
        y = take(mixer(moved, ctx.along(order)).y, inverse)
        return y if self.channels is None else y[..., self.channels[p]]

    def _together(self, x: Tensor, ctx: SeqContext, orders: Tensor, inverses: Tensor) -> list[Tensor]:
        """All paths as one batch of P * B sequences through the tied mixer."""
        wide, index = x.repeat(self.paths, 1, 1), orders.transpose(0, 1).flatten(0, 1)
        if self.channels is not None:
            spread = self.channels.repeat_interleave(x.shape[0], 0)[:, None].expand_as(wide)
            wide = wide.gather(2, spread)
        per_step = {
            name: getattr(ctx, name).repeat(self.paths, *(1,) * (getattr(ctx, name).ndim - 1))
            for name in ctx.given() - {"memory"}
        }
        if ctx.memory is not None:
            per_step["memory"] = {k: v.repeat(self.paths, *(1,) * (v.ndim - 1)) for k, v in ctx.memory.items()}
        y = self.mixers[0](take(wide, index), replace(ctx, **per_step).along(index)).y
        y = take(y, inverses.transpose(0, 1).flatten(0, 1))
        if self.channels is not None:
            y = y.gather(2, spread)
        return list(y.unflatten(0, (self.paths, -1)))  # not chunk, which would fix the batch of an exported program


def _there_and_back(orders: Tensor, inverses: Tensor) -> Tensor:
    """Where each step of (P, L) or (B, P, L) paths comes to lie; -1 for what names no step."""
    orders, inverses = torch.broadcast_tensors(orders, inverses)
    inside = (inverses >= 0) & (inverses < orders.shape[-1])
    return torch.where(inside, orders.gather(-1, inverses.clamp(0, orders.shape[-1] - 1)), -1)
