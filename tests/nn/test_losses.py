"""Chunked cross entropy equals the plain form, gradients included, and never holds the table of logits."""

import pytest
import torch
from statezoo.zoo.nn.losses import chunked_cross_entropy, soft_dice
from torch.nn import functional as F


def inputs(n, items, dim, bias, dtype):
    torch.manual_seed(0)
    made = [3 * torch.randn(n, dim, dtype=dtype), torch.randn(items, dim, dtype=dtype), torch.randn(items, dtype=dtype)]
    return [t.requires_grad_() for t in made[: 2 + bias]], torch.randint(0, items, (n,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", [1, 7, 30, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_form(bias, chunk, dtype, tolerance):
    (features, weight, *rest), target = inputs(9, 30, 5, bias, dtype)
    plain = F.cross_entropy(F.linear(features, weight, *rest), target)
    ours = chunked_cross_entropy(features, weight, target, *rest, chunk=chunk)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    given = [features, weight, *rest]
    for one, other in zip(torch.autograd.grad(2 * ours, given), torch.autograd.grad(2 * plain, given), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_large_scores_do_not_overflow():
    (features, weight), target = inputs(4, 50, 5, False, torch.float32)
    loss = chunked_cross_entropy(100 * features, weight, target, chunk=8)
    torch.testing.assert_close(loss, F.cross_entropy(100 * features @ weight.T, target))


def test_a_million_items_train_on_a_cpu():
    """The table of 64 x 1,000,000 logits would take 256 MB, and its softmax as much again: no tensor is that large."""
    (features, weight), target = inputs(64, 1_000_000, 8, False, torch.float32)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest[0] = max(largest[0], out.numel())
            return out

    with Watch():
        loss = chunked_cross_entropy(features, weight, target, chunk=8192)
    loss.backward()
    assert largest[0] <= max(64 * 8192, weight.numel()) and weight.grad.isfinite().all()
    assert weight.grad[target[0]].abs().sum() > 0


def test_soft_dice_by_hand():
    label = torch.tensor([[0, 0, 1, -1]])
    sure = torch.tensor([[[50.0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 50]]])
    # classes 0 and 1 are met exactly; class 2, in neither, counts as missed
    assert soft_dice(sure, label).item() == pytest.approx(1 / 3, abs=1e-6)
    even = torch.zeros(1, 4, 3)
    dice = [2 * (2 / 3) / (3 / 9 + 2), 2 * (1 / 3) / (3 / 9 + 1), 0]
    assert soft_dice(even, label).item() == pytest.approx(1 - sum(dice) / 3, abs=1e-6)
