"""The law suite of mixers: what every mixer, in every wrapper and on every backend, must keep.

Each law takes a function that builds a fresh mixer (the same weights every time) and raises AssertionError where it
does not hold. Laws are exact ones: in float64 they hold to 1e-10. Padded, packed, pruned, split, by step and as a
matrix, a mixer has every other field of the context that it uses beside it (`everything`), and a state where it takes
one. A mixer that cannot keep a law says so, with the reason, in `exempt`; tests run the exempted laws too and expect
them to fail. `LAWS` is what tests/mixers/test_laws.py runs over every mixer; `NEEDS` tells which field of the context a
law is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..ops.backends import use_backend
from .base import Mixer, Out, SeqContext, State, take
from .wrappers import Bidirectional, MultiPath

Make = Callable[[], Mixer]
STATE = frozenset({"state"})
EXACT = {"rtol": 0.0, "atol": 1e-10}


def example(mixer: Mixer, batch: int = 2, steps: int = 11, seed: int = 1) -> Tensor:
    """A seeded input in the mixer's dtype."""
    x = torch.randn(batch, steps, mixer.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(next(iter(mixer.parameters()), x).dtype)


def equal(ours, theirs, what: str, **tolerance) -> None:
    """Tensors, or dicts of them, agree."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), f"{what}: {sorted(ours)} against {sorted(theirs)}"
        for name in ours:
            equal(ours[name], theirs[name], f"{what}, state {name}", **tolerance)
    else:
        torch.testing.assert_close(ours, theirs, **{**EXACT, **tolerance}, msg=lambda text: f"{what}: {text}")


def recurrent(state: State) -> State:
    """The parts of a state that a later step depends on: a cache may hold padding that nobody looks at."""
    if "valid" not in state:
        return state
    order = state["valid"].to(torch.int8).argsort(dim=1, stable=True)
    return {
        name: t if t.ndim == 1 else take(t, order)[:, int((~state["valid"]).sum(1).max()) :]
        for name, t in state.items()
    }


def everything(mixer: Mixer, batch: int, steps: int, seed: int = 7) -> SeqContext:
    """A seeded value of every per-step field that the mixer uses, but segments: what a test sets beside them."""
    made, dtype = torch.Generator().manual_seed(seed), example(mixer, 1, 1).dtype

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, steps, *shape, generator=made, dtype=torch.float64).to(dtype)

    values = {
        "dt_scale": 2 * random(mixer.scales()), "log_decay": -random(1), "write": random() < 0.7,
        "positions": 9 * random().double(), "memory": {"other": random(mixer.dim)},
    }  # fmt: skip
    return SeqContext(**{name: value for name, value in values.items() if name in mixer.uses})


def section(ctx: SeqContext, row: int, places) -> SeqContext:
    """The context of one sequence at some of its steps, field by field."""
    fields = {name: getattr(ctx, name) for name in ctx.given()}
    memory = fields.pop("memory", None)
    cut = {name: tensor[row : row + 1, places] for name, tensor in fields.items()}
    return SeqContext(**cut, memory=memory and {name: tensor[row : row + 1, places] for name, tensor in memory.items()})


def started(m: Mixer, batch: int, beside: str = "") -> State | None:
    """A state some steps in, where the mixer takes one beside the field `beside`."""
    if "state" not in m.wants or "split" in m.exempt:
        return None
    state = m(example(m, batch, 3, seed=5), want=STATE).state
    return None if beside == "segments" and "valid" in state else state  # a cache of keys takes no packed sequences


def row_of(state: State | None, row: int) -> State | None:
    """The state of one sequence."""
    return None if state is None else {name: tensor[row : row + 1] for name, tensor in state.items()}


def numbered(*rows: tuple[int, ...]) -> Tensor:
    """Segment numbers (B, L) of rows that hold sequences of these lengths."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)) * 2, torch.tensor(row)) for row in rows])


def with_everything(m: Mixer, batch: int, steps: int):
    """Contexts of all fields without and with packed sequences, each with a state that goes with it."""
    ctx = everything(m, batch, steps)
    yield ctx, started(m, batch)
    if "segments" in m.uses:
        cuts = [(3, 1, steps - 4), (steps - 2, 2), (1, steps - 1)][:batch]
        yield replace(ctx, segments=numbered(*cuts)), started(m, batch, "segments")


def step_by_step(make: Make) -> None:
    """A loop of `step` gives the outputs and the state of one forward pass, with every per-step field beside it.

    A step that is not valid leaves the state of its sequence as it is, to the bit, and gives zeros.
    """
    m = make()
    x, state = example(m), m.init_state(2, dtype=torch.float64)
    full = m(x, want=STATE)
    ys = []
    for x_t in x.unbind(1):
        out = m.step(x_t, None, state)
        ys.append(out.y)
        state = out.state
    equal(torch.stack(ys, 1), full.y, "step loop")
    equal(state, full.state, "step loop")
    mask = torch.tensor([[True] * 4 + [False] * 3, [False, True, True, False, True, True, False]])
    x, ctx, state = example(m, steps=7), replace(everything(m, 2, 7), mask=mask), started(m, 2)
    full = m(x, ctx, state, STATE)
    for t in range(7):
        rows = [section(ctx, row, slice(t, t + 1)) for row in range(2)]
        names = ctx.given() - {"memory"}
        now = SeqContext(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})
        if ctx.memory is not None:
            now = replace(now, memory={name: tensor[:, t : t + 1] for name, tensor in ctx.memory.items()})
        given = torch.where(mask[:, t : t + 1], x[:, t], torch.nan)
        out = m.step(given, now, state)
        equal(out.y, full.y[:, t], f"step {t} of padded sequences")
        for row in (~mask[:, t]).nonzero()[:, 0].tolist():
            for name, before in state.items():
                same = out.state[name][row, : before.shape[1]] if before.ndim > 1 else out.state[name][row]
                assert torch.equal(same, before[row]), f"step {t}: the state {name} of a finished sequence changed"
        state = out.state
    equal(recurrent(state), recurrent(full.state), "steps of padded sequences")


