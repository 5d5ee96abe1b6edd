"""The state-space dual scan: chunks of any length against the definition, the definition against a closed form."""

import itertools

import numpy as np
import pytest
import torch
from statezoo.zoo.ops import ssd as module
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.selective_scan import selective_scan
from statezoo.zoo.ops.ssd import between, ssd

OPTIONS = ("initial", "segments", "reverse")
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(OPTIONS, size)]
EXACT = {"rtol": 0.0, "atol": 1e-10}
# float32 against float64: ||a - b|| / ||b|| of outputs, final state and every gradient
FLOAT32 = 5e-6


def problem(options=(), *, batch=2, steps=13, heads=4, size=3, groups=2, states=5, dtype=torch.float64, seed=0):
    """Arguments by name; floating ones are leaves."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    given = {
        "x": normal(batch, steps, heads, size),
        "g": -normal(batch, steps, heads).abs(),
        "B": normal(batch, steps, groups, states),
        "C": normal(batch, steps, groups, states),
        "initial": normal(batch, heads, size, states) if "initial" in options else None,
    }
    given = {name: None if t is None else t.to(dtype).requires_grad_() for name, t in given.items()}
    cuts = torch.rand(batch, steps, generator=draw) < 0.3
    given["segments"] = cuts.cumsum(1) * 2 if "segments" in options else None
    return {**given, "reverse": "reverse" in options}


def solve(given, backend, **more):
    """Outputs and the gradients of everything, from y and from the final state."""
    leaves = {name: t for name, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    with use_backend(backend):
        y, final = ssd(**given, **more)
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
    return max(float(((ours[n] - t).norm() / t.norm().clamp(min=1e-300)).detach()) for n, t in theirs.items())


# against the definition, and the definition itself -------------------------------------------------------------------


def closed_form(given):
    """H_t = sum over s <= t of exp(sum of g over s+1..t) x_s B_s', term by term in numpy."""
    x, g, B, C, h0 = (
        None if given[name] is None else given[name].detach().numpy() for name in ("x", "g", "B", "C", "initial")
    )
    batch, steps, heads, size = x.shape
    spread = heads // B.shape[2]
    numbers = np.zeros((batch, steps), int) if given["segments"] is None else given["segments"].numpy()
    places = list(range(steps)[::-1] if given["reverse"] else range(steps))
    y, final = np.zeros_like(x), np.zeros((batch, heads, size, B.shape[3]))
    for b, h in np.ndindex(batch, heads):
        for i, t in enumerate(places):
            state = sum(
                np.exp(sum(g[b, r, h] for r in places[j + 1 : i + 1])) * np.outer(x[b, s, h], B[b, s, h // spread])
                for j, s in enumerate(places[: i + 1])
                if numbers[b, s] == numbers[b, t]
            )
            if h0 is not None and numbers[b, places[0]] == numbers[b, t]:
                state = state + np.exp(sum(g[b, r, h] for r in places[: i + 1])) * h0[b, h]
            y[b, t, h] = state @ C[b, t, h // spread]
        final[b, h] = state
    return y, final


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_equals_the_closed_form(options, backend):
    given = problem(options, steps=6)
    with use_backend(backend):
        y, final = ssd(**given, chunk=4)
    for ours, theirs in zip((y, final), closed_form(given), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 64, None])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("options", SUBSETS, ids="-".join)
def test_chunks_of_any_length_equal_the_reference(options, groups, chunk):
    given = problem(options, groups=groups)
    same(solve(given, "torch", chunk=chunk), solve(given, "reference"))


@pytest.mark.parametrize("steps", [1, 2, 3, 31, 64, 65, 127])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_lengths(options, steps):
    given = problem(options, steps=steps)
    same(solve(given, "torch"), solve(given, "reference"))


@pytest.mark.parametrize("steps", [1, 2, 127, 4097])
@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_float32_stays_within_its_bound(options, steps):
    exact, given = (problem(options, steps=steps, dtype=dtype) for dtype in (torch.float64, torch.float32))
    ours = solve(given, "torch")
    assert all(t.dtype == torch.float32 for t in ours.values())
    assert worst(ours, solve(exact, "reference")) < FLOAT32


def extreme(dtype):
    """Log decays dt A with dt from 0 to 20 and A from -16 to -1e-3: decays from 1 to exp(-320)."""
    given = problem(OPTIONS, steps=257, dtype=dtype)
    dt = torch.linspace(0, 20, 257, dtype=torch.float64)[
        torch.randperm(257, generator=torch.Generator().manual_seed(5))
    ]
    with torch.no_grad():
        given["g"].copy_((dt[:, None] * -torch.logspace(-3, 1.20412, 4, dtype=torch.float64)).expand(2, -1, -1))
    return given


def test_extreme_decays_are_finite_and_right():
    given = extreme(torch.float64)
    wanted = solve(given, "reference")
    same(solve(given, "torch"), wanted, atol=1e-9, rtol=1e-10)
    ours = solve(extreme(torch.float32), "torch")
    assert all(t.isfinite().all() for t in ours.values())
    assert worst(ours, wanted) < FLOAT32


def test_a_decay_beyond_any_exponent_forgets():
    given = problem(("initial",))
    with torch.no_grad():
        given["g"][:, 4] = -1e30
    ours = solve(given, "torch", chunk=8)
    same(ours, solve(given, "reference"))
    assert all(t.isfinite().all() for t in ours.values())
    (gradient,) = torch.autograd.grad(ssd(**given)[1].sum(), given["initial"])
    assert not gradient.any()


@pytest.mark.parametrize("place", [0, 2, 6, 7, 8, 15])
def test_one_large_decay_does_not_blur_what_follows(place):
    """Differences of cumulative sums would: behind a sum of -1e8, float32 knows steps of 8."""
    exact, given = (problem(steps=16, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for arguments in (exact, given):
        with torch.no_grad():
            arguments["g"][:, place] = -1e8
    assert worst(solve(given, "torch", chunk=8), solve(exact, "reference")) < FLOAT32


def test_sums_between_two_steps():
    g = -torch.rand(2, 6, dtype=torch.float64)
    for t, s in itertools.product(range(6), range(6)):
        torch.testing.assert_close(between(g)[:, t, s], g[:, s + 1 : t + 1].sum(1), **EXACT)


def test_is_the_selective_scan_with_one_decay_per_head():
    given = problem(OPTIONS, groups=1, size=1)
    y, final = ssd(**given)
    y_scan, final_scan = selective_scan(
        given["x"].squeeze(-1), torch.zeros_like(given["g"]), torch.zeros(4, 5, dtype=torch.float64) - 1, given["B"],
        given["C"], log_decay=given["g"], initial=given["initial"].squeeze(2), segments=given["segments"], reverse=True,
    )  # fmt: skip
    torch.testing.assert_close(y.squeeze(-1), y_scan, **EXACT)
    torch.testing.assert_close(final.squeeze(2), final_scan, **EXACT)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_does_not_narrow_the_scan(backend):
    given = problem(OPTIONS, steps=50, dtype=torch.float32)
    with use_backend(backend):
        wanted = ssd(**given)
        with torch.autocast("cpu", torch.bfloat16):
            found = ssd(**given)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("options", [(), OPTIONS], ids="-".join)
def test_gradcheck(options):
    given = problem(options, steps=5, heads=2, size=1, groups=2, states=2)
    names = [name for name, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    leaves = [given[name] for name in names]

    def run(*leaves):
        return ssd(**{**given, **dict(zip(names, leaves, strict=True))}, chunk=3)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_gradients_reach_the_initial_state_through_the_final_one():
    given = problem(("initial",))
    _, final = ssd(**given)
    (gradient,) = torch.autograd.grad(final.sum(), given["initial"])
    torch.testing.assert_close(gradient, given["g"].sum(1).exp()[..., None, None].expand_as(final), **EXACT)


# what it refuses ------------------------------------------------------------------------------------------------------


def test_float16_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="x: expected float32, bfloat16 or float64 on the CPU, got float16"):
        ssd(**problem(dtype=torch.float16))


def test_no_steps_are_refused():
    given = problem(steps=0)
    with pytest.raises(ValueError, match=r"x: expected \(B, L, H, P\), got \(2, 0, 4, 3\)"):
        ssd(**given)


def test_another_dtype_beside_x_is_refused():
    given = problem(OPTIONS, dtype=torch.float32)
    for name in ("g", "B", "C", "initial"):
        with pytest.raises(ValueError, match=f"{name}: expected torch.float32 as x, got torch.float64"):
            ssd(**{**given, name: given[name].double()})


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("x", (2, 13, 4), r"x: expected \(B, L, H, P\), got \(2, 13, 4\)"),
        ("g", (2, 13, 1), r"g: expected \(2, 13, 4\), got \(2, 13, 1\)"),
        ("g", (1, 13, 4), r"g: expected \(2, 13, 4\), got \(1, 13, 4\)"),
        ("B", (1, 13, 2, 5), r"B: expected \(2, 13, G, N\), got \(1, 13, 2, 5\)"),
        ("B", (2, 1, 2, 5), r"B: expected \(2, 13, G, N\), got \(2, 1, 2, 5\)"),
        ("B", (2, 13, 5), r"B: expected \(2, 13, G, N\), got \(2, 13, 5\)"),
        ("B", (2, 13, 2, 0), r"B: expected \(2, 13, G, N\), got \(2, 13, 2, 0\)"),
        ("B", (2, 13, 3, 5), "B: expected a number of groups that divides 4 heads, got 3 groups"),
        ("C", (2, 13, 1, 5), r"C: expected \(2, 13, 2, 5\), got \(2, 13, 1, 5\)"),
        ("C", (1, 13, 2, 5), r"C: expected \(2, 13, 2, 5\), got \(1, 13, 2, 5\)"),
        ("C", (2, 13, 2, 1), r"C: expected \(2, 13, 2, 5\), got \(2, 13, 2, 1\)"),
        ("initial", (1, 4, 3, 5), r"initial: expected \(2, 4, 3, 5\), got \(1, 4, 3, 5\)"),
        ("initial", (2, 4, 5, 3), r"initial: expected \(2, 4, 3, 5\), got \(2, 4, 5, 3\)"),
    ],
)
def test_nothing_is_broadcast(name, shape, text, backend):
    given = problem(OPTIONS)
    with use_backend(backend), pytest.raises(ValueError, match=f"ssd: {text}"):
        ssd(**{**given, name: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        (torch.zeros(1, 13, dtype=torch.int64), r"segments: expected \(2, 13\), got \(1, 13\)"),
        (torch.zeros(2, 13), "segments: expected integers, got torch.float32"),
        (torch.tensor([[0] * 13, [1] * 6 + [0] * 7]), "segments: .* never fall along a row, got a fall in row 1"),
    ],
)
def test_segments_are_checked(segments, text):
    with pytest.raises(ValueError, match=text):
        ssd(**{**problem(), "segments": segments})


def test_a_chunk_has_a_step():
    with pytest.raises(ValueError, match="chunk: expected at least 1, or None, got 0"):
        ssd(**problem(), chunk=0)


def test_only_the_reference_loops_over_steps(monkeypatch):
    """`torch` takes matrix products of chunks: as many as there are chunks, whatever the number of steps."""
    given, calls = problem(steps=256), []
    real = torch.addcmul
    monkeypatch.setattr(module.torch, "addcmul", lambda *arguments: calls.append(1) or real(*arguments))
    with use_backend("torch"):
        ssd(**given)
    assert len(calls) == 256 // module.best_chunk("cpu", 256, given["x"].shape[-1], given["B"].shape[-1])


@pytest.mark.parametrize(
    ("steps", "size", "states", "chunk"),
    [(2048, 64, 128, 64), (2048, 32, 32, 32), (200, 32, 32, 29), (50, 32, 32, 25), (7, 64, 128, 7), (1, 1, 1, 1),
     (4096, 2, 2, 16), (4096, 256, 256, 256)],
)  # fmt: skip
def test_chunks_are_equal_and_as_long_as_a_state_is_wide(steps, size, states, chunk):
    assert module.best_chunk("cpu", steps, size, states) == chunk


def test_a_gpu_takes_longer_chunks():
    assert module.best_chunk("cuda", 2048, 64, 128) == 256 and module.best_chunk("cuda", 200, 32, 32) == 100
