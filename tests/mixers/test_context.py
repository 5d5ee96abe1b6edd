"""Side information through wrappers: every field at once, padded anywhere, against plain definitions in float64."""

import functools
from dataclasses import replace

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers import create_mixer, laws
from statezoo.zoo.mixers.base import Mixer, Out, SeqContext
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.mixers.short_conv import ShortConv
from statezoo.zoo.mixers.wrappers import Bidirectional, MultiPath
from statezoo.zoo.nn.rope import rotate
from torch import nn

DIM = 4


class Reader(S6):
    """S6 that also reads a memory and positions, so that it uses every per-step field there is."""

    uses = S6.uses | {"memory", "positions"}

    def project(self, u, ctx=None, state=None):
        if ctx.memory is not None:
            u = u + ctx.memory["other"]
        if ctx.positions is not None:
            u = u * ctx.positions[..., None].to(u.dtype).cos()
        return super().project(u, ctx, state)


INNER = {
    "reader": lambda: Reader(DIM, d_state=2, expand=1, d_conv=3, dt_max=2.0),
    "ssd": lambda: create_mixer({"name": "ssd", "d_state": 3, "head_dim": 2, "dt_max": 2.0}, DIM),
    "attention": lambda: create_mixer({"name": "attention", "heads": 2, "rope": 50.0, "window": 3}, DIM),
    "short_conv": lambda: ShortConv(DIM),
}
inner_mixers = pytest.mark.parametrize("inner", list(INNER))