def split(make: Make) -> None:
    """Two passes with the state handed over give one, wherever the cut is."""
    m = make()
    x = example(m)
    full = m(x, want=STATE)
    for cut in (1, 4, 10):
        first = m(x[:, :cut], want=STATE)
        second = m(x[:, cut:], state=first.state, want=STATE)
        equal(torch.cat([first.y, second.y], 1), full.y, f"split at {cut}")
        equal(second.state, full.state, f"split at {cut}")
    ctx, state = everything(m, 1, 11), started(m, 1)
    full = m(x[:1], ctx, state, m.wants)
    first = m(x[:1, :4], section(ctx, 0, slice(4)), state, m.wants)
    second = m(x[:1, 4:], section(ctx, 0, slice(4, None)), first.state, m.wants)
    equal(torch.cat([first.y, second.y], 1), full.y, "split with every field")
    equal(second.state, full.state, "split with every field")
    equal({name: torch.cat([first.aux[name], second.aux[name]], 1) for name in full.aux}, full.aux, "aux, split")
    places = [0, *range(2, 11)]  # the first part ends in padding
    full = m(x[:1, places], section(ctx, 0, places), want=STATE)
    first = m(x[:1, :2], replace(section(ctx, 0, slice(2)), lengths=torch.tensor([1])), want=STATE)
    second = m(x[:1, 2:], section(ctx, 0, slice(2, None)), first.state, STATE)
    equal(torch.cat([first.y[:, :1], second.y], 1), full.y, "split behind padding")
    equal(recurrent(second.state), recurrent(full.state), "split behind padding")


def matrix(make: Make) -> None:
    """The materialized matrix on the values, read out, is the output."""
    m = make()
    x = example(m)
    found = m.materialize(x)
    mixed = torch.einsum("bhts,bshp->bthp", found.matrix, found.values)
    equal(m.finish(mixed, found.parts), m(x).y, "matrix")
    mask = torch.tensor([[True] * 6 + [False] * 5, [False, True, True, False, True, False] + [True] * 5])
    for ctx, _ in with_everything(m, 2, 11):
        given = {"plain": ctx, "lengths": replace(ctx, lengths=torch.tensor([11, 5])), "mask": replace(ctx, mask=mask)}
        if "kept" in m.uses:
            given["kept"] = replace(ctx, kept=torch.tensor([[1, 4, 5, 8], [0, 3, 9, 10]]))
        for name, each in given.items():
            found = m.materialize(x, each)
            mixed = torch.einsum("bhts,bshp->bthp", found.matrix, found.values)
            equal(m.finish(mixed, found.parts), m(x, each).y, f"matrix with every field, {name}")
            if name == "mask":
                assert not found.matrix.transpose(1, 2)[~mask].any(), "a padded step mixes"
                assert not found.matrix.transpose(1, 3)[~mask].any(), "a padded step is mixed"
                assert not found.values[~mask].any(), "a padded step has values"


