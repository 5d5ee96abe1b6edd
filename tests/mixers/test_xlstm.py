"""mLSTM and sLSTM layers: whole DNA-xLSTM models of the authors assembled here out of them, and the package xlstm."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.mlstm import MLSTM
from statezoo.zoo.mixers.slstm import SLSTM
from torch.nn import functional as F

ORACLES = os.environ.get("STATEZOO_ORACLES")
needs_oracles = pytest.mark.skipif(not ORACLES, reason="STATEZOO_ORACLES is not set")


def read(name):
    saved = np.load(Path(ORACLES) / f"{name}.npz")
    weights = {key.removeprefix("backbone."): torch.from_numpy(saved[key]) for key in saved.files if "." in key}
    return torch.from_numpy(saved["x"]), torch.from_numpy(saved["y"]), weights


def norm(x, weight):
    return F.layer_norm(x, x.shape[-1:], 1 + weight, None, 1e-5)


def mlstm_layer(w):
    """An MLSTM with the authors' weights of one block, `w` by their names."""
    layer = MLSTM(32, 4, round_up=False, bias="proj_up.bias" in w)
    own = {}
    for name, tensor in w.items():
        name = name.replace("conv1d.conv.", "conv1d.").replace("mlstm_cell.", "")
        own[name] = tensor
    layer.load_state_dict(own)
    return layer.eval()


def slstm_layer(w):
    """An SLSTM with the authors' weights: their fgate feeds slot i and their igate slot f; R and bias are in order."""
    layer = SLSTM(32, 4)
    own = {
        "conv1d.weight": w["conv1d.conv.weight"], "conv1d.bias": w["conv1d.conv.bias"],
        "igate.weight": w["fgate.weight"], "fgate.weight": w["igate.weight"],
        "zgate.weight": w["zgate.weight"], "ogate.weight": w["ogate.weight"],
        "R": w["slstm_cell._recurrent_kernel_"].view(4, 4, 8, 8).permute(0, 3, 1, 2),
        "bias": w["slstm_cell._bias_"].view(4, 4, 8), "group_norm.weight": w["group_norm.weight"],
    }  # fmt: skip
    layer.load_state_dict(own)
    return layer.eval()


