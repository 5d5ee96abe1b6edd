"""What the tests of the selective scan share: problems, their solutions, how far two of these are apart."""

import itertools

import torch
from statezoo.zoo.ops import selective_scan as module
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.selective_scan import selective_scan

OPTIONS = ("initial", "segments", "reverse", "log_decay")
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(OPTIONS, size)]
EXACT = {"rtol": 0.0, "atol": 1e-10}
# float32 against float64: ||a - b|| / ||b|| of outputs, final state and every gradient
FLOAT32 = 1e-5


def problem(options=(), *, batch=2, steps=13, channels=6, states=3, groups=1, dtype=torch.float64, seed=0, low=-2.0):
    """Arguments by name; floating ones are leaves. `low`: of A."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    shared = (batch, steps, states) if groups == 1 else (batch, steps, groups, states)
    given = {
        "u": normal(batch, steps, channels),
        "dt": torch.rand(batch, steps, channels, generator=draw, dtype=torch.float64),
        "A": low * torch.rand(channels, states, generator=draw, dtype=torch.float64),
        "B": normal(*shared),
        "C": normal(*shared),
        "log_decay": -normal(batch, steps, channels).abs() if "log_decay" in options else None,
        "initial": normal(batch, channels, states) if "initial" in options else None,
    }
    given = {name: None if t is None else t.to(dtype).requires_grad_() for name, t in given.items()}
    cuts = torch.rand(batch, steps, generator=draw) < 0.3
    given["segments"] = cuts.cumsum(1) * 2 if "segments" in options else None
    return {**given, "reverse": "reverse" in options}


def solve(given, backend):
    """Outputs and the gradients of everything, from y and from the final state."""
    leaves = {name: t for name, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    with use_backend(backend):
        y, final = selective_scan(**given)
        loss = (y * y.detach().cos()).sum() + (final * (2 * final.detach()).cos()).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "final": final, **{f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}}


def same(ours, theirs, **tolerance):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], **{**EXACT, **tolerance}, msg=lambda text, name=name: f"{name}: {text}"
        )


def worst(ours, theirs):
    """Largest relative error of any result, in norm."""
    return max(
        float((ours[n].double() - t).detach().norm() / t.detach().norm().clamp(min=1e-300)) for n, t in theirs.items()
    )


def extreme(dtype):
    """Time steps from 0 to 20 and A from -16 to -1e-3: decays from 1 to exp(-320)."""
    given = problem(OPTIONS, steps=257, channels=8, states=4, groups=2, dtype=dtype)
    with torch.no_grad():
        given["dt"].copy_(torch.linspace(0, 20, 257)[torch.randperm(257)][None, :, None].expand_as(given["dt"]))
        given["A"].copy_(-torch.logspace(-3, 1.20412, 32).reshape(8, 4))
    return given


def op_arguments(options, requires_grad=True):
    given = problem(options, steps=9, groups=2, dtype=torch.float32)
    keep = None if given["segments"] is None else module.same_segment(given["segments"])
    tensors = [given[name] for name in ("u", "dt", "A", "B", "C", "log_decay", "initial")]
    return *(t if requires_grad or t is None else t.detach() for t in tensors), keep
