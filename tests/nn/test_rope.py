"""Rotary positions: what they mean, every real dtype, and that nothing is broadcast."""

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers.attention import Attention
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.mlstm import MLSTM
from statezoo.zoo.nn.rope import rotate

B, L, H, D = 2, 5, 2, 8


def example():
    return torch.randn(B, L, H, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_pairs_are_turned_by_position_times_frequency():
    x, positions = example(), torch.randint(0, 50, (B, L), generator=torch.Generator().manual_seed(1))
    y = torch.view_as_complex(rotate(x, positions, 100.0).unflatten(-1, (-1, 2)))
    angle = positions[..., None, None] * 100.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    wanted = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)


def test_positions_of_every_real_dtype():
    x, positions = example(), torch.arange(L).expand(B, -1)
    wanted = rotate(x, positions)
    for kind in (torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint64, torch.float32, torch.float64):
        assert torch.equal(rotate(x, positions.to(kind)), wanted), kind


@pytest.mark.parametrize(
    "shape", [(1, L), (B, 1), (L,), (B, L + 1), (1, L, 2), (B, 1, 2), (B, L, 0), (B, L, 1, 1)], ids=str
)
def test_nothing_is_broadcast(shape):
    with pytest.raises(BadArgument, match="rotate: positions: expected "):
        rotate(example(), torch.zeros(shape))


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (torch.zeros(B, L, dtype=torch.bool), "positions: .* got torch.bool"),
        (torch.zeros(B, L, dtype=torch.complex64), "positions: .* got torch.complex64"),
        (torch.zeros(B, L, 3), "x: expected a size in multiples of 6 for 3 axes, got 8"),
        ([[0] * L] * B, "positions: expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(positions, text):
    with pytest.raises(BadArgument, match=f"rotate: {text}"):
        rotate(example(), positions)


@pytest.mark.parametrize("make", [lambda: Attention(8, 2, rope=100.0), lambda: MLSTM(8, 2, rope=100.0)])
@pytest.mark.parametrize("shape", [(1, L), (B, 1), (L,), (B, L + 1), (B, L, 2)], ids=str)
def test_every_mixer_that_turns_checks_them(make, shape):
    mixer, x = make(), torch.zeros(B, L, 8)
    assert mixer(x, SeqContext(positions=torch.arange(L).expand(B, -1))).y.shape == x.shape
    with pytest.raises(BadArgument, match="positions"):
        mixer(x, SeqContext(positions=torch.zeros(shape)))
    with pytest.raises(BadArgument, match="positions"):
        mixer.step(x[:, 0], SeqContext(positions=torch.zeros(B, 2)), mixer.init_state(B))
