"""Bad input of mixers: every mistake is a ValueError that names the argument, what was expected and what came.

Nothing is broadcast, ignored or cast in silence. Mixers are taken from `MIXERS`, in the smallest useful configuration.
"""

import importlib.util
from dataclasses import fields
from itertools import permutations

import pytest
import torch
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers import MIXERS, create_mixer
from statezoo.zoo.mixers.attention import Attention
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.mixers.short_conv import ShortConv
from statezoo.zoo.mixers.wrappers import Bidirectional, MultiPath
from statezoo.zoo.ops.backends import use_backend

DIM, BATCH, STEPS = 16, 2, 5
STATE = frozenset({"state"})
#: what a mixer needs besides its defaults at this width
OPTIONS = {"s6": {"d_state": 3}, "ssd": {"d_state": 5, "head_dim": 8, "groups": 2}, "attention": {"rope": 100.0}}
#: mixers without an op that has backends
NO_OPS = {"attention", "identity"}


def built(module):
    return importlib.util.find_spec(f"statezoo.zoo.mixers.{module}") is not None


CASES = {name: {"name": name, **OPTIONS.get(name, {})} for name, (module, _) in MIXERS.items() if built(module)}
every = pytest.mark.parametrize("name", list(CASES))


def build(name):
    torch.manual_seed(0)
    return create_mixer(CASES[name], DIM)


def users(field):
    """Mixers that use a field of the context."""
    return [name for name in CASES if field in build(name).uses]


def example(*shape, dtype=torch.float32):
    return torch.randn(*(shape or (BATCH, STEPS, DIM)), generator=torch.Generator().manual_seed(1)).to(dtype)