def weighty(mixer):
    """Weights large enough that mistakes show."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.double().eval()


def seeded(build):
    torch.manual_seed(11)
    return weighty(build())


def rand(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_mixer_that_uses_every_field_keeps_the_laws():
    assert Reader.uses == set(laws.everything(seeded(INNER["reader"]), 1, 1).given()) | {"segments", "kept"}
    for law in ("step", "split", "matrix", "packed", "padding", "both_ways", "path", "causal", "pruned"):
        laws.LAWS[law](functools.partial(seeded, INNER["reader"]))


@pytest.mark.parametrize("name", ["mlstm", "attention"])
def test_positions_turn_queries_and_keys(name):
    """Those that are given; by default the number of steps before."""
    turned = seeded(lambda: create_mixer({"name": name, "heads": 2, "rope": 50.0}, DIM))
    plain = seeded(lambda: create_mixer({"name": name, "heads": 2}, DIM))
    x, places = rand(2, 5, DIM), 9 * rand(2, 5, seed=4)
    wanted = plain.project(x, SeqContext())
    for positions, ctx in ((places, SeqContext(positions=places)), (torch.arange(5.0).expand(2, -1), SeqContext())):
        parts = turned.project(x, ctx)
        close(parts.q, rotate(wanted.q, positions, 50.0))
        close(parts.k, rotate(wanted.k, positions, 50.0))
    assert not torch.allclose(turned(x, SeqContext(positions=places)).y, turned(x).y)


# both directions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", Bidirectional.MERGES)
@pytest.mark.parametrize("tied", [True, False])
def test_both_directions_keep_the_laws_with_every_field(tied, merge):
    def make():
        return seeded(lambda: Bidirectional(INNER["reader"], tied=tied, merge=merge))

    for law in ("packed", "padding"):
        laws.LAWS[law](make)


@pytest.mark.parametrize(("merge", "layer"), [*((merge, 0) for merge in Bidirectional.MERGES), ("alternate", 1)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inner", ["reader", "attention"])
def test_both_directions_are_forward_and_forward_on_the_flip(inner, tied, merge, layer):
    wrapped = seeded(lambda: Bidirectional(INNER[inner], tied=tied, merge=merge, layer=layer))
    x, ctx = rand(2, 6, DIM), laws.everything(wrapped, 2, 6)
    ctx = replace(ctx, segments=torch.tensor([[0, 0, 3, 3, 3, 4], [1, 1, 1, 1, 2, 2]]))
    memory = ctx.memory and {"other": ctx.memory["other"].flip(1)}
    names = ctx.given() - {"memory", "segments"}
    flipped = SeqContext(
        **{name: getattr(ctx, name).flip(1) for name in names}, segments=9 - ctx.segments.flip(1), memory=memory
    )
    back = wrapped.there if wrapped.back is None else wrapped.back
    assert (wrapped.back is None) == (tied or merge == "alternate")
    one, two = wrapped.there(x, ctx).y, back(x.flip(1), flipped).y.flip(1)
    wanted = {"sum": one + two, "mean": (one + two) / 2, "alternate": (two, one)[layer]}
    close(wrapped(x, ctx).y, wrapped.project(torch.cat([one, two], -1)) if merge == "concat" else wanted[merge])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("inner", ["reader", "short_conv"])
def test_segment_numbers_of_any_whole_dtype(inner, dtype):
    numbers = torch.tensor([[0, 0, 3, 100, 100, 127]] * 2)
    for build in (INNER[inner], lambda: Bidirectional(INNER[inner])):
        mixer, x = seeded(build), rand(2, 6, DIM)
        wanted = mixer(x, SeqContext(segments=numbers)).y
        close(mixer(x, SeqContext(segments=numbers.to(dtype))).y, wanted)


# paths ------------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 3, 4
CELLS = ROWS * COLUMNS
CROSS = torch.arange(CELLS).view(ROWS, COLUMNS)
CROSS = torch.stack([CROSS.flatten(), CROSS.t().flatten(), CROSS.flatten().flip(0), CROSS.t().flatten().flip(0)])
OWN = torch.stack([torch.stack([torch.randperm(CELLS, generator=torch.Generator().manual_seed(9 * b + p))
                                for p in range(4)]) for b in range(3)])  # fmt: skip
CHANNELS = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [0, 1, 2, 3]])
MASK = torch.ones(3, CELLS, dtype=torch.bool)
MASK[0, [2, 7]] = MASK[1, [0, 3, 4, 5, 11]] = False
LENGTHS = torch.tensor([CELLS, 5, 1])


def by_hand(wrapped, x, ctx, valid):
    """Each path of each sequence alone: the invalid cells are taken off it, the inner mixer runs on what is left."""
    ys, plain = [], replace(ctx, orders=None, inverses=None, mask=None, lengths=None)
    for p in range(wrapped.paths):
        mixer = wrapped.mixers[p if len(wrapped.mixers) > 1 else 0]
        channels = torch.arange(DIM) if wrapped.channels is None else wrapped.channels[p]
        y = torch.zeros_like(x)
        for b in range(len(x)):
            order = ctx.orders[p] if ctx.orders.ndim == 2 else ctx.orders[b, p]
            cells = [cell for cell in order.tolist() if valid[b, cell]]
            out = mixer(x[b : b + 1, cells][..., channels], laws.section(plain, b, cells)).y
            y[b, cells] = out[0][:, channels]
        ys.append(y)
    if wrapped.merge == "concat":
        return wrapped.project(torch.cat(ys, -1))
    return sum(ys) / (len(ys) if wrapped.merge == "mean" else 1)


def multi(inner, **options):
    return seeded(lambda: MultiPath(INNER.get(inner, inner), 4, **options))


def path_cases(wrapped):
    """Contexts with every field, orders for all or for each sequence, and the cells that are valid in them."""
    everything = laws.everything(wrapped, 3, CELLS)
    for orders in (CROSS, OWN):
        ctx = replace(everything, orders=orders, inverses=orders.argsort(-1))
        yield ctx, torch.ones_like(MASK)
        yield replace(ctx, mask=MASK), MASK
        yield replace(ctx, lengths=LENGTHS), torch.arange(CELLS) < LENGTHS[:, None]


@pytest.mark.parametrize(
    ("inner", "merge"),
    [*(("reader", merge) for merge in MultiPath.MERGES), ("attention", "sum"), ("short_conv", "sum")],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_path_visits_its_valid_cells_in_its_order(inner, tied, merge):
    wrapped, x = multi(inner, tied=tied, merge=merge, channels=CHANNELS if merge == "mean" else None), rand(3, 12, DIM)
    assert len({id(mixer) for mixer in wrapped.mixers}) == (1 if tied else 4)
    for ctx, valid in path_cases(wrapped):
        y = wrapped(torch.where(valid[..., None], x, 1e3), ctx).y
        close(y, by_hand(wrapped, x, ctx, valid))
        assert not y[~valid].any()


@pytest.mark.parametrize("tied", [True, False])
def test_paths_of_both_directions(tied):
    """Each direction of each path is over the path's own valid cells."""
    wrapped, x = multi(lambda: Bidirectional(INNER["reader"]), tied=tied), rand(3, 12, DIM)
    for ctx, valid in path_cases(wrapped):
        close(wrapped(x, ctx).y, by_hand(wrapped, x, ctx, valid))


