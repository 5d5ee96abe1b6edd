"""Layouts: padded to packed and back, with gradients; torch_geometric's Data and Batch in and out."""

import importlib.util
import sys

import pytest
import torch
from statezoo.zoo.errors import ZooError
from statezoo.zoo.geometry.fps import farthest_points
from statezoo.zoo.geometry.layout import from_data, pack, pad, to_data
from statezoo.zoo.geometry.neighbours import ball, gather, interpolate, knn

LENGTHS = torch.tensor([4, 1, 3])


def clouds(*tail, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    padded = torch.randn(3, 4, *tail, generator=draw).to(dtype)
    for cloud, length in enumerate(LENGTHS):
        padded[cloud, length:] = 0
    return padded


@pytest.mark.parametrize("tail", [(), (3,), (2, 5)])
def test_there_and_back(tail):
    padded = clouds(*tail)
    packed, offsets = pack(padded, LENGTHS.int())
    assert offsets.tolist() == [4, 5, 8] and offsets.dtype == torch.int64
    assert torch.equal(packed, torch.cat([padded[0], padded[1, :1], padded[2, :3]]))
    again, lengths = pad(packed, offsets.int())
    assert torch.equal(again, padded) and torch.equal(lengths, LENGTHS)


def test_padding_is_as_wide_as_the_largest_cloud_and_filled():
    padded, lengths = pad(torch.arange(5), torch.tensor([2, 5]), fill=-1)
    assert padded.tolist() == [[0, 1, -1], [2, 3, 4]] and lengths.tolist() == [2, 3]
    assert pack(torch.arange(12).view(3, 4), LENGTHS)[0].tolist() == [0, 1, 2, 3, 4, 8, 9, 10]


def test_gradients():
    padded = clouds(2, dtype=torch.float64).requires_grad_()
    packed = pack(padded, LENGTHS)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: pack(t, LENGTHS)[0], padded)
    assert torch.autograd.gradcheck(lambda t: pad(t, LENGTHS.cumsum(0))[0], packed)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: pack(torch.zeros(3), LENGTHS), r"pack: padded: expected \(B, N, ...\), got \(3,\)"),
        (lambda: pack(torch.zeros(3, 3), LENGTHS), "pack: lengths: expected 1 to 3 points in every cloud, got 4 in c"),
        (lambda: pack(torch.zeros(2, 4), LENGTHS), r"pack: lengths: expected \(2,\), got \(3,\)"),
        (lambda: pad(torch.zeros(5, 3), torch.tensor([2, 4])), r"the last 5, got \[2, 4\]; they are the cumulative"),
        (lambda: pad(torch.zeros(5, 3), torch.tensor([0, 5])), "pad: offsets, as lengths: .* got 0 in cloud 0"),
        (lambda: pad(torch.zeros(5, 3), torch.tensor([3, 2, 5])), "pad: offsets, as lengths: .* got -1 in cloud 1"),
        (lambda: pad(torch.zeros(5, 3), torch.tensor([2.0, 5.0])), "pad: offsets: expected integers"),
        (lambda: pad(torch.zeros(()), torch.tensor([0])), "pad: offsets: expected the ends of the clouds"),
    ],
)
def test_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


# torch_geometric ----------------------------------------------------------------------------------------------------

geometric = pytest.mark.skipif(
    importlib.util.find_spec("torch_geometric") is None, reason="torch_geometric is not installed"
)


@geometric
def test_batch_in_and_out():
    given = {"pos": clouds(3), "x": clouds(6), "y": torch.tensor([7, 8, 9]), "z": clouds(), "pose": torch.eye(3)}
    batch = to_data(given, LENGTHS)
    assert (batch.num_graphs, batch.num_nodes, batch.ptr.tolist()) == (3, 8, [0, 4, 5, 8])
    assert batch.x.shape == (8, 6) and batch.z.shape == (8,) and batch.y.tolist() == [7, 8, 9]
    assert batch[1].pos.shape == (1, 3) and batch[1].y.tolist() == [8]
    found, lengths = from_data(batch)
    assert torch.equal(lengths, LENGTHS) and found.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor), name


