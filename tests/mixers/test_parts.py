"""Modules inside mixers are called, never read past: adapters, hooks and replacements take effect, in steps too."""

import functools

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers import create_mixer, laws
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.s6 import S6
from statezoo.zoo.mixers.short_conv import ShortConv
from statezoo.zoo.nn.conv import CausalConv1d, causal_conv
from statezoo.zoo.ops.causal_conv1d import causal_conv1d
from torch import nn
from torch.nn import functional as F

DIM = 8
OPTIONS = {
    "s6": {"d_state": 3}, "ssd": {"d_state": 4, "head_dim": 4}, "mlstm": {"heads": 2}, "slstm": {"heads": 2},
    "short_conv": {}, "short_conv-bias": {"bias": True}, "attention": {"heads": 2}, "s4d": {"d_state": 4},
}  # fmt: skip
every = pytest.mark.parametrize("name", list(OPTIONS))


def build(name):
    torch.manual_seed(0)
    mixer = create_mixer({"name": name.split("-")[0], **OPTIONS[name]}, DIM).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def example(*shape):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class LoRA(nn.Module):
    """W x + U V x."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False, dtype=linear.weight.dtype)
        self.up = nn.Linear(2, linear.out_features, bias=False, dtype=linear.weight.dtype)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


@every
def test_an_adapter_gives_what_its_merged_weights_give(name):
    """Around every linear layer, in full passes, scaled steps, packed sequences and steps."""
    x, numbers = example(2, 9), torch.tensor([[0] * 4 + [1] * 5] * 2)
    for part, module in build(name).named_modules():
        if not isinstance(module, nn.Linear):
            continue
        adapted, merged = build(name), build(name)
        lora = LoRA(adapted.get_submodule(part))
        adapted.set_submodule(part, lora)
        with torch.no_grad():
            merged.get_submodule(part).weight += lora.up.weight @ lora.down.weight
        assert not torch.allclose(merged(x).y, build(name)(x).y), part
        contexts = [None, SeqContext(segments=numbers)]
        if "dt_scale" in adapted.uses:
            contexts.append(SeqContext(dt_scale=torch.rand(2, 9, adapted.scales(), dtype=x.dtype)))
        for ctx in contexts:
            torch.testing.assert_close(adapted(x, ctx).y, merged(x, ctx).y, rtol=0, atol=1e-10)
        laws.step_by_step(lambda m=adapted: m)


@every
def test_hooks_see_every_module_of_a_step_and_of_a_pass(name):
    mixer, seen = build(name), []
    parts = laws.parts_of(mixer)
    for part in parts:
        mixer.get_submodule(part).register_forward_hook(lambda _, inputs, output, part=part: seen.append(part))
    mixer(example(2, 9))
    assert set(seen) == set(parts)
    seen.clear()
    mixer.step(example(2), None, mixer.init_state(2, dtype=torch.float64))
    assert set(seen) == set(parts)


@pytest.mark.parametrize("name", ["s6", "ssd", "mlstm", "slstm", "short_conv", "short_conv-bias"])
def test_a_convolution_takes_one_tensor_and_gives_one(name):
    """A wrapper that knows nothing of packed sequences serves full passes and steps."""

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    part = next(n for n, m in build(name).named_modules() if isinstance(m, CausalConv1d))
    doubled, scaled = build(name), build(name)
    doubled.set_submodule(part, Doubled(doubled.get_submodule(part)))
    with torch.no_grad():
        for parameter in scaled.get_submodule(part).parameters():
            parameter.mul_(2)
    x = example(2, 9)
    torch.testing.assert_close(doubled(x).y, scaled(x).y, rtol=0, atol=1e-12)
    laws.step_by_step(lambda: doubled)


def test_parametrized_weights_take_effect():
    for name, part in (("s6", "dt_proj"), ("s6", "conv1d"), ("ssd", "conv1d"), ("mlstm", "igate"), ("slstm", "conv1d")):
        mixer, x = build(name), example(2, 9)

        class Halved(nn.Module):
            def forward(self, weight):
                return weight / 2

        plain = mixer(x).y
        nn.utils.parametrize.register_parametrization(mixer.get_submodule(part), "weight", Halved())
        assert not torch.allclose(mixer(x).y, plain), name
        laws.step_by_step(lambda m=mixer: m)


def test_a_time_step_is_scaled_before_its_bias():
    """What dt_scale is defined by, written out from the weights."""
    mixer, x, scale = build("s6"), example(2, 6), torch.rand(2, 6, 2 * DIM, dtype=torch.float64) * 3
    seen = []
    mixer.points()["dt"].register_forward_hook(lambda _, inputs, output: seen.append(output))
    parts = mixer.project(x, SeqContext(dt_scale=scale))
    r = mixer.x_proj(parts.x)[..., : mixer.dt_rank]
    wanted = F.softplus(F.linear(r, mixer.dt_proj.weight) * scale + mixer.dt_proj.bias)
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=1e-12)


def test_names_and_shapes_of_weights_are_those_of_torchs_layers():
    shapes = {name: tuple(tensor.shape) for name, tensor in S6(DIM, d_conv=3).state_dict().items()}
    assert shapes["conv1d.weight"] == (16, 1, 3) and shapes["conv1d.bias"] == (16,)
    assert shapes["dt_proj.weight"] == (16, 1) and shapes["dt_proj.bias"] == (16,)
    torch.manual_seed(3)
    ours = CausalConv1d(6, 4)
    torch.manual_seed(3)
    theirs = nn.Conv1d(6, 6, 4, groups=6)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_layer_is_the_op(steps, segmented):
    conv, x = CausalConv1d(DIM, 4).double(), example(3, steps)
    initial, lengths = example(3, 3), torch.tensor([steps, 1, max(1, steps - 2)])
    numbers = torch.arange(steps).div(2, rounding_mode="floor").expand(3, -1) if segmented else None
    found = causal_conv(conv, 4, x, initial, numbers, lengths)
    wanted = causal_conv1d(x, conv.weight.squeeze(1), conv.bias, initial=initial, segments=numbers, lengths=lengths)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with pytest.raises(BadArgument, match=r"CausalConv1d: x: expected \(B, W - 1 \+ L, 8\), got \(3, 4, 1\)"):
        conv(torch.zeros(3, 4, 1))


@pytest.mark.parametrize("change", [torch.tanh, lambda y: y.roll(1, -1), lambda y: y.cumsum(1)])
def test_a_matrix_that_would_be_wrong_is_refused(change):
    mixer = ShortConv(DIM).double()
    mixer.conv.register_forward_hook(lambda _, inputs, output: change(output))
    with pytest.raises(BadArgument, match="ShortConv.materialize: conv: expected a depthwise convolution"):
        mixer.materialize(example(2, 9))


FAST = ("s6", "short_conv")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS])
def test_compiled_with_wrapped_parts(name):
    mixer, x = build(name), example(2, 9)
    for part in [n for n in laws.parts_of(mixer) if "." not in n]:
        mixer.set_submodule(part, laws.Changed(mixer.get_submodule(part)))
    torch._dynamo.reset()
    compiled = torch.compile(functools.partial(mixer), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).y, mixer(x).y, rtol=0, atol=1e-10)