def test_steps_that_are_not_valid_have_no_gradient_along_any_path():
    wrapped, x = multi("reader"), rand(3, 12, DIM).requires_grad_()
    (gradient,) = torch.autograd.grad(
        wrapped(x, SeqContext(orders=CROSS, inverses=CROSS.argsort(-1), mask=MASK)).y.square().sum(), x
    )
    assert not gradient[~MASK].any() and gradient[MASK].any(-1).all()


def refused(call, *parts):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(part in str(caught.value) for part in (*parts, "expected", "got")), str(caught.value)
    assert "\n" not in str(caught.value)


BAD = CROSS.clone()
BAD[2, 3] = BAD[2, 4]


@pytest.mark.parametrize("tied", [True, False])
def test_orders_that_are_no_permutations_are_refused(tied):
    wrapped, x, inverses = multi("short_conv", tied=tied), rand(3, CELLS, DIM), CROSS.argsort(-1)

    def run(orders, inverses):
        return lambda: wrapped(x, SeqContext(orders=orders, inverses=inverses))

    refused(run(BAD, inverses), "MultiPath", "ctx.orders:", "path 2", "permutation of 0..11")
    refused(run(CROSS + 1, inverses), "ctx.orders:", "path 0", "permutation")
    refused(run(CROSS - 1, inverses), "ctx.orders:", "path 0", "permutation")
    refused(run(CROSS, inverses.roll(1, 0)), "ctx.inverses:", "path 0", "inverse")
    refused(run(CROSS, CROSS), "ctx.inverses:", "path 1", "inverse")
    refused(run(CROSS, inverses + 1), "ctx.inverses:", "path 0", "inverse")
    for step, name in ((CELLS - 1, CELLS), (0, -1), (1, 99), (2, 99)):  # beyond either end, by one and by many
        refused(run(CROSS, torch.where(inverses == step, name, inverses)), "ctx.inverses:", "path 0", "inverse")
    own = OWN.clone()
    own[1, 3] = torch.where(own[1, 3] == 11, 10, own[1, 3])
    refused(run(own, OWN.argsort(-1)), "ctx.orders:", "path 3 of row 1", "permutation")
    refused(run(OWN, OWN.argsort(-1).flip(0)), "ctx.inverses:", "path 0 of row 0", "inverse")
    refused(run(CROSS.int(), inverses), "ctx.orders:", "torch.int64", "torch.int32")


@pytest.mark.parametrize(
    "build", [lambda: MultiPath(lambda: MultiPath(INNER["reader"], 2), 2),
              lambda: MultiPath(lambda: Bidirectional(lambda: MultiPath(INNER["reader"], 2)), 2),
              lambda: Bidirectional(lambda: MultiPath(INNER["reader"], 2))]
)  # fmt: skip
def test_a_wrapper_around_paths_is_refused(build):
    """Orders number the steps of the whole sequence: on a reordered one they would name others."""
    refused(build, "make:", "MultiPath")


def test_one_path_is_the_mixer_along_it():
    wrapped, x = seeded(lambda: MultiPath(INNER["reader"], 1)), rand(3, CELLS, DIM)
    order = CROSS[1]
    y = wrapped(x, SeqContext(orders=order[None], inverses=order.argsort()[None])).y
    close(y[:, order], wrapped.mixers[0](x[:, order], SeqContext()).y)


def test_the_first_layer_that_alternates_looks_back():
    wrapped, x = seeded(lambda: Bidirectional(INNER["reader"], merge="alternate")), rand(2, 6, DIM)
    close(wrapped(x).y, wrapped.there(x.flip(1), SeqContext()).y.flip(1))


def test_a_wrapper_without_paths_is_refused():
    refused(lambda: MultiPath(INNER["reader"], 0), "paths:", "0")


# what goes in and what comes out ------------------------------------------------------------------------------------


class Pooled(Mixer):
    """A mixer whose aux is a sum over each sequence beside the steps."""

    wants = frozenset({"sum", "twice"})
    per_sequence = frozenset({"sum"})
    observed = ("out",)

    def mix(self, x, ctx, state, want):
        valid = torch.ones(x.shape[:2], dtype=torch.bool) if ctx.lengths is None else ctx.valid(x.shape[1])
        return Out(x, aux={"sum": (x * valid[..., None]).sum(1), "twice": 2 * x + 1})