def packed(make: Make) -> None:
    """Sequences behind one another in one row are what each is alone, and the state is that of the last."""
    m, lengths = make(), (3, 1, 5, 2)
    x = example(m, steps=sum(lengths))
    numbers = torch.repeat_interleave(torch.tensor([0, 4, 5, 9]), torch.tensor(lengths)).expand(2, -1)
    out = m(x, SeqContext(segments=numbers), want=STATE & m.wants)
    alone = [m(part, want=STATE & m.wants) for part in x.split(lengths, 1)]
    equal(out.y, torch.cat([part.y for part in alone], 1), "packed")
    if out.state is not None and "valid" not in out.state:  # a cache of keys holds all sequences of a row
        equal(out.state, alone[-1].state, "packed")
    cuts, ctx, state = ((3, 1, 5, 2), (2, 6, 3)), everything(m, 2, 11), started(m, 2, "segments")
    out = m(x, replace(ctx, segments=numbered(*cuts)), state, m.wants)
    for row, cut in enumerate(cuts):
        before, start = row_of(state, row), 0
        for steps in cut:
            places = slice(start, start + steps)
            one = m(x[row : row + 1, places], section(ctx, row, places), before, m.wants)
            equal(out.y[row : row + 1, places], one.y, f"packed with every field, steps from {start}")
            equal({name: t[row : row + 1, places] for name, t in out.aux.items()}, one.aux, "aux, packed")
            before, start = None, start + steps
        if out.state is not None and "valid" not in out.state:
            equal(row_of(out.state, row), one.state, "packed with every field")


def padding(make: Make) -> None:
    """Steps that are not valid change nothing, wherever they are, have no gradient, and give zeros."""
    m = make()
    x = example(m, steps=7)
    want = STATE & m.wants
    plain = m(x, want=want)
    for places in ([0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9], [0, 2, 3, 4, 7, 8, 9]):
        mask = torch.zeros(2, 10, dtype=torch.bool)
        mask[:, places] = True
        wide = torch.full((2, 10, m.dim), 1e3, dtype=x.dtype)
        wide[:, places] = x
        wide.requires_grad_()
        out = m(wide, SeqContext(mask=mask), want=want)
        equal(out.y[:, places], plain.y, f"valid steps at {places}")
        assert not out.y[~mask].any(), "outputs at invalid steps are not zero"
        (gradient,) = torch.autograd.grad(out.y.square().sum(), wide)
        assert not gradient[~mask].any(), "invalid steps have a gradient"
        if want:
            equal(recurrent(out.state), recurrent(plain.state), f"valid steps at {places}")
    right = m(wide := torch.cat([x, torch.full_like(x, 1e3)], 1), SeqContext(lengths=torch.tensor([7, 7])), want=want)
    equal(right.y[:, :7], plain.y, "lengths")
    uneven = m(wide, SeqContext(lengths=torch.tensor([7, 4])), want=want)
    equal(uneven.y[1:, :4], m(x[1:, :4]).y, "uneven lengths")
    places = ([0, 1, 2, 3, 4], [1, 2, 4, 7], [0, 1, 2, 3, 4, 5, 6, 7])
    mask = torch.stack([torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(p), True) for p in places])
    x = example(m, batch=3, steps=8)
    for ctx, state in with_everything(m, 3, 8):
        out = m(_wild(x, mask), replace(_wild_context(ctx, mask), mask=mask), state, m.wants)
        _padded(m, x, ctx, state, mask, out)
        if parameters := list(m.parameters()):
            gradients = torch.autograd.grad(out.y.square().sum(), parameters, allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in gradients), "padding enters gradients"
        right = torch.arange(8) < (lengths := torch.tensor([5, 1, 8]))[:, None]
        wild = replace(_wild_context(ctx, right), lengths=lengths)
        _padded(m, x, ctx, state, right, m(_wild(x, right), wild, state, m.wants))


