"""Every mixer under checkpointing and torch.func, with padding, packed sequences, states and autocast beside them."""

import pytest
import torch
from statezoo.zoo.mixers import MIXERS, create_mixer
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.wrappers import Bidirectional, MultiPath
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

DIM, BATCH, STEPS = 8, 3, 7
CASES = {
    "s6": {"name": "s6", "d_state": 3},
    "ssd": {"name": "ssd", "d_state": 4, "head_dim": 4, "chunk": 3},
    "s4d": {"name": "s4d", "d_state": 4},
    "s4d-bidirectional": {"name": "s4d", "d_state": 4, "bidirectional": True},
    "mlstm": {"name": "mlstm", "heads": 2},
    "mlstm-chunks-rope": {"name": "mlstm", "heads": 2, "chunk": 3, "rope": 100.0},
    "mlstm-both-ways": {"name": "mlstm", "heads": 2, "bidirectional": True},
    "slstm": {"name": "slstm", "heads": 2},
    "attention": {"name": "attention", "heads": 2, "rope": 100.0},
    "attention-grouped-window": {"name": "attention", "heads": 4, "kv_heads": 2, "window": 3},
    "short_conv": {"name": "short_conv", "bias": True},
    "identity": {"name": "identity"},
    "bidirectional": {"wrapper": lambda make: Bidirectional(make), "name": "s6", "d_state": 3},
    "paths": {"wrapper": lambda make: MultiPath(make, 2, tied=True), "name": "slstm", "heads": 2},
}
CONTEXTS = ["plain", "segments-lengths", "state", "steered", "mask"]
ALONE = ["lengths", "segments"]
PAIRS = [(case, context) for case in CASES for context in CONTEXTS]
PAIRS += [pytest.param(case, context, marks=pytest.mark.slow) for case in CASES for context in ALONE]
every = pytest.mark.parametrize("case", list(CASES))
pairs = pytest.mark.parametrize(("case", "context"), PAIRS)
STATE = frozenset({"state"})


def build(case, dtype=torch.float64):
    config = dict(CASES[case])
    wrapper = config.pop("wrapper", lambda make: make())
    torch.manual_seed(0)
    mixer = wrapper(lambda: create_mixer(config, DIM)).to(dtype).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def example(*shape, dtype=torch.float64, seed=1):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (BATCH, STEPS, DIM)), generator=made, dtype=torch.float64).to(dtype)


def given(mixer, context, dtype=torch.float64):
    """The fields of a context and a state, or a skip where the mixer knows no such thing."""
    fields = {}
    if isinstance(mixer, MultiPath):
        orders = torch.stack([torch.arange(STEPS), torch.arange(STEPS).flip(0)])
        fields = {"orders": orders, "inverses": orders}
    if "lengths" in context:
        fields["lengths"] = torch.tensor([STEPS, 2, 5])
    if context == "mask":
        fields["mask"] = torch.tensor([[True] * 7, [False, True] * 3 + [False], [False] * 3 + [True] * 4])
    if "segments" in context:
        if "segments" not in mixer.uses:
            pytest.skip("takes no packed sequences")
        fields["segments"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2], [3] * 7])
    if context == "steered":
        if "dt_scale" not in mixer.uses:
            pytest.skip("has no time steps")
        fields["dt_scale"] = example(BATCH, STEPS, 1, dtype=dtype).sigmoid()
        fields["log_decay"] = -example(BATCH, STEPS, mixer.scales(), dtype=dtype).sigmoid()
        fields["write"] = example(BATCH, STEPS) > -1
    state = None
    if context == "state":
        if "state" not in mixer.wants or "split" in mixer.exempt:
            pytest.skip("has no state")
        state = {k: v.detach() for k, v in mixer(example(BATCH, 4, DIM, dtype=dtype, seed=3), want=STATE).state.items()}
    return SeqContext(**fields), state


def loss_of(y):
    return (
        (y.float() if y.dtype == torch.bfloat16 else y).mul(torch.linspace(-1, 2, DIM, dtype=torch.float32).to(y)).sum()
    )


def derivatives(mixer, x, ctx, state):
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(loss_of(mixer(x, ctx, state).y), [x, *mixer.parameters()], allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, [x, *mixer.parameters()], strict=True)]


def close(ours, theirs, atol=1e-10):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_every_mixer_has_a_case():
    assert {config["name"] for config in CASES.values()} == set(MIXERS)


@pairs
@pytest.mark.parametrize(("reentrant", "autocast"), [(True, True), (False, False), (False, True)])
def test_checkpointing_changes_no_gradient(case, context, reentrant, autocast):
    dtype = torch.float32 if autocast else torch.float64
    mixer, x = build(case, dtype), example(dtype=dtype)
    ctx, state = given(mixer, context, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = derivatives(mixer, x, ctx, state)
        x.requires_grad_()
        y = checkpoint(lambda x: mixer(x, ctx, state).y, x, use_reentrant=reentrant)
        loss_of(y).backward()
    leaves = [x, *mixer.parameters()]
    for leaf, gradient in zip(leaves, wanted, strict=True):
        assert torch.equal(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, gradient)


@pairs
def test_gradients_of_func_are_those_of_autograd(case, context):
    mixer, x = build(case), example()
    ctx, state = given(mixer, context)
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}

    def loss(x, weights):
        return loss_of(functional_call(mixer, weights, (x, ctx, state)).y)

    by_x, by_weights = grad(loss, argnums=(0, 1))(x, weights)
    close([by_x, *by_weights.values()], derivatives(mixer, x, ctx, state))