@pytest.mark.parametrize("steps", [5, DIM])
def test_aux_of_a_sequence_is_left_as_it_is(steps):
    """Whatever its sizes are; aux of the steps is brought back to its places and zero elsewhere."""
    x, mask = rand(2, steps, DIM), torch.ones(2, steps, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = mask[1, 2] = False
    for ctx, valid in (
        (SeqContext(mask=mask), mask),
        (SeqContext(lengths=torch.tensor([2, 4])), torch.arange(steps) < torch.tensor([[2], [4]])),
        (None, torch.ones_like(mask)),
    ):
        out = Pooled(DIM)(x, ctx, want=frozenset({"sum", "twice"}))
        only = torch.where(valid[..., None], x, 0)
        close(out.aux["sum"], only.sum(1))
        close(out.aux["twice"], torch.where(valid[..., None], 2 * x + 1, 0))


def test_the_last_output_alone_reads_nothing_of_padding():
    """With every field that it takes, and NaN in what lies behind the last valid steps."""
    mixer, x, lengths = seeded(INNER["ssd"]), rand(3, 6, DIM), torch.tensor([6, 2, 4])
    ctx, valid = laws.everything(mixer, 3, 6), torch.arange(6) < lengths[:, None]
    padded = SeqContext(
        lengths=lengths, write=ctx.write,
        **{name: torch.where(valid[..., None], getattr(ctx, name), torch.nan) for name in ("dt_scale", "log_decay")},
    )  # fmt: skip
    weights = mixer.last(torch.where(valid[..., None], x, torch.nan), padded)
    close(weights, torch.stack([mixer(x, replace(ctx, lengths=lengths)).y[b, n - 1] for b, n in enumerate(lengths)]))
    grads = torch.autograd.grad(weights.square().sum(), list(mixer.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("inner", ["reader", "ssd"])
def test_the_phases_alone_freeze_the_state_at_padding(inner):
    """As in a pass: no step that is not valid lets time pass, whatever extra decay it has."""
    mixer, x = seeded(INNER[inner]), rand(3, 6, DIM)
    ctx, state = replace(laws.everything(mixer, 3, 6), lengths=torch.tensor([6, 2, 4])), laws.started(mixer, 3)
    full, parts = mixer(x, ctx, state, laws.STATE), mixer.project(x, ctx, state)
    mixed, final = mixer.scan(parts, ctx, state)
    close({"ssm": final, "conv": parts.conv}, full.state)
    close(mixer.finish(mixed, parts), full.y)


@pytest.mark.parametrize("inner", [*INNER, "cache"])
def test_all_sequences_finished_leave_the_state_as_it_is(inner):
    """A cache without a window does not grow either."""
    mixer = seeded(INNER.get(inner, lambda: create_mixer("attention", DIM)))
    state = mixer(rand(3, 5, DIM), want=laws.STATE).state
    for ctx in (SeqContext(mask=torch.zeros(3, 1, dtype=torch.bool)), SeqContext(lengths=torch.zeros(3).long())):
        out = mixer.step(torch.full((3, DIM), torch.nan, dtype=torch.float64), ctx, state)
        assert torch.equal(out.y, torch.zeros(3, DIM, dtype=torch.float64))
        assert all(torch.equal(out.state[name], before) for name, before in state.items())


@inner_mixers
def test_finished_sequences_by_lengths_as_by_a_mask(inner):
    mixer, x = seeded(INNER[inner]), rand(3, DIM)
    state = mixer(rand(3, 5, DIM), want=laws.STATE).state
    one = mixer.step(x, SeqContext(lengths=torch.tensor([1, 0, 1])), state)
    two = mixer.step(x, SeqContext(mask=torch.tensor([[True], [False], [True]])), state)
    close(one.y, two.y)
    assert not one.y[1].any() and torch.equal(one.y[[0, 2]], mixer.step(x, None, state).y[[0, 2]])
    for name in state:
        assert torch.equal(one.state[name], two.state[name])


@inner_mixers
def test_a_finished_sequence_has_no_gradient(inner):
    """Whatever it holds: to the weights comes that of the others, to its state that of its state handed on."""
    mixer, x, lengths = seeded(INNER[inner]), rand(3, DIM), torch.tensor([1, 0, 1])
    state = mixer(rand(3, 5, DIM), want=laws.STATE).state
    floats = {name: tensor.detach().requires_grad_() for name, tensor in state.items() if tensor.is_floating_point()}
    ctx = laws.everything(mixer, 3, 1)
    ctx = laws._wild_context(ctx, lengths.bool()[:, None])
    out = mixer.step(torch.where(lengths.bool()[:, None], x, torch.nan), replace(ctx, lengths=lengths), state | floats)
    loss = out.y.square().sum() + sum(out.state[name].sum() for name in floats)
    given = [*floats.values(), *mixer.parameters()]
    grads = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
    assert all(grad.isfinite().all() for grad in grads)
    for grad in grads[: len(floats)]:
        assert torch.equal(grad[1], torch.ones_like(grad[1]))


@inner_mixers
def test_what_a_step_cannot_know_is_refused(inner):
    mixer, x = seeded(INNER[inner]), rand(3, DIM)
    state, zeros = mixer.init_state(3, dtype=x.dtype), torch.zeros(3, 1, dtype=torch.int64)
    refused(lambda: mixer.step(x, SeqContext(segments=zeros), state), "ctx.segments:", "a new state")
    refused(lambda: mixer.step(x, None, None), "state:", "init_state")
    refused(lambda: mixer.step(x, SeqContext(lengths=zeros[:, 0] + 2), state), "ctx.lengths:", "0 to 1")
    refused(lambda: mixer.step(x, SeqContext(mask=zeros), state), "ctx.mask:", "bool")
    refused(lambda: mixer.step(x, SeqContext(mask=zeros[:2].bool()), state), "ctx.mask:", "(2, 1)")
    refused(lambda: mixer.step(x, SeqContext(mask=zeros.bool(), lengths=zeros[:, 0]), state), "ctx.mask:", "both")


def test_a_batch_of_no_sequences_is_refused_in_words():
    nothing = torch.zeros(0, 5, dtype=torch.int64)
    for field, value in {
        "lengths": nothing[:, 0], "mask": nothing.bool(), "segments": nothing, "kept": nothing[:, :2],
        "write": nothing.bool(), "dt_scale": nothing[..., None].float(), "positions": nothing,
    }.items():  # fmt: skip
        mixer, x, ctx = seeded(INNER["reader"]), rand(0, 5, DIM), SeqContext(**{field: value})
        refused(functools.partial(mixer, x, ctx), "x:", "(0, 5, 4)")
        refused(functools.partial(mixer.materialize, x, ctx), "x:", "(0, 5, 4)")
        refused(functools.partial(mixer.step, x[:, 0], ctx, mixer.init_state(0)), "x_t:", "(0, 4)")


def test_memory_of_other_sizes_is_refused():
    mixer = seeded(INNER["reader"])
    for memory, got in (
        ({"other": rand(3, 4, DIM)}, "(3, 4, 4)"),
        ({"other": rand(2, 5, DIM)}, "(2, 5, 4)"),
        ({"other": rand(3, 5, DIM).tolist()}, "list"),
        (rand(3, 5, DIM), "Tensor"),
    ):
        refused(functools.partial(mixer, rand(3, 5, DIM), SeqContext(memory=memory)), "ctx.memory", got)


@inner_mixers
def test_a_context_of_another_type_is_refused(inner):
    mixer = seeded(INNER[inner])
    for call in (mixer, mixer.materialize, lambda x, ctx: mixer.step(x[:, 0], ctx, mixer.init_state(3))):
        refused(lambda call=call: call(rand(3, 5, DIM), {"lengths": torch.tensor([1, 2, 3])}), "ctx:", "dict")


@pytest.mark.parametrize("field", ["lengths", "kept"])
def test_numbers_of_steps_are_int64(field):
    mixer, value = seeded(INNER["reader"]), torch.tensor([2, 3]) if field == "lengths" else torch.tensor([[0, 2]] * 2)
    assert mixer(rand(2, 5, DIM), SeqContext(**{field: value})).y.isfinite().all()
    refused(
        lambda: mixer(rand(2, 5, DIM), SeqContext(**{field: value.int()})),
        f"ctx.{field}:", "torch.int64", "torch.int32",
    )  # fmt: skip


REFUSED = {
    "lengths": {"lengths": torch.tensor([0, 5])},
    "mask": {"mask": torch.zeros(2, 5, dtype=torch.bool)},
    "falling": {"segments": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]])},
    "floating": {"segments": torch.zeros(2, 5)},
    "orders": {"orders": CROSS},
    "kept": {"kept": torch.tensor([[1, 0], [0, 1]])},
    "padding": {"kept": torch.tensor([[0, 1], [0, 1]]), "lengths": torch.tensor([5, 4])},
    "dt_scale": {"dt_scale": torch.ones(2, 4, 1)},
    "log_decay": {"log_decay": torch.ones(2, 5, 33)},
    "write": {"write": torch.ones(2, 5)},
    "positions": {"positions": torch.zeros(2, 4)},
    "axes": {"positions": torch.zeros(2, 5, 3)},
    "memory": {"memory": {"other": torch.zeros(2, 4, DIM)}},
}
MATRICES = {
    **INNER,
    "mlstm": lambda: create_mixer({"name": "mlstm", "heads": 2, "rope": 50.0}, DIM),
    "s4d": lambda: create_mixer({"name": "s4d", "d_state": 4}, DIM),
    "s6": lambda: create_mixer({"name": "s6", "d_state": 2}, DIM),
    "identity": lambda: create_mixer("identity", DIM),
}


