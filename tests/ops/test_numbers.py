"""Whole numbers of every dtype mean the same to every op; a batch of no sequences is refused in words."""

import pytest
import torch
from statezoo.zoo.errors import BadArgument
from statezoo.zoo.mixers import create_mixer
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.wrappers import Bidirectional
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.ops.causal_conv1d import causal_conv1d
from statezoo.zoo.ops.checks import expect_segments
from statezoo.zoo.ops.fft_conv import fft_conv
from statezoo.zoo.ops.mlstm import mlstm, mlstm_matrix
from statezoo.zoo.ops.s4d_kernel import final_state, s4d_scan
from statezoo.zoo.ops.selective_scan import selective_scan
from statezoo.zoo.ops.slstm import slstm
from statezoo.zoo.ops.ssd import ssd

KINDS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
L, H, D, N = 7, 2, 3, 2


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def scan(batch, **more):
    return selective_scan(draw(batch, L, D), draw(batch, L, D).sigmoid(), -draw(D, N).exp(), draw(batch, L, N),
                          draw(batch, L, N), **more)  # fmt: skip


def dual(batch, **more):
    x, g, B = draw(batch, L, H, D), -draw(batch, L, H).exp(), draw(batch, L, 1, N)
    return ssd(x, g, B, B + 1, chunk=3, **more)


def matrix_memory(batch, **more):
    h, state = mlstm(*(draw(batch, L, H, D) + i for i in range(3)), draw(batch, L, H), draw(batch, L, H) + 1, **more)
    return h, *state.values()


def scalar_memory(batch, **more):
    h, state = slstm(draw(batch, L, 4, H, D), draw(H, D, 4, D), draw(4, H, D), **more)
    return h, *state.values()


def conv(batch, **more):
    return causal_conv1d(draw(batch, L, D), draw(D, 4), **more)


def diagonal(batch, **more):
    log_abar = torch.complex(-draw(D, N).exp(), draw(D, N))
    return s4d_scan(draw(batch, L, D), log_abar, log_abar, log_abar, **more)


OPS = {"scan": scan, "dual": dual, "matrix": matrix_memory, "scalar": scalar_memory, "conv": conv, "diagonal": diagonal}
REVERSIBLE = ("scan", "dual", "matrix", "scalar")
every = pytest.mark.parametrize("op", list(OPS))
# differences of 0, 1, and of more than half of what a signed byte holds
SEGMENTS = torch.tensor([[0, 0, 1, 1, 126, 127, 127], [0, 0, 0, 0, 0, 0, 1]])


@every
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_segments_of_every_dtype(op, kind, backend):
    for more in ({}, {"reverse": True})[: 1 + (op in REVERSIBLE)]:
        with use_backend(backend):
            found = OPS[op](2, segments=SEGMENTS.to(kind), **more)
            wanted = OPS[op](2, segments=SEGMENTS, **more)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert not torch.equal(found[0], OPS[op](2, **more)[0])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_both_directions_of_one_matrix_too(kind):
    found, wanted = (matrix_memory(2, segments=s, bidirectional=True)[0] for s in (SEGMENTS.to(kind), SEGMENTS))
    assert torch.equal(found, wanted)
    gates = draw(2, L, H)
    found, wanted = (mlstm_matrix(draw(2, L, H, D), draw(2, L, H, D), gates, gates, segments=s)
                     for s in (SEGMENTS.to(kind), SEGMENTS))  # fmt: skip
    assert torch.equal(found, wanted)


@every
def test_segments_at_the_ends_of_their_dtypes(op):
    """Where a negation or a difference would wrap around."""
    wanted = OPS[op](2, segments=(SEGMENTS > 100).long())
    for kind in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32):
        low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
        numbers = torch.where(SEGMENTS > 100, high, low).to(kind)
        for more in ({}, {"reverse": True})[: 1 + (op in REVERSIBLE)]:
            found = OPS[op](2, segments=numbers, **more)
            other = OPS[op](2, segments=(SEGMENTS > 100).long(), **more) if more else wanted
            assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True)), (kind, more)


