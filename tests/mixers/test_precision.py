"""What defines the dynamics keeps its float32 values when a mixer is cast; everything else follows the cast."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from statezoo.zoo.mixers import create_mixer
from statezoo.zoo.mixers.wrappers import Bidirectional
from statezoo.zoo.ops.slstm import slstm
from torch import nn
from torch.nn import functional as F

DIM = 8
OPTIONS = {
    "s6": {"d_state": 5}, "ssd": {"d_state": 4, "head_dim": 4}, "s4d": {"d_state": 4, "train_B": True},
    "mlstm": {"heads": 2}, "slstm": {"heads": 2}, "attention": {"heads": 2}, "short_conv": {"bias": True},
}  # fmt: skip
KEPT = {
    "s6": {"A_log", "D", "dt_proj.bias"},
    "ssd": {"A_log", "D", "dt_bias"},
    "s4d": {"log_dt", "log_A_real", "A_imag", "B", "C", "D"},
    "mlstm": {"igate.bias", "fgate.bias"},
    "slstm": {"bias"},
    "attention": set(),
    "short_conv": set(),
}
LOW = {
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.bfloat16),
    "to_like": lambda m: m.to(torch.empty(0, dtype=torch.bfloat16)),
    "type": lambda m: m.type(torch.bfloat16),
}
every = pytest.mark.parametrize("name", list(OPTIONS))


def build(name):
    torch.manual_seed(0)
    mixer = create_mixer({"name": name, **OPTIONS[name]}, DIM)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no number that bfloat16 holds exactly
    return mixer.eval()


def example(*shape):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1))


@every
@pytest.mark.parametrize("cast", list(LOW))
@pytest.mark.parametrize("around", [lambda m: m, lambda m: nn.ModuleList([nn.ModuleDict({"m": m})])])
def test_a_cast_leaves_the_dynamics_as_they_are(name, cast, around):
    mixer, before = build(name), build(name).state_dict()
    for parameter in mixer.parameters():
        parameter.grad = parameter.detach() / 3
    LOW[cast](around(mixer))
    low = torch.float16 if cast == "half" else torch.bfloat16
    for key, parameter in mixer.named_parameters():
        wanted = torch.float32 if key in KEPT[name] else low
        assert parameter.dtype == parameter.grad.dtype == wanted, key
        assert torch.equal(parameter.detach(), before[key].to(wanted)), key
        assert torch.equal(parameter.grad, (before[key] / 3).to(wanted)), key


@every
def test_other_casts_and_moves_still_happen(name):
    mixer, before = build(name), build(name).state_dict()
    assert {p.dtype for p in mixer.double().parameters()} == {torch.float64}
    assert all(torch.equal(tensor, before[key].double()) for key, tensor in mixer.state_dict().items())
    assert {p.dtype for p in mixer.float().parameters()} == {torch.float32}
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixer.state_dict().items())
    mixer.bfloat16().float()  # there and back: what is kept has lost nothing
    assert all(torch.equal(mixer.state_dict()[key], before[key]) for key in KEPT[name])
    mixer = build(name).to("meta", torch.bfloat16)
    assert all(p.is_meta for p in mixer.parameters())
    assert {key for key, p in mixer.named_parameters() if p.dtype == torch.float32} == KEPT[name]


@pytest.mark.parametrize("name", ["s6", "ssd", "s4d", "mlstm", "slstm"])
def test_a_low_mixer_computes_with_the_float32_values(name):
    """Time steps, gates, scans and skips of the cast mixer are, to the bit, those of the values before the cast."""
    low, exact, seen, x = build(name).bfloat16(), build(name), {}, example(2, 12).bfloat16()
    for point, module in low.points().items():
        module.register_forward_hook(lambda _, inputs, output, point=point: seen.__setitem__(point, output))
    assert low(x).y.dtype == torch.bfloat16
    if name == "s6":
        raw = F.linear(low.x_proj(seen["conv"])[..., : low.dt_rank], low.dt_proj.weight).float()
        assert torch.equal(seen["dt"], F.softplus(raw + exact.dt_proj.bias))
    if name == "ssd":
        raw = low.in_proj(seen["in"])[..., -low.heads :].float()
        assert torch.equal(seen["dt"], F.softplus(raw + exact.dt_bias))
    if name == "mlstm":
        together = torch.cat([seen[part] for part in "qkv"], -1).float()
        assert torch.equal(seen["i"], F.linear(together, low.igate.weight.float(), exact.igate.bias))
        assert torch.equal(seen["f"], F.linear(together, low.fgate.weight.float(), exact.fgate.bias))
    if name == "slstm":
        h, _ = slstm(seen["gates"].float().unflatten(-1, (low.heads, -1)), low.R.float(), exact.bias)
        assert torch.equal(seen["scan"], h)
    if name in ("s6", "ssd", "s4d"):
        parts = low.project(x)
        mixed = low.scan(parts)[0]
        assert mixed.dtype == torch.float32 and torch.equal(mixed, exact.scan(parts)[0])
        if name != "s4d":
            assert torch.equal(low.skip(mixed, parts), exact.skip(mixed, parts))


@every
def test_saving_and_loading_a_cast_mixer(name):
    low = build(name).bfloat16()
    stored = load(save(low.state_dict()))
    assert {key for key, tensor in stored.items() if tensor.dtype == torch.float32} == KEPT[name]
    other = create_mixer({"name": name, **OPTIONS[name]}, DIM).bfloat16().eval()
    other.load_state_dict(stored)
    x = example(2, 9).bfloat16()
    assert torch.equal(other(x).y, low(x).y)
    assigned = create_mixer({"name": name, **OPTIONS[name]}, DIM)
    assigned.load_state_dict(stored, assign=True)
    assert torch.equal(assigned.eval()(x).y, low(x).y)
    again = copy.deepcopy(low).to(torch.bfloat16)
    assert torch.equal(again(x).y, low(x).y)


@every
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_flow_and_optimizers_step(name, autocast):
    mixer, x = build(name).train(), example(2, 9)
    x = x if autocast else x.bfloat16()
    mixer = mixer if autocast else mixer.bfloat16()
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=1e-2, foreach=True)
    before = {key: parameter.detach().clone() for key, parameter in mixer.named_parameters()}
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = mixer(x).y.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        optimizer.step()
    for key, parameter in mixer.named_parameters():
        assert parameter.dtype == before[key].dtype
        if parameter.grad.abs().max() > 1e-6:
            assert not torch.equal(parameter.detach(), before[key]), key
    for key in KEPT[name]:
        assert dict(mixer.named_parameters())[key].grad.dtype == torch.float32, key


def test_wrapped_and_adapted_mixers_keep_them_too():
    both = Bidirectional(lambda: build("ssd")).bfloat16()
    assert both.there.A_log.dtype == both.back.dt_bias.dtype == torch.float32
    assert both.there.in_proj.weight.dtype == torch.bfloat16

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    mixer = build("s6")
    mixer.dt_proj = Around(mixer.dt_proj)
    assert mixer.bfloat16().dt_proj.inner.bias.dtype == torch.float32
    assert mixer(example(1, 3).bfloat16()).y.dtype == torch.bfloat16


@pytest.mark.parametrize("flag", ["overwrite", "swap"])
def test_under_the_other_ways_of_conversion_of_torch(flag):
    setting = getattr(torch.__future__, f"set_{flag}_module_params_on_conversion")
    setting(True)
    try:
        mixer = build("s6")
        optimizer_sees = mixer.A_log
        mixer.bfloat16()
        assert mixer.A_log.dtype == mixer.D.dtype == mixer.dt_proj.bias.dtype == torch.float32
        assert mixer.in_proj.weight.dtype == torch.bfloat16
        assert flag == "overwrite" or mixer.A_log is optimizer_sees
    finally:
        setting(False)