@pairs
def test_vmap_is_the_loop_with_gradients_per_sample(case, context):
    """Over the sequences of a batch, each with its context and state."""
    mixer, x = build(case), example()
    ctx, state = given(mixer, context)
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}
    shared = {name: getattr(ctx, name) for name in ("orders", "inverses") if getattr(ctx, name) is not None}
    own = {name: getattr(ctx, name) for name in ctx.given() - set(shared)}

    def alone(weights, x, own, state):
        ctx = SeqContext(**{name: tensor[None] for name, tensor in own.items()}, **shared)
        state = None if state is None else {name: tensor[None] for name, tensor in state.items()}
        return functional_call(mixer, weights, (x[None], ctx, state)).y[0]

    def loss(*arguments):
        return loss_of(alone(*arguments))

    dims = (None, 0, 0, None if state is None else 0)
    close([vmap(alone, in_dims=dims)(weights, x, own, state)], [mixer(x, ctx, state).y.detach()])
    found = vmap(grad(loss), in_dims=dims)(weights, x, own, state)
    for row in range(BATCH):
        at = slice(row, row + 1)
        one = SeqContext(**{name: tensor[at] for name, tensor in own.items()}, **shared)
        past = None if state is None else {name: tensor[at] for name, tensor in state.items()}
        close([tensor[row] for tensor in found.values()], derivatives(mixer, x[at], one, past)[1:])


@every
def test_vmap_over_weights_is_the_loop(case):
    """An ensemble of mixers on one batch."""
    mixer, x = build(case), example()
    ctx, _ = given(mixer, "lengths")
    if not list(mixer.parameters()):
        pytest.skip("has no weights")
    several = {name: torch.stack([p.detach(), 0.9 * p.detach()]) for name, p in mixer.named_parameters()}
    found = vmap(lambda weights: functional_call(mixer, weights, (x, ctx)).y)(several)
    for at in range(2):
        one = {name: tensor[at] for name, tensor in several.items()}
        close([found[at]], [functional_call(mixer, one, (x, ctx)).y])


@every
@pytest.mark.parametrize("context", ["plain", "mask"])
def test_tangents_are_those_of_the_gradient(case, context):
    mixer, x, v = build(case), example(), example(seed=4)
    ctx, state = given(mixer, context)
    wanted = (derivatives(mixer, x, ctx, state)[0] * v).sum()
    y, tangent = jvp(lambda x: loss_of(mixer(x, ctx, state).y), (x,), (v,))
    close([y, tangent], [loss_of(mixer(x, ctx, state).y), wanted])


@every
def test_steps_and_matrices_may_be_mapped(case):
    mixer, x = build(case), example()
    if "step" not in mixer.exempt:
        state = mixer.init_state(2, dtype=x.dtype)
        several = torch.stack([x[:2, 0], x[1:, 1]])
        close([vmap(lambda x: mixer.step(x, None, state).y)(several)],
              [torch.stack([mixer.step(x, None, state).y for x in several])])  # fmt: skip
    if "matrix" not in mixer.exempt:
        close([vmap(lambda x: mixer.materialize(x[None]).matrix[0])(x)], [mixer.materialize(x).matrix])


@pytest.mark.parametrize("context", ["lengths", pytest.param("segments", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["s6", "mlstm-chunks-rope", "slstm", pytest.param("s4d", marks=pytest.mark.slow)])
def test_a_compiled_mixer_may_be_checkpointed(case, context):
    mixer, x = build(case), example()
    ctx, state = given(mixer, context)
    wanted = derivatives(mixer, x, ctx, state)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: mixer(x, ctx).y, backend="aot_eager")
    x.requires_grad_()
    loss_of(checkpoint(compiled, x, use_reentrant=False)).backward()
    close([x.grad, *(p.grad for p in mixer.parameters())], wanted)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
@pytest.mark.parametrize(
    "case", ["s6", *(pytest.param(c, marks=pytest.mark.slow) for c in ("mlstm-chunks-rope", "slstm"))]
)
def test_transforms_may_be_compiled(case, transform):
    mixer, x, v = build(case), example(), example(seed=4)
    run = {
        "grad": grad(lambda x: loss_of(mixer(x).y)),
        "vmap": vmap(lambda x: mixer(x[None]).y[0]),
        "jvp": lambda x: jvp(lambda x: mixer(x).y, (x,), (v,))[1],
    }[transform]
    torch._dynamo.reset()
    close([torch.compile(run, backend="aot_eager")(x)], [run(x)])


def test_what_is_wrong_is_still_refused_where_it_can_be_read():
    mixer, x = build("s6"), example()
    with pytest.raises(ValueError, match="ctx.lengths: expected 1 to 7"):
        vmap(lambda x: mixer(x[None], SeqContext(lengths=torch.tensor([9]))).y)(x)
    with pytest.raises(ValueError, match="never fall"):
        grad(lambda x: loss_of(mixer(x, SeqContext(segments=torch.tensor([[1, 0] + [1] * 5] * 3))).y))(x)
