"""Distances of clouds against plain loops and values worked out by hand."""

import math

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.geometry.distances import chamfer, density_aware_chamfer, earth_mover


def clouds(*sizes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, size, 3, generator=draw, dtype=torch.float64) for size in sizes]


def test_density_aware_chamfer_by_a_loop():
    one, other = clouds(7, 9)
    for b in range(2):
        total = 0.0
        for xs, ys in ((one[b].tolist(), other[b].tolist()), (other[b].tolist(), one[b].tolist())):
            near = [min(range(len(ys)), key=lambda j, x=x, ys=ys: math.dist(x, ys[j])) for x in xs]
            ratio = len(xs) / len(ys)
            kept = [
                ratio / near.count(j) ** 0.5 * math.exp(-40 * math.dist(x, ys[j]) ** 2)
                for x, j in zip(xs, near, strict=True)
            ]
            total += (1 - sum(kept) / len(kept)) / 2
        assert float(density_aware_chamfer(one, other)[b]) == pytest.approx(total, rel=1e-12)


def test_equal_clouds_are_at_no_distance_and_a_crowd_is():
    (one,) = clouds(8)
    assert float(density_aware_chamfer(one, one).abs().max()) < 1e-12
    assert float(chamfer(one, one)[0].abs().max()) == float(earth_mover(one, one).abs().max()) == 0
    crowd = one.clone()
    crowd[:, 1:] = one[:, :1]  # all points of one cloud on one point of the other: far in DCD, although d is 0 one way
    way_there = 1 - 8**-0.5
    assert float(density_aware_chamfer(crowd, one)[0]) > way_there / 2


def test_chamfer_is_that_of_all_pairs():
    for sizes in ((7, 9), (300, 400)):  # below and above where a tree is built
        one, other = (cloud.requires_grad_() for cloud in clouds(*sizes))
        pairs = (one[:, :, None] - other[:, None]).square().sum(-1)
        there, back = pairs.amin(2), pairs.amin(1)
        l1, l2 = chamfer(one, other)
        torch.testing.assert_close(l1, (there.sqrt().mean(1) + back.sqrt().mean(1)) / 2)
        torch.testing.assert_close(l2, there.mean(1) + back.mean(1))
        wanted = torch.autograd.grad((there.mean(1) + back.mean(1)).sum(), (one, other))
        torch.testing.assert_close(torch.autograd.grad(l2.sum(), (one, other)), wanted)


def test_gradients():
    one, other = (cloud.requires_grad_() for cloud in clouds(5, 6))
    assert torch.autograd.gradcheck(density_aware_chamfer, (one, other))
    assert torch.autograd.gradcheck(chamfer, (one, other))


def test_points_on_one_another_have_a_finite_gradient():
    (one,) = clouds(300)
    same = one.clone().requires_grad_()
    for distance in (chamfer(same, one)[0], density_aware_chamfer(same, one)):
        assert torch.autograd.grad(distance.sum(), same)[0].isfinite().all()


def test_what_is_not_finite_makes_a_distance_that_is_not():
    one, other = clouds(300, 300)
    for bad, measures in ((math.nan, (chamfer, density_aware_chamfer)), (math.inf, (chamfer,))):
        one[0, 5, 1] = bad
        for distances in (measure(one, other) for measure in measures):
            for distance in distances if isinstance(distances, tuple) else (distances,):
                assert not distance[0].isfinite() and distance[1].isfinite()


def test_earth_movers_distance_wants_one_size():
    with pytest.raises(BadArgument, match=r"other: expected \(2, 5, 3\), got \(2, 6, 3\)"):
        earth_mover(*clouds(5, 6))