def _wild(tensor: Tensor, mask: Tensor) -> Tensor:
    """Padding that shows wherever it is read: NaN, True, or a number of its own."""
    mask = mask.view(*mask.shape, *(1,) * (tensor.ndim - 2))
    wild = torch.nan if tensor.is_floating_point() else True if tensor.dtype == torch.bool else 1000
    return torch.where(mask, tensor, torch.full_like(tensor, wild))


def _wild_context(ctx: SeqContext, mask: Tensor) -> SeqContext:
    fields = {name: _wild(getattr(ctx, name), mask) for name in ctx.given() - {"memory"}}
    memory = ctx.memory and {name: _wild(tensor, mask) for name, tensor in ctx.memory.items()}
    return replace(ctx, **fields, memory=memory)


def _padded(m: Mixer, x: Tensor, ctx: SeqContext, state: State | None, mask: Tensor, out: Out) -> None:
    """`out` is, in each row, that of its valid steps alone."""
    for name, tensor in {"y": out.y, **out.aux}.items():
        assert not tensor[~mask].any(), f"{name} at invalid steps is not zero"
    for row, valid in enumerate(mask):
        places = valid.nonzero()[:, 0]
        one = m(x[row : row + 1, places], section(ctx, row, places), row_of(state, row), m.wants)
        equal(out.y[row : row + 1, places], one.y, f"padded with every field, row {row}")
        equal({name: t[row : row + 1, places] for name, t in out.aux.items()}, one.aux, "aux, padded")
        if out.state is not None:
            equal(recurrent(row_of(out.state, row)), recurrent(one.state), f"padded with every field, row {row}")


def path(make: Make) -> None:
    """Along a path and back: the wrapper is the mixer on the permuted steps, and the plain order is the mixer."""
    m = make()
    x = example(m)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    inverse = order.argsort()
    for tied in (True, False):
        wrapped = MultiPath(make, 2, tied=tied).double()
        orders, inverses = (torch.stack([torch.arange(11), t]) for t in (order, inverse))
        out = wrapped(x, SeqContext(orders=orders, inverses=inverses)).y
        equal(out, m(x).y + m(x[:, order]).y[:, inverse], f"paths, tied={tied}")


def both_ways(make: Make) -> None:
    """Bidirectional is forward plus forward on the flip, with padding and packed sequences too."""
    m = make()
    x = example(m)
    wrapped = Bidirectional(make, tied=True, merge="sum").double()
    equal(wrapped(x).y, m(x).y + m(x.flip(1)).y.flip(1), "bidirectional")
    padded = torch.cat([x, torch.full_like(x[:, :3], 1e3)], 1)
    equal(wrapped(padded, SeqContext(lengths=torch.tensor([11, 11]))).y[:, :11], wrapped(x).y, "bidirectional, padded")
    if "segments" in m.uses:
        numbers = torch.tensor([0] * 4 + [1] * 7).expand(2, -1)
        alone = torch.cat([wrapped(x[:, :4]).y, wrapped(x[:, 4:]).y], 1)
        equal(wrapped(x, SeqContext(segments=numbers)).y, alone, "bidirectional, packed")


def causal(make: Make) -> None:
    """Later steps do not change earlier outputs (and do change their own)."""
    m = make()
    x = example(m)
    other = x.clone()
    other[:, 6:] = example(m, seed=2)[:, 6:]
    one, two = m(x).y, m(other).y
    equal(one[:, :6], two[:, :6], "causal")
    assert not torch.allclose(one[:, 6:], two[:, 6:])


def gradients(make: Make) -> None:
    """Gradients of output and final state to input, initial state and every parameter are those of differences."""
    m = make()
    x = example(m, batch=1, steps=4).requires_grad_()
    want = STATE & m.wants
    state = {}
    if want and "split" not in m.exempt:
        state = m(example(m, batch=1, steps=3, seed=5), want=want).state
        state = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in state.items()}
    floats = [name for name, t in state.items() if t.is_floating_point() and t.numel()]
    names = [name for name, _ in m.named_parameters()]

    def run(x, *rest):
        given = {**state, **dict(zip(floats, rest, strict=False))} or None
        weights = dict(zip(names, rest[len(floats) :], strict=True))
        out = torch.func.functional_call(m, weights, (x,), {"state": given, "want": want})
        return out.y, *(out.state[name] for name in floats if out.state is not None)

    parameters = [p.detach().clone().requires_grad_() for p in m.parameters()]
    assert torch.autograd.gradcheck(run, (x, *(state[name] for name in floats), *parameters), fast_mode=True)