@pytest.mark.parametrize("name", ["s6", "ssd", "s4d", "mlstm", "slstm", "attention", "short_conv"])
@pytest.mark.parametrize("how", ["one way", "both ways", "native"])
def test_mixers_take_them_in_either_direction(name, how):
    if how == "native" and name not in ("s4d", "mlstm"):
        pytest.skip("has no form of both directions")
    torch.manual_seed(0)
    more = {"head_dim": 4} if name == "ssd" else {}
    make = lambda: create_mixer({"name": name, **more, **({"bidirectional": True} if how == "native" else {})}, 8)  # noqa: E731
    mixer = Bidirectional(make) if how == "both ways" else make()
    x = draw(2, L, 8).float()
    wanted = mixer(x, SeqContext(segments=SEGMENTS)).y
    for kind in KINDS:
        assert torch.equal(mixer(x, SeqContext(segments=SEGMENTS.to(kind))).y, wanted), kind
    ends = torch.where(SEGMENTS > 100, torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min)
    found, wanted = (mixer(x, SeqContext(segments=s)).y for s in (ends, (SEGMENTS > 100).long()))
    assert torch.equal(found, wanted)


def test_numbers_beyond_int64_are_refused():
    numbers = torch.tensor([[0] * L]).to(torch.uint64)
    numbers[0, -1] = 2**63 + 5
    with pytest.raises(BadArgument, match="segments: expected"):
        expect_segments("op", numbers, 1, L)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("op", ["conv", "diagonal"])
def test_lengths_of_every_dtype(op, kind):
    lengths = torch.tensor([7, 3])
    for one, other in zip(OPS[op](2, lengths=lengths.to(kind)), OPS[op](2, lengths=lengths), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("op", ["conv", "diagonal"])
@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (torch.tensor([7, 8]), r"lengths: expected 0 to 7, got \[7, 8\]"),
        (torch.tensor([-1, 2]), r"lengths: expected 0 to 7, got \[-1, 2\]"),
        (torch.tensor([1.0, 2.0]), "lengths: expected integers, got torch.float32"),
        (torch.tensor([True, False]), "lengths: expected integers, got torch.bool"),
    ],
)
def test_wrong_lengths(op, lengths, text):
    with pytest.raises(BadArgument, match=text):
        OPS[op](2, lengths=lengths)


NO_SEQUENCES = {
    **OPS,
    "matrix weights": lambda batch: mlstm_matrix(*[draw(batch, L, H, D)] * 2, *[draw(batch, L, H)] * 2),
    "long conv": lambda batch: fft_conv(draw(batch, L, D), draw(D, L)),
    "final state": lambda batch: final_state(draw(batch, L, D), *[torch.complex(-draw(D, N).exp(), draw(D, N))] * 2),
}


@pytest.mark.parametrize("op", list(NO_SEQUENCES))
def test_a_batch_of_no_sequences_is_refused_in_words(op):
    with pytest.raises(BadArgument, match=r"expected \(B, L.*got \(0, 7.*; no size may be 0"):
        NO_SEQUENCES[op](0)
    NO_SEQUENCES[op](1)


@pytest.mark.parametrize("name", ["s6", "ssd", "s4d", "mlstm", "slstm", "attention", "short_conv", "identity"])
def test_mixers_refuse_it_too(name):
    mixer = create_mixer({"name": name, **({"head_dim": 4} if name == "ssd" else {})}, 8)
    for call in (lambda: mixer(torch.zeros(0, 5, 8)), lambda: mixer.step(torch.zeros(0, 8), None, mixer.init_state(0))):
        with pytest.raises(BadArgument, match=r"expected \(B, .*got \(0, .*; no size may be 0"):
            call()
    assert {t.shape[0] for t in mixer.init_state(0).values()} <= {0}