@pytest.mark.parametrize("fields", list(REFUSED))
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "reader"])
def test_a_matrix_is_refused_where_the_pass_is_and_in_the_same_words(name, fields):
    mixer, ctx, x = seeded(MATRICES[name]), SeqContext(**REFUSED[fields]), rand(2, 5, DIM)
    words = []
    for call in (mixer, mixer.materialize):
        with pytest.raises(ValueError, match="expected") as caught:
            call(x, ctx)
        words.append(str(caught.value))
    assert words[0] == words[1]


def test_a_mixer_without_a_matrix_says_so():
    for build in (lambda: create_mixer("slstm", DIM), lambda: Bidirectional(INNER["ssd"])):
        with pytest.raises(TypeError, match="has no mixing matrix"):
            build().materialize(rand(2, 5, DIM).float())


def test_unknown_fields_of_paths_and_directions_are_refused_with_every_other_field():
    """What no path can carry, and what no direction can."""
    wrapped = multi("reader")
    ctx = replace(laws.everything(wrapped, 3, CELLS), orders=CROSS, inverses=CROSS.argsort(-1))
    refused(lambda: wrapped(rand(3, CELLS, DIM), replace(ctx, segments=MASK.long())), "ctx.segments:", "None")
    refused(lambda: wrapped(rand(3, CELLS, DIM), replace(ctx, kept=CROSS[:3, :2])), "ctx.kept:", "None")
    both = seeded(lambda: Bidirectional(INNER["reader"]))
    refused(lambda: both(rand(3, CELLS, DIM), SeqContext(kept=CROSS[:3, :2])), "ctx.kept:", "None")