@geometric
def test_a_batch_of_their_own_and_one_data():
    from torch_geometric.data import Batch, Data

    parts = [Data(pos=torch.rand(n, 3), y=torch.tensor([n]), name="left") for n in (5, 2)]
    found, lengths = from_data(Batch.from_data_list(parts))
    assert lengths.tolist() == [5, 2] and found["y"].tolist() == [5, 2] and "name" not in found
    assert torch.equal(found["pos"][1, :2], parts[1].pos) and not found["pos"][1, 2:].any()
    found, lengths = from_data(parts[0])
    assert lengths.tolist() == [5] and torch.equal(found["pos"], parts[0].pos[None])
    assert to_data({"pos": parts[0].pos[None]})[0].pos.shape == (5, 3)


@geometric
def test_gradients_pass_through():
    pos = clouds(3).requires_grad_()
    from_data(to_data({"pos": pos}, LENGTHS))[0]["pos"].sum().backward()
    assert pos.grad.sum(-1).tolist() == [[3, 3, 3, 3], [3, 0, 0, 0], [3, 3, 3, 0]]


@geometric
def test_refused_by_torch_geometric():
    from torch_geometric.data import Data

    with pytest.raises(ValueError, match="to_data: clouds: expected 'pos' among the attributes, got x"):
        to_data({"x": clouds(3)})
    with pytest.raises(ValueError, match=r"to_data: y: expected \(3, ...\), got \(2,\)"):
        to_data({"pos": clouds(3), "y": torch.zeros(2)})
    with pytest.raises(ValueError, match="to_data: lengths: expected 1 to 4 .* got 0 in cloud 2"):
        to_data({"pos": clouds(3)}, torch.tensor([4, 1, 0]))
    with pytest.raises(ValueError, match="from_data: data: expected positions in `pos`, got none"):
        from_data(Data(x=torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="from_data: data.batch: expected numbers that never fall"):
        from_data(Data(pos=torch.zeros(3, 3), batch=torch.tensor([0, 1, 0])))


def test_without_torch_geometric_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    for call in (lambda: to_data({"pos": clouds(3)}), lambda: from_data(None)):
        with pytest.raises(ZooError, match="pip install torch-geometric"):
            call()


@geometric
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_cloud_is_refused_not_dropped(empty):
    from torch_geometric.data import Batch, Data

    sizes = [3, 3, 3]
    sizes[empty] = 0
    batch = Batch.from_data_list([Data(pos=torch.zeros(size, 3), y=torch.tensor([0])) for size in sizes])
    with pytest.raises(ValueError, match=f"cloud {empty} has no points; leave it out"):
        from_data(batch)


def test_packed_clouds_go_through_padded_operations():
    """Packed in, packed out: what comes of all clouds at once is what comes of each alone."""
    draw = torch.Generator().manual_seed(0)
    packed, offsets = torch.randn(30, 3, generator=draw), torch.tensor([9, 20, 30])
    padded, lengths = pad(packed, offsets)
    picks = farthest_points(padded, 5, lengths)
    centres = gather(padded, picks)
    near = knn(centres, padded, 4, lengths=lengths)[1]
    inside = ball(centres, padded, 0.8, 4, lengths=lengths)
    spread, ends = pack(interpolate(centres, centres, padded, query_lengths=lengths), lengths)
    assert torch.equal(ends, offsets)
    for k, (start, end) in enumerate(zip([0, 9, 20], offsets.tolist(), strict=True)):
        cloud = packed[None, start:end]
        assert torch.equal(farthest_points(cloud, 5)[0], picks[k])
        assert torch.equal(knn(centres[k : k + 1], cloud, 4)[1][0], near[k])
        assert torch.equal(ball(centres[k : k + 1], cloud, 0.8, 4)[0], inside[k])
        torch.testing.assert_close(interpolate(*2 * [centres[k : k + 1]], cloud)[0], spread[start:end])