def refuses(call, *parts):
    """`call` raises ValueError with `parts`, "expected" and "got" in its one line."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    for part in (*parts, "expected", "got"):
        assert part in text, f"'{part}' is not in '{text}'"
    assert "\n" not in text


def test_every_mixer_has_a_case():
    assert set(CASES) == set(MIXERS)
    assert set(OPTIONS) | NO_OPS <= set(MIXERS)
    for name in CASES:  # and a good input passes
        assert build(name)(example()).y.shape == (BATCH, STEPS, DIM)


# the input --------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    "shape",
    [
        (STEPS, DIM),
        (1, BATCH, STEPS, DIM),
        (BATCH, STEPS, DIM + 1),
        (BATCH, STEPS, 1),
        (BATCH, 0, DIM),
        (0, STEPS, DIM),
    ],
    ids=str,
)
def test_shape_of_x(name, shape):
    mixer = build(name)
    refuses(lambda: mixer(example(*shape)), type(mixer).__name__, "x:", f"(B, L, {DIM})", str(shape))


@every
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.int64, "a floating dtype"),
        (torch.bool, "a floating dtype"),
        (torch.complex64, "a floating dtype"),
        (torch.float16, "float32, bfloat16 or float64"),
    ],
)
def test_dtype_of_x(name, dtype, wanted):
    mixer = build(name)
    refuses(lambda: mixer(example(dtype=dtype)), "x:", wanted, str(dtype).removeprefix("torch."))


@every
def test_x_that_is_no_tensor(name):
    mixer = build(name)
    refuses(lambda: mixer(example().tolist()), "x:", "a tensor", "list")


@every
def test_unknown_want(name):
    mixer = build(name)
    refuses(lambda: mixer(example(), want=frozenset({"states_"})), "want:", *mixer.wants, "'states_'")


# the context ------------------------------------------------------------------------------------------------------

ONES = torch.ones(BATCH, STEPS, 1)
VALUES = {
    "segments": torch.zeros(BATCH, STEPS, dtype=torch.int64),
    "orders": torch.arange(STEPS)[None],
    "inverses": torch.arange(STEPS)[None],
    "dt_scale": ONES,
    "log_decay": -ONES,
    "write": torch.ones(BATCH, STEPS, dtype=torch.bool),
    "kept": torch.tensor([[0, 1]] * BATCH),
    "positions": torch.arange(STEPS).expand(BATCH, -1),
    "memory": {"memory": example()},
}


def test_every_field_has_a_value():
    assert set(VALUES) | {"lengths", "mask"} == {field.name for field in fields(SeqContext)}


@every
@pytest.mark.parametrize("field", list(VALUES))
def test_fields_that_a_mixer_does_not_use(name, field):
    mixer = build(name)
    ctx = SeqContext(**{field: VALUES[field]})
    if field in mixer.uses:
        assert mixer(example(), ctx).y.isfinite().all()
    else:
        refuses(lambda: mixer(example(), ctx), f"ctx.{field}:", "None")


@every
@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        (torch.tensor([0, STEPS]), f"[0, {STEPS}]"),
        (torch.tensor([STEPS, STEPS + 1]), f"[{STEPS}, {STEPS + 1}]"),
        (torch.tensor([-1, 2]), "[-1, 2]"),
        (torch.tensor([STEPS]), "(1,)"),
        (torch.tensor([[STEPS]] * BATCH), f"({BATCH}, 1)"),
        (torch.tensor(STEPS), "()"),
        (torch.tensor([1.0, 2.0]), "torch.float32"),
        (torch.tensor([True, True]), "torch.bool"),
        ([1, 2], "list"),
    ],
    ids=str,
)
def test_lengths(name, lengths, got):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(lengths=lengths)), "lengths:", got)


@every
@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(BATCH, STEPS, dtype=torch.int64), "torch.int64"),
        (torch.ones(BATCH, STEPS), "torch.float32"),
        (torch.ones(1, STEPS, dtype=torch.bool), f"(1, {STEPS})"),
        (torch.ones(BATCH, STEPS + 1, dtype=torch.bool), f"({BATCH}, {STEPS + 1})"),
        (torch.ones(BATCH, STEPS, 1, dtype=torch.bool), f"({BATCH}, {STEPS}, 1)"),
        (torch.tensor([[True] * STEPS, [False] * STEPS]), "none in row 1"),
    ],
)
def test_mask(name, mask, got):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(mask=mask)), "ctx.mask:", got)


@every
def test_lengths_beside_a_mask(name):
    mixer, mask = build(name), torch.ones(BATCH, STEPS, dtype=torch.bool)
    ctx = SeqContext(mask=mask, lengths=torch.tensor([STEPS] * BATCH))
    refuses(lambda: mixer(example(), ctx), "ctx.mask:", "ctx.lengths", "both")


@pytest.mark.parametrize("name", users("segments"))
@pytest.mark.parametrize(
    ("segments", "got"),
    [
        (torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]), "a fall in row 1"),
        (torch.zeros(1, STEPS, dtype=torch.int64), f"(1, {STEPS})"),
        (torch.zeros(BATCH, 1, dtype=torch.int64), f"({BATCH}, 1)"),
        (torch.zeros(BATCH, STEPS), "torch.float32"),
        (torch.zeros(BATCH, STEPS, dtype=torch.bool), "torch.bool"),
    ],
)
def test_segments(name, segments, got):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(segments=segments)), "segments:", got)


@pytest.mark.parametrize("name", users("segments"))
def test_segments_may_fall_in_the_padding_alone(name):
    mixer, segments = build(name), torch.tensor([[0, 0, 1, 0, 0]] * BATCH)
    assert mixer(example(), SeqContext(segments=segments, lengths=torch.tensor([3, 2]))).y.isfinite().all()
    refuses(lambda: mixer(example(), SeqContext(segments=segments, lengths=torch.tensor([3, 4]))), "segments:", "row 1")


PER_STEP = [(name, field) for field in ("dt_scale", "log_decay") for name in users(field)]


@pytest.mark.parametrize(("name", "field"), PER_STEP)
def test_scales_and_decays(name, field):
    mixer = build(name)
    assert mixer.scales() > 1
    wide = (BATCH, STEPS, mixer.scales())
    assert mixer(example(), SeqContext(**{field: -torch.ones(wide)})).y.shape == (BATCH, STEPS, DIM)
    for shape in (
        (BATCH, STEPS, mixer.scales() + 1), (BATCH, STEPS, 2), (1, STEPS, 1), (BATCH, 1, 1), (1, *wide[1:]),
        (BATCH, 1, wide[2]), (BATCH, STEPS), (STEPS, 1),
    ):  # fmt: skip
        ctx = SeqContext(**{field: -torch.ones(shape)})
        if shape != wide:
            refuses(lambda ctx=ctx: mixer(example(), ctx), f"ctx.{field}:", str(shape))


@pytest.mark.parametrize("name", users("write"))
@pytest.mark.parametrize(
    ("write", "got"),
    [
        (torch.ones(BATCH, STEPS), "torch.float32"),
        (torch.ones(1, STEPS, dtype=torch.bool), f"(1, {STEPS})"),
        (torch.ones(BATCH, 1, dtype=torch.bool), f"({BATCH}, 1)"),
    ],
)
def test_write(name, write, got):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(write=write)), "ctx.write:", got)


@pytest.mark.parametrize("name", users("kept"))
@pytest.mark.parametrize(
    ("kept", "got"),
    [
        (torch.tensor([[1, 0], [0, 1]]), "[1, 0]"),
        (torch.tensor([[1, 1], [0, 1]]), "[1, 1]"),
        (torch.tensor([[0, STEPS]] * BATCH), f"[0, {STEPS}]"),
        (torch.tensor([[-1, 2]] * BATCH), "[-1, 2]"),
        (torch.tensor([[0, 1], [0, STEPS]]), f"[0, {STEPS}]"),
        (torch.tensor([[0, 1]]), "(1, 2)"),
        (torch.tensor([0, 1]), "(2,)"),
        (torch.zeros(BATCH, 0, dtype=torch.int64), f"({BATCH}, 0)"),
        (torch.tensor([[0.0, 1.0]] * BATCH), "torch.float32"),
    ],
)
def test_kept(name, kept, got):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(kept=kept)), "ctx.kept:", got)


@pytest.mark.parametrize("name", users("kept"))
@pytest.mark.parametrize(
    "padding", [{"lengths": torch.tensor([STEPS, 3])}, {"mask": torch.ones(BATCH, STEPS, dtype=torch.bool)}], ids=list
)
def test_kept_beside_padding(name, padding):
    mixer = build(name)
    refuses(lambda: mixer(example(), SeqContext(kept=VALUES["kept"], **padding)), "ctx.kept:", "no padding")


@pytest.mark.parametrize("shape", [(1, STEPS), (BATCH, 1), (STEPS,), (BATCH, STEPS, 2), (BATCH, STEPS + 1)], ids=str)
def test_positions(shape):
    mixer = build("attention")
    refuses(lambda: mixer(example(), SeqContext(positions=torch.zeros(shape))), "ctx.positions:", str(shape))


def test_positions_of_one_axis_where_two_turn():
    mixer = Attention(DIM, 2, rope=100.0, rope_axes=2)
    assert mixer(example(), SeqContext(positions=torch.zeros(BATCH, STEPS, 2))).y.shape == (BATCH, STEPS, DIM)
    refuses(lambda: mixer(example(), SeqContext(positions=torch.zeros(BATCH, STEPS))), "ctx.positions:", "2")
    refuses(lambda: mixer(example()), "ctx.positions:", "2")


def test_positions_where_nothing_turns():
    mixer = Attention(DIM, 2)
    refuses(lambda: mixer(example(), SeqContext(positions=VALUES["positions"])), "ctx.positions:", "None")


# the state --------------------------------------------------------------------------------------------------------

stateful = pytest.mark.parametrize("name", [name for name in CASES if name != "identity"])


@stateful
def test_state_of_another_batch_size(name):
    mixer = build(name)
    for batch in (1, BATCH + 1):
        state = mixer(example(batch, STEPS, DIM), want=STATE).state
        refuses(lambda state=state: mixer(example(), state=state), "state[")
        refuses(lambda state=state: mixer.step(example(BATCH, DIM), None, state), "state[")
        for key in state:  # each part for itself: one of batch 1 would be broadcast
            mixed = {**mixer(example(), want=STATE).state, key: state[key]}
            refuses(lambda mixed=mixed: mixer(example(), state=mixed), "state[")
            refuses(lambda mixed=mixed: mixer.step(example(BATCH, DIM), None, mixed), "state[")


@pytest.mark.parametrize(("name", "other"), list(permutations(CASES, 2)))
def test_state_of_another_mixer(name, other):
    mixer, state = build(name), build(other)(example(), want=STATE).state
    refuses(lambda: mixer(example(), state=state), "state")
    refuses(lambda: mixer.step(example(BATCH, DIM), None, state), "state")


def test_state_of_another_width():
    one, other = S6(DIM, d_state=3), S6(DIM, d_state=1)
    state = other(example(), want=STATE).state
    refuses(lambda: one(example(), state=state), "state['ssm']", f"({BATCH}, {2 * DIM}, 3)", f"({BATCH}, {2 * DIM}, 1)")
    refuses(lambda: one.step(example(BATCH, DIM), None, state), "state['ssm']")


@every
def test_state_that_is_no_dict(name):
    mixer = build(name)
    refuses(lambda: mixer(example(), state=[torch.zeros(BATCH, 3)]), "state:", "list")


@every
@pytest.mark.parametrize("shape", [(DIM,), (BATCH, 1, DIM), (BATCH, DIM + 1), (0, DIM)], ids=str)
def test_shape_of_one_step(name, shape):
    mixer = build(name)
    refuses(lambda: mixer.step(example(*shape), None, mixer.init_state(BATCH)), "x_t:", f"(B, {DIM})", str(shape))


@pytest.mark.parametrize("name", users("dt_scale"))
def test_scale_of_one_step(name):
    mixer = build(name)
    for shape in ((1, 1, 1), (BATCH, STEPS, 1), (BATCH, 1, mixer.scales() + 1)):
        ctx = SeqContext(dt_scale=torch.ones(shape))
        refuses(
            lambda ctx=ctx: mixer.step(example(BATCH, DIM), ctx, mixer.init_state(BATCH)), "ctx.dt_scale:", str(shape)
        )


def test_a_cache_beside_segments():
    mixer = build("attention")
    state = mixer(example(), want=STATE).state
    refuses(lambda: mixer(example(), SeqContext(segments=VALUES["segments"]), state), "state:", "ctx.segments")


# backends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_OPS])
def test_a_backend_that_is_not_there(name):
    mixer = build(name)
    with use_backend("mamba-ssm"), pytest.raises(ValueError, match="'mamba-ssm' does not exist for .*; it has "):
        mixer(example())
    with pytest.raises(ValueError, match="unknown backend 'trtn'; did you mean 'triton'"), use_backend("trtn"):
        pass


# making mixers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("S6", "unknown mixer 'S6'; did you mean 's6'"),
        ("gru", "unknown mixer 'gru'; valid: .*s6"),
        ({"name": "atention"}, "unknown mixer 'atention'; did you mean 'attention'"),
        ("short-convolution", "unknown mixer .*; did you mean 'short_conv'"),
        ("", "unknown mixer ''"),
        ({"d_state": 4}, r"mixer: expected a name or a mapping with 'name', got \{'d_state': 4\}"),
    ],
)
def test_unknown_mixers(config, text):
    with pytest.raises(ZooError, match=text):
        create_mixer(config, DIM)


@every
def test_unknown_options_are_named(name):
    with pytest.raises(TypeError, match="d_stat_"):
        create_mixer({**CASES[name], "d_stat_": 4}, DIM)
    with pytest.raises(TypeError, match="d_stat_"):
        create_mixer(name, DIM, d_stat_=4)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"name": "ssd", "head_dim": 8, "groups": 3}, ("groups=3", "heads a multiple of groups")),
        ({"name": "ssd", "head_dim": 5}, ("head_dim=5", "a multiple of head_dim")),
        ({"name": "ssd", "head_dim": 8, "d_ssm": 40}, ("d_ssm=40", "d_ssm <= 32")),
        ({"name": "attention", "heads": 3}, ("heads=3", "a multiple of heads")),
        ({"name": "attention", "heads": 4, "kv_heads": 3}, ("kv_heads=3", "a multiple of kv_heads")),
        ({"name": "attention", "window": 0}, ("window:", "at least 1", "0")),
        ({"name": "attention", "window": -2}, ("window:", "at least 1", "-2")),
        ({"name": "attention", "heads": 16, "rope": 10.0}, ("rope", "multiples of 2", "1")),
        ({"name": "attention", "heads": 8, "rope": 10.0, "rope_axes": 2}, ("rope", "multiples of 4", "2")),
    ],
)
def test_options_that_do_not_fit(config, parts):
    refuses(lambda: create_mixer(config, DIM), *parts)


def test_unknown_activation():
    with pytest.raises(ZooError, match="unknown activation 'silo' in SSD; did you mean 'silu'"):
        create_mixer({"name": "ssd", "head_dim": 8, "activation": "silo"}, DIM)


# wrappers ---------------------------------------------------------------------------------------------------------


def many(**options):
    return MultiPath(lambda: ShortConv(DIM), 2, **options)


TWO = torch.stack([torch.arange(STEPS), torch.arange(STEPS).flip(0)])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("orders", "got"),
    [
        (None, "None"),
        (TWO[:1], f"(1, {STEPS})"),
        (TWO[[0, 1, 1]], f"(3, {STEPS})"),
        (TWO[:, :3], "(2, 3)"),
        (TWO[:, :1], "(2, 1)"),
        (TWO[None], f"(1, 2, {STEPS})"),
        (TWO.expand(BATCH + 1, -1, -1), f"({BATCH + 1}, 2, {STEPS})"),
        (TWO[0], f"({STEPS},)"),
        (TWO[None, None], f"(1, 1, 2, {STEPS})"),
        (TWO.float(), "torch.float32"),
    ],
)
def test_orders(orders, got, tied):
    mixer = many(tied=tied)
    refuses(lambda: mixer(example(), SeqContext(orders=orders, inverses=TWO)), "ctx.orders:", got)
    if orders is not None:
        refuses(lambda: mixer(example(), SeqContext(orders=TWO, inverses=orders)), "ctx.inverses:", got)
        refuses(lambda: mixer(example(), SeqContext(orders=orders)), "ctx.orders:", "inverses")


@pytest.mark.parametrize("field", ["segments", "kept", "dt_scale"])
def test_fields_that_no_path_can_carry(field):
    refuses(lambda: many()(example(), SeqContext(orders=TWO, inverses=TWO, **{field: VALUES[field]})), f"ctx.{field}:")


@pytest.mark.parametrize(
    ("channels", "parts"),
    [
        (torch.arange(DIM).roll(1).expand(2, -1), ("involutions",)),
        (torch.zeros(2, DIM, dtype=torch.int64), ("involutions",)),
        (torch.arange(DIM).expand(2, -1) + 1, ("involutions",)),
        (torch.arange(DIM).expand(1, -1), (f"(2, {DIM})", f"(1, {DIM})")),
        (torch.arange(DIM), (f"(2, {DIM})", f"({DIM},)")),
    ],
)
def test_channels(channels, parts):
    refuses(lambda: many(channels=channels), "channels:", *parts)


@pytest.mark.parametrize("wrapper", [lambda **more: Bidirectional(lambda: ShortConv(DIM), **more), many])
def test_unknown_merge(wrapper):
    refuses(lambda: wrapper(merge="max"), "merge:", "sum, mean, concat", "'max'")


@pytest.mark.parametrize("wrapper", [lambda: Bidirectional(lambda: ShortConv(DIM)), many])
def test_wrappers_have_no_state(wrapper):
    mixer = wrapper()
    ctx = SeqContext(orders=TWO, inverses=TWO) if isinstance(mixer, MultiPath) else None
    state = ShortConv(DIM).init_state(BATCH)
    refuses(lambda: mixer(example(), ctx, want=STATE), "want:", "'state'")
    refuses(lambda: mixer(example(), ctx, state), "state:", "None")


@pytest.mark.parametrize("field", ["kept", "dt_scale", "orders"])
def test_fields_that_both_directions_do_not_use(field):
    mixer = Bidirectional(lambda: ShortConv(DIM))
    refuses(lambda: mixer(example(), SeqContext(**{field: VALUES[field]})), f"ctx.{field}:", "None")