@needs_oracles
@pytest.mark.parametrize("case", ["dna_mlstm_uni", "dna_mlstm_bidir_tied", "dna_slstm_uni"])
def test_equals_the_authors_logits(case):
    tokens, wanted, w = read(case)

    def part(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

    x, made = w["token_embedding.weight"][tokens], mlstm_layer if "mlstm" in case else slstm_layer
    for n in range(2):
        block = part(f"xlstm_block_stack.blocks.{n}.")
        layer = made({k.removeprefix("xlstm."): v for k, v in block.items() if k.startswith("xlstm.")})

        def run(x, block=block, layer=layer):
            with torch.no_grad():
                x = x + layer(norm(x, block["xlstm_norm.weight"])).y
            if "ffn_norm.weight" in block:
                a, b = F.linear(norm(x, block["ffn_norm.weight"]), block["ffn.proj_up.weight"]).chunk(2, -1)
                x = x + F.linear(F.gelu(a) * b, block["ffn.proj_down.weight"])
            return x

        # both directions, weights tied: each pass carries its own skip
        x = run(x) + run(x.flip(1)).flip(1) if "bidir" in case else run(x)
    logits = F.linear(norm(x, w["xlstm_block_stack.post_blocks_norm.weight"]), w["lm_head.weight"])
    assert float((logits - wanted).abs().max()) <= 2e-5


def test_forget_gates_start_as_published():
    layer = MLSTM(32, 4)
    torch.testing.assert_close(layer.fgate.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    first, last = SLSTM(32, 4, layer=0, layers=3).bias[1, 0], SLSTM(32, 4, layer=2, layers=3).bias[1, 0]
    place = torch.arange(8) / 7
    torch.testing.assert_close(first.detach(), 5 - 12 * place**0.3)
    torch.testing.assert_close(last.detach(), 5 - 12 * place**1.6)


# against the package xlstm, with random weights ----------------------------------------------------------------------


def randomised(module, std=0.3):
    """Every parameter drawn anew, so that what starts at zero or one takes part."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module.eval()


@pytest.mark.parametrize(("bias", "factor", "round_up"), [(False, 2.0, True), (True, 1.3, True), (False, 1.7, False)])
def test_mlstm_equals_the_package(bias, factor, round_up):
    theirs = pytest.importorskip("xlstm.blocks.mlstm.layer")
    config = theirs.mLSTMLayerConfig(
        embedding_dim=80, num_heads=4, context_length=40, bias=bias, proj_factor=factor, round_proj_up_dim_up=round_up
    )
    layer = randomised(theirs.mLSTMLayer(config), std=0.15)  # outputs about 1
    ours = MLSTM(80, 4, bias=bias, factor=factor, round_up=round_up)
    names = {name: name.replace("conv1d.conv.", "conv1d.").replace("mlstm_cell.", "") for name in layer.state_dict()}
    ours.load_state_dict({names[name]: tensor for name, tensor in layer.state_dict().items()})
    x = torch.randn(2, 40, 80)
    with torch.no_grad():
        wanted, y = layer(x), ours(x).y
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)
        their_state, state = {}, ours.init_state(2)
        for x_t, wanted_t in zip(x[:, :10].unbind(1), wanted.unbind(1), strict=False):
            z_t, their_state = layer.step(x_t[:, None].clone(), **their_state)
            out = ours.step(x_t, None, state)
            state = out.state
            for other in (z_t[:, 0], wanted_t):
                torch.testing.assert_close(out.y, other, rtol=0, atol=1e-5)
        for ours_at, theirs_at in zip(("C", "n", "m"), their_state["mlstm_state"], strict=True):
            torch.testing.assert_close(state[ours_at], theirs_at.reshape(state[ours_at].shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_slstm_equals_the_package_with_gradients(heads):
    theirs = pytest.importorskip("xlstm.blocks.slstm.layer")
    config = theirs.sLSTMLayerConfig(embedding_dim=32, num_heads=heads, backend="vanilla", dtype="float32")
    layer = randomised(theirs.sLSTMLayer(config))
    w, ours = layer.state_dict(), SLSTM(32, heads)
    size = 32 // heads
    ours.load_state_dict({
        "conv1d.weight": w["conv1d.conv.weight"], "conv1d.bias": w["conv1d.conv.bias"],
        "igate.weight": w["fgate.weight"], "fgate.weight": w["igate.weight"],
        "zgate.weight": w["zgate.weight"], "ogate.weight": w["ogate.weight"],
        "R": w["slstm_cell._recurrent_kernel_"].view(heads, 4, size, size).permute(0, 3, 1, 2),
        "bias": w["slstm_cell._bias_"].view(4, heads, size), "group_norm.weight": w["group_norm.weight"],
    })  # fmt: skip
    x = torch.randn(2, 40, 32)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = ours(mine).y, layer(other)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)
    weight = wanted.detach().cos()
    found = torch.autograd.grad((y * weight).sum(), [mine, ours.R, ours.bias])
    expected = torch.autograd.grad(
        (wanted * weight).sum(), [other, layer.slstm_cell._recurrent_kernel_, layer.slstm_cell._bias_]
    )
    expected = [
        expected[0], expected[1].view(heads, 4, size, size).permute(0, 3, 1, 2), expected[2].view(4, heads, size),
    ]  # fmt: skip
    for one, two in zip(found, expected, strict=True):
        assert float((one - two).norm() / two.norm()) <= 1e-5


def test_parameters_are_those_of_the_package_and_start_alike():
    mlstm, slstm = (pytest.importorskip(f"xlstm.blocks.{kind}.layer") for kind in ("mlstm", "slstm"))
    for dim, heads, layers in ((256, 4, 3), (64, 8, 1)):
        config = mlstm.mLSTMLayerConfig(embedding_dim=dim, num_heads=heads, context_length=4, _num_blocks=layers)
        theirs, ours = mlstm.mLSTMLayer(config), MLSTM(dim, heads, layers=layers)
        start = {name.replace("conv1d.conv.", "conv1d.").replace("mlstm_cell.", ""): t
                 for name, t in theirs.state_dict().items()}  # fmt: skip
        assert {name: t.shape for name, t in ours.state_dict().items()} == {name: t.shape for name, t in start.items()}
        for name, tensor in ours.state_dict().items():
            if tensor.numel() > 1000:
                assert abs(tensor.std() - start[name].std()) <= 0.1 * start[name].std(), name
            elif not name.endswith(("igate.bias", "conv1d.bias", "conv1d.weight", "proj.weight")):
                torch.testing.assert_close(tensor, start[name], msg=name)
        config = slstm.sLSTMLayerConfig(embedding_dim=dim, num_heads=heads, backend="vanilla", _num_blocks=layers,
                                        _block_idx=layers - 1)  # fmt: skip
        theirs, ours = slstm.sLSTMLayer(config), SLSTM(dim, heads, layer=layers - 1, layers=layers)
        theirs.reset_parameters()
        assert sum(t.numel() for t in theirs.parameters()) == sum(t.numel() for t in ours.parameters())
        torch.testing.assert_close(ours.bias.flatten(), theirs.slstm_cell._bias_)
        for gate in ("igate", "fgate", "zgate", "ogate"):
            one, other = (float(getattr(layer, gate).weight.detach().std()) for layer in (ours, theirs))
            assert abs(one - other) <= 0.1 * other


# what else the layers promise ----------------------------------------------------------------------------------------


def test_rotation_begins_anew_in_every_packed_sequence_and_goes_on_with_a_state():
    layer = randomised(MLSTM(32, 4, rope=100.0)).double()
    x, want = torch.randn(2, 12, 32, dtype=torch.float64), frozenset({"state"})
    whole = layer(x, want=want)
    first = layer(x[:, :5], want=want)
    # the first packed sequence goes on from a state, the second begins
    packed = layer(torch.cat([x[:, 5:], x[:, :5]], 1), SeqContext(segments=torch.tensor([[0] * 7 + [1] * 5] * 2)),
                   first.state, want)  # fmt: skip
    torch.testing.assert_close(packed.y, torch.cat([whole.y[:, 5:], first.y], 1), rtol=0, atol=1e-10)
    assert packed.state["count"].tolist() == [5, 5] and whole.state["count"].tolist() == [12, 12]
    padded = layer(x, SeqContext(lengths=torch.tensor([5, 12])), want=want)
    assert padded.state["count"].tolist() == [5, 12]
    shifted = SeqContext(positions=torch.arange(12).expand(2, -1) + 7)
    torch.testing.assert_close(layer(x, shifted).y, whole.y, rtol=0, atol=1e-10)  # only distances count
    far = layer(x, SeqContext(positions=3 * torch.arange(12).expand(2, -1))).y
    assert not torch.allclose(far, whole.y)


def test_gates_are_those_of_unrotated_queries_and_keys():
    torch.manual_seed(0)
    turned = randomised(MLSTM(32, 4, rope=100.0))
    plain = MLSTM(32, 4)
    plain.load_state_dict(turned.state_dict())
    x = torch.randn(2, 9, 32)
    one, other = turned.project(x), plain.project(x)
    assert torch.equal(one.i, other.i) and torch.equal(one.f, other.f) and not torch.allclose(one.q, other.q)


def test_the_native_bidirectional_layer_reads_both_ways():
    """Written out from the matrix: the convolution stays causal, the norm and the gates are as they were."""
    layer = randomised(MLSTM(32, 4, bidirectional=True)).double()
    one_way = MLSTM(32, 4).double()
    one_way.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    parts, other = layer.project(x), one_way.project(x)
    for ours, theirs in zip(parts[:7], other[:7], strict=True):
        assert torch.equal(ours, theirs)
    log_f, scores = F.logsigmoid(parts.f), torch.einsum("bthd,bshd->bhts", parts.q, parts.k) / 4
    weight = torch.zeros(2, 4, 9, 9, dtype=torch.float64)
    for t in range(9):
        for s in range(9):
            passed = log_f[:, s + 1 : t + 1] if s <= t else log_f[:, t:s]
            weight[..., t, s] = passed.sum(1) + parts.i[:, s]
    m = weight.amax(-1, keepdim=True)
    weight = (weight - m).exp() * scores
    weight = weight / (torch.maximum(weight.sum(-1, keepdim=True).abs(), (-m).exp()) + 1e-6)
    wanted = layer.finish(torch.einsum("bhts,bshd->bthd", weight, parts.v), parts)
    torch.testing.assert_close(layer(x).y, wanted, rtol=0, atol=1e-10)
    assert layer.wants == frozenset() and not layer.causal


@pytest.mark.parametrize("make", [lambda: MLSTM(32, 4), lambda: MLSTM(32, 4, rope=100.0), lambda: SLSTM(32, 4)])
def test_gates_of_fifty_are_finite_in_every_pass(make):
    layer = randomised(make())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("igate.bias", "fgate.bias"):
                parameter.copy_(torch.linspace(-50, 50, 4)[torch.randperm(4)])
            if name == "bias":
                parameter[:2] = torch.linspace(-50, 50, 8)[torch.randperm(8)]
    exact = make().double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 150, 32).requires_grad_()
    y = layer(x).y
    gradient = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(tensor.isfinite().all() for tensor in (y, *gradient))
    with torch.no_grad():
        wanted, state, ys = exact(x.double()).y, layer.init_state(2), []
        for x_t in x.unbind(1):
            out = layer.step(x_t, None, state)
            ys.append(out.y)
            state = out.state
    for found in (y.detach(), torch.stack(ys, 1)):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MLSTM(32, 5), "MLSTM: expected an inner width .64. that heads and qkv_block divide, got heads=5"),
        (lambda: MLSTM(32, 4, qkv_block=5), "qkv_block=5"),
        (lambda: MLSTM(32, 64, rope=10.0), "MLSTM: rope: expected heads of an even size, got 1"),
        (lambda: SLSTM(32, 5), "SLSTM: expected dim a multiple of heads, got dim=32, heads=5"),
    ],
)
def test_sizes_are_checked(make, text):
    with pytest.raises(BadArgument, match=text):
        make()


def test_what_does_not_apply_is_refused():
    x, ctx = torch.zeros(1, 3, 32), SeqContext(positions=torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(BadArgument, match="MLSTM: ctx.positions: expected None"):
        MLSTM(32, 4)(x, ctx)
    with pytest.raises(BadArgument, match="MLSTM: want: expected some of"):
        MLSTM(32, 4, bidirectional=True)(x, want=frozenset({"state"}))