def test_a_module_around_the_inner_mixer_is_used():
    """Wrappers call the mixers they hold: a replaced one takes effect."""
    wrapped = multi("short_conv")
    wrapped.mixers[1] = create_mixer("identity", DIM)
    x, ctx = rand(3, CELLS, DIM), SeqContext(orders=CROSS, inverses=CROSS.argsort(-1), mask=MASK)
    close(wrapped(x, ctx).y, by_hand(wrapped, x, ctx, MASK))
    assert isinstance(wrapped.mixers, nn.ModuleList)


# what a mixer may not take over -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forward", "step", "materialize"])
def test_what_looks_after_padding_and_ended_sequences_cannot_be_overridden(name):
    own = {"forward": "mix", "step": "_step", "materialize": "_matrix"}[name]
    with pytest.raises(BadArgument, match=rf"^Mine: {name}\(\) is the protocol's.*implement {own}\(\) instead$"):
        type("Mine", (Mixer,), {name: lambda self, *args: None})


class Counting(ShortConv):
    """Answers with what its input weighs, of each step and of each sequence."""

    per_sequence = frozenset({"total"})

    def mix(self, x, ctx, state, want):
        out = super().mix(x, ctx, state, want)
        energy = x.square().sum(-1) + 1
        return Out(out.y, out.state, {"energy": energy, "total": energy.sum(1)})

    _step = Mixer._step


@pytest.mark.parametrize("going_on", [[True, False, True], [False, False, False], [True, True, True]])
@pytest.mark.parametrize("form", ["mask", "lengths"])
def test_aux_of_a_step_is_zero_where_a_sequence_has_ended(going_on, form):
    mixer = seeded(lambda: Counting(DIM))
    valid = torch.tensor(going_on)
    ctx = SeqContext(mask=valid[:, None]) if form == "mask" else SeqContext(lengths=valid.long())
    x = rand(3, DIM)
    out = mixer.step(x, ctx, mixer.init_state(3, dtype=x.dtype))
    assert set(out.aux) == {"energy", "total"} and out.aux["total"].shape == (3,)
    close(out.aux["energy"], torch.where(valid, x.square().sum(-1) + 1, 0))
