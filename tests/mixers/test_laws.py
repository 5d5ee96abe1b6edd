"""Every mixer, in every wrapper and on every backend, keeps the laws; what it is exempt from does fail."""

import functools

import pytest
import torch
from statezoo.zoo.mixers import MIXERS, create_mixer, laws
from statezoo.zoo.mixers.wrappers import Bidirectional, MultiPath
from statezoo.zoo.ops.backends import use_backend

CASES = {
    "s6": {"name": "s6", "d_state": 3, "dt_max": 2.0},
    "ssd": {"name": "ssd", "d_state": 5, "head_dim": 4, "chunk": 4, "dt_max": 2.0},
    "ssd-groups": {"name": "ssd", "d_state": 3, "head_dim": 2, "groups": 2, "d_ssm": 8, "D_per_channel": True,
                   "dt_limit": (0.01, 1.5), "activation": "hardswish", "norm_before_gate": True},
    "ssd-bare": {"name": "ssd", "d_state": 3, "head_dim": 8, "norm": False, "conv_bias": False, "d_conv": 2},
    "s4d": {"name": "s4d", "d_state": 4},
    "s4d-bidirectional": {"name": "s4d", "d_state": 4, "bidirectional": True},
    "mlstm": {"name": "mlstm", "heads": 2},
    "mlstm-rope-bias": {"name": "mlstm", "heads": 4, "rope": 100.0, "bias": True, "qkv_block": 16, "chunk": 5},
    "mlstm-both-ways": {"name": "mlstm", "heads": 2, "bidirectional": True},
    "slstm": {"name": "slstm", "heads": 2},
    "attention": {"name": "attention", "heads": 2},
    "attention-grouped-rope": {"name": "attention", "heads": 4, "kv_heads": 2, "rope": 100.0, "bias": False},
    "attention-window": {"name": "attention", "heads": 2, "window": 3, "rope": 50.0},
    "attention-both-ways": {"name": "attention", "heads": 2, "causal": False},
    "short_conv": {"name": "short_conv"},
    "short_conv-bias": {"name": "short_conv", "width": 5, "bias": True},
    "identity": {"name": "identity"},
}  # fmt: skip
DIM = 8


def build(case, dtype=torch.float64):
    torch.manual_seed(7)
    config = CASES[case]
    mixer = create_mixer(config, DIM).double().eval()
    with torch.no_grad():  # weights large enough that mistakes show, biases and norms away from 0 and 1
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.to(dtype)


def make(case):
    return functools.partial(build, case)


PAIRS = [(law, case) for law in laws.LAWS for case in CASES]


def test_every_mixer_has_a_case():
    assert {config["name"] for config in CASES.values()} == set(MIXERS)


@pytest.mark.parametrize(("law", "case"), PAIRS, ids=[f"{law}-{case}" for law, case in PAIRS])
def test_law(law, case):
    mixer = build(case)
    if not laws.applies(law, mixer):
        field = laws.NEEDS[law]
        with pytest.raises(ValueError, match=f"ctx.{field}"):
            laws.LAWS[law](make(case))
    elif law in mixer.exempt:
        assert mixer.exempt[law], "an exemption without a reason"
        with pytest.raises((AssertionError, ValueError, TypeError)):
            laws.LAWS[law](make(case))
    else:
        assert laws.LAWS[law](make(case)) is None


def test_exemptions_name_laws():
    for case in CASES:
        assert set(build(case).exempt) <= set(laws.LAWS)


@pytest.mark.parametrize("steps", [1, 23])
@pytest.mark.parametrize("case", list(CASES))
def test_torch_backend_equals_reference(case, steps):
    laws.agree(make(case), "torch", steps=steps)