def saving(make: Make) -> None:
    """Weights through safetensors give the same bits."""
    from safetensors.torch import load, save

    m, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(load(save(m.state_dict())))
    x = example(m)
    equal(other(x).y, m(x).y, "saved and loaded", atol=0.0)


def poisoned(make: Make) -> None:
    """No output depends on memory that nobody wrote: with NaN in every new tensor nothing changes."""
    m = make()
    x = example(m, steps=13).requires_grad_()
    clean = m(x).y
    (before,) = torch.autograd.grad(clean.square().sum(), x)
    kept = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        y = m(x).y
        (after,) = torch.autograd.grad(y.square().sum(), x)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = kept
    equal(y, clean, "poisoned")
    equal(after, before, "poisoned gradient")


def points_replace(make: Make) -> None:
    """A hook at an observation point sees a tensor and can replace it; the points are run through in their order."""
    m = make()
    x, seen = example(m), []
    for name, module in m.points().items():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.append(name))
    before = m(x).y
    assert seen == list(m.points()), f"{seen} against {list(m.points())}"
    m.points()["out"].register_forward_hook(lambda _, inputs, output: 2 * output)
    equal(m(x).y, 2 * before, "replaced")


class Changed(torch.nn.Module):
    """Any module with its output changed: a stand-in for adapters, quantizers and the like."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        """What `inner` gives, changed."""
        return changed(self.inner(*args, **kwargs))


def changed(output: Tensor | Out) -> Tensor | Out:
    """1.25 y + 0.125."""
    return replace(output, y=changed(output.y)) if isinstance(output, Out) else 1.25 * output + 0.125


def parts_of(mixer: Mixer) -> list[str]:
    """Names of the modules that compute: all but containers and observation points."""
    containers = (torch.nn.ModuleDict, torch.nn.ModuleList, torch.nn.Sequential)
    return [
        name
        for name, module in mixer.named_modules()
        if name and "observe" not in name.split(".") and not isinstance(module, containers)
    ]


def parts_count(make: Make) -> None:
    """A wrapper around any submodule, or a hook on it, changes what the mixer does, in every form alike."""
    x, plain = example(make()), make()(example(make())).y
    for name in parts_of(make()):

        def wrapped(name=name) -> Mixer:
            m = make()
            m.set_submodule(name, Changed(m.get_submodule(name)))
            return m

        m, hooked = wrapped(), make()
        y = m(x).y
        assert not torch.allclose(y, plain), f"a wrapper around {name} has no effect"
        handle = hooked.get_submodule(name).register_forward_hook(lambda _, inputs, output: changed(output))
        equal(hooked(x).y, y, f"hook on {name}")
        handle.remove()
        equal(hooked(x).y, plain, f"hook on {name} taken off")
        if "segments" in m.uses:
            numbers = torch.tensor([0] * 4 + [2] * 7).expand(2, -1)
            parts = [m(part).y for part in x.split([4, 7], 1)]
            equal(m(x, SeqContext(segments=numbers)).y, torch.cat(parts, 1), f"{name} wrapped, packed")
        for law in (step_by_step, split, matrix):
            if LAW_NAMES[law] not in m.exempt:
                law(wrapped)
        if "dt_scale" in m.uses and "step" not in m.exempt:
            time_scale(wrapped)


def time_scale(make: Make) -> None:
    """dt_scale of one changes nothing, another does, and one step takes it as a whole pass does."""
    m = make()
    x = example(m)
    scale = torch.rand(2, 11, m.scales(), dtype=torch.float64) * 2
    equal(m(x, SeqContext(dt_scale=torch.ones(2, 11, 1, dtype=x.dtype))).y, m(x).y, "dt_scale of one")
    full = m(x, SeqContext(dt_scale=scale))
    assert not torch.allclose(full.y, m(x).y)
    state, ys = m.init_state(2, dtype=x.dtype), []
    for t in range(11):
        out = m.step(x[:, t], SeqContext(dt_scale=scale[:, t : t + 1]), state)
        ys.append(out.y)
        state = out.state
    equal(torch.stack(ys, 1), full.y, "dt_scale by step")


def extra_decay(make: Make) -> None:
    """A log decay of zero changes nothing; a very negative one forgets all that was before."""
    m = make()
    x = example(m)
    equal(m(x, SeqContext(log_decay=torch.zeros(2, 11, 1, dtype=x.dtype))).y, m(x).y, "no extra decay")
    forget = torch.zeros(2, 11, m.scales(), dtype=x.dtype)
    forget[:, 5] = -1e4
    after = m(x, SeqContext(log_decay=forget), want=STATE)
    start = dict(m(x[:, :5], want=STATE).state)
    start["ssm"] = torch.zeros_like(start["ssm"])
    equal(after.y[:, 5:], m(x[:, 5:], state=start).y, "all forgotten")


def pruned(make: Make) -> None:
    """Scanning kept steps with the dropped time between them is the full scan in which dropped steps do not write."""
    m = make()
    x = example(m)
    kept = torch.tensor([[1, 4, 5, 8], [0, 3, 9, 10]])
    write = torch.zeros(2, 11, dtype=torch.bool).scatter(1, kept, True)
    short, full = m(x, SeqContext(kept=kept), want=STATE), m(x, SeqContext(write=write), want=STATE)
    equal(short.y, take(full.y, kept), "kept steps")
    equal(short.state, full.state, "kept steps")
    kept = torch.tensor([[5, 6, 8], [0, 3, 10]])  # the first packed sequences of row 0 are dropped whole
    wrote = torch.zeros(2, 11, dtype=torch.bool).scatter(1, kept, True)
    for ctx, state in with_everything(m, 2, 11):
        short = m(x, replace(ctx, kept=kept), state, m.wants)
        full = m(x, replace(ctx, write=ctx.write & wrote), state, m.wants)
        equal(short.y, take(full.y, kept), "kept steps with every field")
        equal(short.state, full.state, "kept steps with every field")
        equal(short.aux, {name: take(tensor, kept) for name, tensor in full.aux.items()}, "aux, kept steps")


LAWS: dict[str, Callable[[Make], None]] = {
    "step": step_by_step, "split": split, "matrix": matrix, "packed": packed, "padding": padding, "path": path,
    "both_ways": both_ways, "causal": causal, "gradients": gradients, "saving": saving, "poisoned": poisoned,
    "points": points_replace, "time_scale": time_scale, "extra_decay": extra_decay, "pruned": pruned,
    "parts": parts_count,
}  # fmt: skip
LAW_NAMES = {law: name for name, law in LAWS.items()}
#: the field of the context that a mixer must use for a law to apply
NEEDS = {"time_scale": "dt_scale", "extra_decay": "log_decay", "pruned": "kept", "packed": "segments"}


def applies(law: str, mixer: Mixer) -> bool:
    """Whether the mixer claims the capability that the law is about; exempted laws apply and are expected to fail."""
    return law not in NEEDS or NEEDS[law] in mixer.uses


def agree(make: Make, backend: str, steps: int = 23, **tolerance) -> None:
    """A backend gives the reference's outputs, state and gradients."""
    found = []
    for name in ("reference", backend):
        m = make()
        x = example(m, steps=steps).requires_grad_()
        with use_backend(name):
            out = m(x, want=STATE & m.wants)
            state = {} if out.state is None else {k: v for k, v in out.state.items() if v.is_floating_point()}
            loss = (out.y * out.y.detach().cos()).sum() + sum((v * v.detach().cos()).sum() for v in state.values())
            gradient = torch.autograd.grad(loss, [x, *m.parameters()], allow_unused=True)
        names = ["x", *(n for n, _ in m.named_parameters())]
        given = zip(names, [x, *m.parameters()], gradient, strict=True)
        found.append(({"y": out.y, **state}, {n: torch.zeros_like(p) if g is None else g for n, p, g in given}))
    equal(found[1][0], found[0][0], backend, **tolerance)
    equal(found[1][1], found[0][1], f"{backend}, gradients", **tolerance)
