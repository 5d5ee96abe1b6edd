"""Attention against its definition, step by step against all at once, with padding, and its gradients."""

import math

import pytest
import torch
from statezoo.zoo.errors import ZooError
from statezoo.zoo.mixers.attention import Attention
from statezoo.zoo.mixers.base import SeqContext

torch.manual_seed(0)


def definition(mixer, x, causal, lengths=None):
    """softmax(q k' / sqrt(d)) v, head by head and query by query."""
    batch, steps, dim = x.shape
    size = dim // mixer.heads
    q, k, v = mixer.qkv(x).split(dim, 2)
    y = torch.zeros_like(x)
    for b in range(batch):
        for h in range(mixer.heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(steps):
                seen = range(t + 1) if causal else range(steps if lengths is None else int(lengths[b]))
                scores = torch.stack([q[b, t, part] @ k[b, s, part] / math.sqrt(size) for s in seen]).softmax(0)
                y[b, t, part] = sum(w * v[b, s, part] for w, s in zip(scores, seen, strict=True))
    return mixer.out(y)


@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_definition_with_gradients(causal):
    mixer = Attention(8, 2, causal=causal).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, 8, dtype=torch.float64)
    ours, reference = mixer(x).y, definition(mixer, x, causal)
    assert torch.allclose(ours, reference, atol=1e-10)
    parameters = [x, *mixer.parameters()]
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), parameters),
                    torch.autograd.grad((reference * weight).sum(), parameters), strict=True):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-10)


def test_padding_is_not_attended_to():
    mixer = Attention(8, 2, causal=False).double()
    x, lengths = torch.randn(2, 6, 8, dtype=torch.float64), torch.tensor([6, 3])
    padded = mixer(x, SeqContext(lengths=lengths)).y
    valid = torch.arange(6) < lengths[:, None]
    assert torch.allclose(padded[valid], definition(mixer, x, False, lengths)[valid], atol=1e-10)
    assert not padded[~valid].any()
    assert torch.allclose(padded[1, :3], mixer(x[1:, :3]).y[0], atol=1e-10)


def test_step_by_step_equals_all_at_once():
    mixer = Attention(8, 2).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    state, steps = None, []
    for t in range(7):
        out = mixer(x[:, t : t + 1], state=state, want=frozenset({"state"}))
        state = out.state
        steps.append(out.y)
    assert torch.allclose(torch.cat(steps, 1), mixer(x).y, atol=1e-10)
    first = mixer(x[:, :3], want=frozenset({"state"}))
    assert torch.allclose(torch.cat([first.y, mixer(x[:, 3:], state=first.state).y], 1), mixer(x).y, atol=1e-10)


def test_heads_must_divide():
    with pytest.raises(ZooError, match="heads must divide"):
        Attention(10, 3)