@pytest.mark.parametrize("merge", ["sum", "mean", "concat", "alternate"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", ["s6", "ssd", "mlstm", "attention"])
def test_wrapped_mixers_keep_the_laws(case, tied, merge):
    def wrapped():
        return Bidirectional(make(case), tied=tied, merge=merge, layer=0).double()

    def seeded():
        torch.manual_seed(3)
        return wrapped()

    for law in ("packed", "padding", "gradients", "saving", "poisoned", "parts"):
        assert laws.LAWS[law](seeded) is None
    laws.agree(seeded, "torch")


def test_a_wrapped_mixer_keeps_the_number_of_its_decays():
    for wrapper in (Bidirectional(make("ssd")), MultiPath(make("ssd"), 2)):
        scales = wrapper.scales()
        for name, module in list(wrapper.named_modules()):
            if type(module).__name__ == "SSD":
                wrapper.set_submodule(name, laws.Changed(module))
        assert wrapper.scales() == scales == build("ssd").scales()


# float32 and bfloat16 against float64: relative error of the whole output, ||y - y64|| / ||y64||
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("steps", [1, 127, pytest.param(4097, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in CASES if case != "slstm"])
def test_low_precision_stays_within_its_bound(case, steps, dtype):
    exact, mixer = build(case), build(case).to(dtype)
    x = laws.example(exact, batch=1, steps=steps)
    with torch.no_grad():
        wanted, y = exact(x).y, mixer(x.to(dtype)).y
    assert y.dtype == dtype and y.isfinite().all()
    error = float((y.double() - wanted).norm() / wanted.norm())
    assert error < BOUNDS[dtype], error


def extreme(case, dtype):
    """Time steps up to 20 and gates of +-50."""
    mixer = build(case, dtype)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name in ("dt_bias", "dt_proj.bias"):
                parameter.copy_(torch.linspace(-20, 20, parameter.numel()))
            if name.endswith(("igate.bias", "fgate.bias", "gates.bias")):
                parameter.copy_(torch.linspace(-50, 50, parameter.numel()))
    return mixer


@pytest.mark.parametrize("case", ["s6", "ssd", "ssd-bare", "mlstm"])
def test_extreme_gates_are_finite_and_right(case):
    exact = extreme(case, torch.float64)
    laws.agree(lambda: extreme(case, torch.float64), "torch", steps=67, atol=1e-8, rtol=1e-8)
    x = laws.example(exact, batch=1, steps=4097)
    with use_backend("reference"), torch.no_grad():
        wanted = exact(x).y
    mixer = extreme(case, torch.float32)
    ours = x.float().requires_grad_()
    y = mixer(ours).y
    y.square().mean().backward()
    assert ours.grad.isfinite().all() and all(p.grad.isfinite().all() for p in mixer.parameters())
    assert float((y.double() - wanted).norm() / wanted.norm()) < 1e-4


# attention, and mLSTM's form of both directions at once, weigh every pair of steps: quadratic as published
QUADRATIC = [case for case in CASES if case.startswith("attention")] + ["mlstm-both-ways"]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUADRATIC])
def test_a_long_sequence_equals_the_reference(case):
    mixer, exact = build(case, torch.float32), build(case)
    x = laws.example(exact, batch=1, steps=65_536)
    places = torch.tensor([0, 1, 4095, 4096, 32_768, 50_001, 65_535])
    with torch.no_grad():
        y = mixer(x.float()).y
        with use_backend("reference"):
            wanted = exact(x).y
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, places].double(), wanted[:, places], rtol=1e-3, atol=1e-3 * float(wanted.std()))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", list(CASES))
def test_autocast_stays_within_its_rounding(case, device):
    mixer = build(case, torch.float32).to(device)
    x = laws.example(mixer, steps=70).to(device)
    with torch.no_grad():
        full = mixer(x, want=laws.STATE & mixer.wants)
        with torch.autocast(device, torch.bfloat16):
            half = mixer(x).y
            if full.state is not None:
                half = torch.cat([half, mixer.step(x[:, 0], None, full.state).y[:, None]], 1)
        y = full.y if full.state is None else torch.cat([full.y, mixer.step(x[:, 0], None, full.state).y[:, None]], 1)
    assert float((half.float() - y).norm() / y.norm()) < 0.03


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(CASES))
def test_a_gpu_gives_what_the_cpu_gives(case):
    """Outputs, states and all gradients in float64."""
    found = {}
    for device in ("cpu", "cuda"):
        mixer = build(case).to(device)
        x = laws.example(mixer, steps=70).to(device).requires_grad_()
        out = mixer(x, want=laws.STATE & mixer.wants)
        wanted = [x, *mixer.parameters()]
        grads = torch.autograd.grad((out.y * torch.linspace(-1, 1, 70, device=device)[:, None]).sum(), wanted)
        every = {"y": out.y, **(out.state or {}), **{f"gradient {n}": g for n, g in enumerate(grads)}}
        found[device] = {name: tensor.detach().cpu() for name, tensor in every.items()}
    if "hardswish" not in CASES[case].values():
        laws.equal(found["cuda"], found["cpu"], case, atol=1e-10)
        return
    # torch's CUDA kernel of hardswish holds 1 / 6 in float32 whatever the dtype is, which is off by 2^-25 of it. x, B
    # and C all pass it, so that the scan's product of the three is off by three times that; once more for the norm
    for name, wanted in found["cpu"].items():
        assert float((found["cuda"][name] - wanted).norm() / wanted.norm()) < 4 * 2**-25, name
