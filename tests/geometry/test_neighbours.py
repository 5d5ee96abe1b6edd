"""Neighbours against all distances sorted: every search, ties and cancellation; balls, interpolation, gathering."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statezoo.zoo.geometry import _search
from statezoo.zoo.geometry.neighbours import ball, gather, interpolate, knn

close = torch.testing.assert_close
KINDS = ("random", "lattice", "duplicates", "line", "one place", "huge", "tiny", "far away")


def cloud(kind, batch, size, width=3, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, size, width, generator=draw)
    if kind == "lattice":
        points = torch.randint(-3, 4, points.shape, generator=draw).float()
    if kind == "duplicates":
        points = points[:, torch.randint(max(1, size // 3), (size,), generator=draw)]
    if kind == "line":
        points = points[..., :1] * torch.linspace(-2, 1, width)
    if kind == "one place":
        points = points[:, :1].expand(-1, size, -1).contiguous()
    # squares that overflow to infinity, that underflow to zero, and differences with few bits
    points = points * {"huge": 1e22, "tiny": 1e-22}.get(kind, 1) + (1e4 if kind == "far away" else 0)
    return points.to(dtype)


def clusters():
    """With neighbours much nearer than the cloud is wide."""
    return cloud("random", 1, 400, 64) / 50 + cloud("random", 1, 4, 64, seed=1).repeat(1, 100, 1)


def plain(query, points, k, lengths=None):
    """The definition: all distances, by differences, sorted stably, a cloud at a time."""
    found = []
    for b, (q, p) in enumerate(zip(query, points, strict=True)):
        p = p if lengths is None else p[: lengths[b]]
        distance, index = _search.squared(q[:, None], p[None]).sort(dim=-1, stable=True)
        found.append((distance[:, :k], index[:, :k]))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def same(found, wanted):
    assert found[1].dtype == torch.int64
    return all(map(torch.equal, found, wanted))


@pytest.fixture
def searches(monkeypatch):
    """Names of the searches that were asked, in turn."""
    asked = []
    for name in ("_by_tree", "_by_products", "_among_all"):
        real = getattr(_search, name)
        spy = lambda *given, name=name, real=real: asked.append(name) or real(*given)  # noqa: E731
        monkeypatch.setattr(_search, name, spy)
    return asked


# k nearest neighbours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "width", "search"), [(18, 3, "_among_all"), (300, 3, "_by_tree"), (300, 5, "_by_products")]
)
def test_the_nearest_are_exact(size, width, search, kind, dtype, searches):
    points = cloud(kind, 2, size, width, dtype=dtype)
    query = torch.cat([points, cloud(kind, 2, 20, width, 1, dtype)], 1)
    lengths = torch.tensor([size, size // 2])
    for k in (1, 9):
        assert same(knn(query, points, k), plain(query, points, k))
        assert same(knn(query, points, k, lengths=lengths), plain(query, points, k, lengths))
    assert searches[0] == search


@settings(max_examples=40)
@given(st.data())
def test_any_search_of_any_cloud(data):
    size, width = data.draw(st.integers(1, 120)), data.draw(st.sampled_from([1, 2, 3, 4, 6, 64]))
    points = cloud(data.draw(st.sampled_from(KINDS)), 2, size, width, data.draw(st.integers(0, 999)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, size), min_size=2, max_size=2)))
    k = data.draw(st.integers(1, int(lengths.min())))
    before, _search.TREE_FROM = _search.TREE_FROM, data.draw(st.sampled_from([1, 1000]))
    try:
        assert same(knn(points, points, k, lengths=lengths), plain(points, points, k, lengths))
    finally:
        _search.TREE_FROM = before


def test_a_point_is_its_own_nearest_at_distance_zero():
    for width in (3, 64):  # where |q|^2 - 2 q'p + |p|^2 would be some 1000 off
        points = cloud("random", 1, 400, width) + 1e5
        distance, index = knn(points, points, 2)
        assert index[0, :, 0].tolist() == list(range(400)) and not distance[..., 0].any() and distance[..., 1].all()


def test_more_ties_than_candidates_are_searched_again(searches):
    grid = torch.cartesian_prod(*[torch.arange(8.0)] * 3)[None]
    assert same(knn(grid, grid, 2), plain(grid, grid, 2))  # 3 to 6 neighbours at the same distance: enough candidates
    assert searches == ["_by_tree"]
    assert same(knn(grid, grid, 10), plain(grid, grid, 10))  # 12 at the second distance
    assert searches == ["_by_tree"] * 3
    same_place = cloud("one place", 1, 300)
    assert same(knn(same_place, same_place, 10), plain(same_place, same_place, 10))
    assert searches == ["_by_tree"] * 5 + ["_among_all"]


@pytest.mark.parametrize("setting", ["highest", "high", "medium", "newer", "autocast"])
def test_whatever_precision_products_have(setting):
    points = clusters()
    wanted = plain(points, points, 10)
    try:
        if setting == "newer" and hasattr(torch.backends.mkldnn.matmul, "fp32_precision"):
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        elif setting in ("high", "medium"):
            torch.set_float32_matmul_precision(setting)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            assert same(knn(points, points, 10), wanted)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_products_in_coarse_precision_are_searched_again(setting, monkeypatch, searches):
    """As TF32 and bfloat16 round on a GPU: the bound must cover what they lose."""
    bits = {"high": 13, "medium": 16}[setting]  # of the fraction that are cut off
    real = torch.baddbmm

    def product(sums, left, right, alpha):
        cut = ((t.contiguous().view(torch.int32) >> bits << bits).view(torch.float32) for t in (left, right))
        return real(sums, *cut, alpha=alpha)

    monkeypatch.setattr(torch, "baddbmm", product)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    points = clusters()
    assert same(knn(points, points, 10), plain(points, points, 10))
    assert len(searches) > 1


@pytest.mark.parametrize("width", [3, 6])
def test_chunks_change_nothing(width, monkeypatch):
    points = cloud("duplicates", 2, 300, width)
    wanted = [knn(points, points, 5), ball(points, points, 1.0, 5)]
    monkeypatch.setattr(_search, "ELEMENTS", 5000)
    assert same(knn(points, points, 5), wanted[0])
    assert torch.equal(ball(points, points, 1.0, 5), wanted[1])


def test_memory_is_that_of_a_chunk():
    """Shapes alone: no tensor of products is larger, whatever the number of queries."""
    parts = _search.chunks(torch.empty(2, 10_000, 64, device="meta"), torch.empty(2, 1000, 64, device="meta"))
    assert sum(part.shape[1] for part in parts) == 10_000
    assert max(part.shape[1] for part in parts) * 2 * 1000 * 64 <= _search.ELEMENTS


def test_the_nearest_of_fewer_are_a_prefix_and_batches_do_not_mix():
    points = cloud("lattice", 3, 500)
    distance, index = knn(points, points, 32)
    assert same(knn(points, points, 16), (distance[..., :16], index[..., :16]))
    for b in range(3):
        assert same(knn(points[b : b + 1], points[b : b + 1], 32), (distance[b : b + 1], index[b : b + 1]))


def test_what_is_padded_is_ignored():
    points, query = cloud("random", 2, 300), cloud("random", 2, 9, seed=1)
    lengths, query_lengths = torch.tensor([300, 40]), torch.tensor([4, 9], dtype=torch.int32)
    wanted = plain(query, points, 5, lengths)
    points[1, 40:], query[0, 4:] = torch.nan, torch.inf
    found = knn(query, points, 5, lengths=lengths, query_lengths=query_lengths)
    for b in range(2):
        valid = slice(0, int(query_lengths[b]))
        assert same([part[b, valid] for part in found], [part[b, valid] for part in wanted])
    assert found[1].max() < 300 and found[1][1].max() < 40


def test_dtypes():
    points = cloud("random", 1, 300)
    for dtype, result in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        narrow = points.to(dtype)
        distance, index = knn(narrow, narrow, 4)
        assert distance.dtype == result and same((distance, index), plain(narrow.to(result), narrow.to(result), 4))
    assert knn(points.double(), points, 4)[0].dtype == torch.float64
    assert not knn(points.requires_grad_(), points, 4)[0].requires_grad


def test_traced():
    points, query = cloud("random", 2, 300), cloud("random", 2, 20, seed=1)

    class Neighbours(torch.nn.Module):
        def forward(self, query, points):
            return (*knn(query, points, 5), ball(query, points, 0.5, 6), interpolate(points, points, query))

    wanted = Neighbours()(query, points)
    compiled = torch.compile(Neighbours(), fullgraph=True, backend="aot_eager")(query, points)
    exported = torch.export.export(Neighbours(), (query, points)).module()(query, points)
    for found in (compiled, exported):
        for ours, theirs in zip(found, wanted, strict=True):
            close(ours, theirs)


# balls --------------------------------------------------------------------------------------------------------------


def plain_ball(query, points, radius, k, by_distance, lengths):
    rows = []
    for b in range(len(query)):
        for q in query[b]:
            distance = _search.squared(q, points[b, : lengths[b]])
            order = distance.sort(stable=True).indices.tolist()
            inside = [i for i in (order if by_distance else range(len(order))) if distance[i] < radius * radius]
            row = inside[:k] or order[:1]
            rows.append(row + row[:1] * (k - len(row)))
    return torch.tensor(rows).view(*query.shape[:2], k)


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("radius", [1e-3, 0.5, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("kind", ["random", "lattice", "duplicates", "one place"])
def test_balls(kind, radius, by_distance):
    points, query = cloud(kind, 2, 60), cloud(kind, 2, 12, seed=1)
    lengths = torch.tensor([60, 7])
    for k in (1, 5, 20, 70):  # more than a cloud has, more than there are stored
        found = ball(query, points, radius, k, sorted=by_distance, lengths=lengths)
        assert torch.equal(found, plain_ball(query, points, radius, k, by_distance, lengths))


def test_sorted_balls_by_the_tree():
    points, lengths = cloud("random", 2, 400), torch.tensor([400, 12])
    query = points[:, :30]
    found = ball(query, points, 0.6, 16, sorted=True, lengths=lengths)
    assert torch.equal(found, plain_ball(query, points, 0.6, 16, True, lengths))


def test_the_border_is_outside():
    points = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [1, 0, 0]]])
    for by_distance in (False, True):
        assert ball(points[:, :1], points, 2.0, 3, sorted=by_distance).tolist() == [[[0, 2, 0]]]


# interpolation and gathering ----------------------------------------------------------------------------------------


def test_interpolation_by_inverse_distances():
    values, points, query = (cloud("random", 2, *shape, dtype=torch.float64) for shape in ((40, 7), (40, 3), (9, 3)))
    query = query + 0.1
    lengths = torch.tensor([40, 6])
    found = interpolate(values, points, query, lengths=lengths)
    for b in range(2):
        for m in range(9):
            distance = (query[b, m] - points[b, : lengths[b]]).norm(dim=-1)
            nearest = distance.argsort()[:3]
            weight = 1 / (distance[nearest] + 1e-8)
            close(found[b, m], (weight / weight.sum()) @ values[b, nearest])
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: interpolate(v, points, query, 4), values)


def test_interpolation_at_the_points_gives_their_values():
    values, points = cloud("random", 1, 300, 4), cloud("random", 1, 300)
    close(interpolate(values, points, points), values, rtol=1e-4, atol=1e-5)
    assert interpolate(values.bfloat16(), points, points).dtype == torch.bfloat16
    place = torch.ones(1, 5, 3)  # where all distances are zero: the mean of the first three
    close(interpolate(values[:, :5], place, place)[0, 0], values[0, :3].mean(0))


def test_gather():
    values = cloud("random", 2, 5, 3, dtype=torch.float64).requires_grad_()
    index = torch.tensor([[[0, 4], [4, 4], [2, 1]], [[1, 1], [0, 3], [3, 3]]])
    found = gather(values, index)
    assert found.shape == (2, 3, 2, 3)
    for b, m, k in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        assert torch.equal(found[b, m, k], values[b, index[b, m, k]])
    assert gather(values, torch.tensor([3, 1], dtype=torch.int32)).shape == (2, 3)
    assert gather(values, index[:, :0]).shape == (2, 0, 2, 3)
    assert torch.autograd.gradcheck(lambda v: gather(v, index), values)
    assert torch.autograd.gradgradcheck(lambda v: gather(v, index), values)


def test_the_backward_pass_of_gather_gives_the_same_bits_on_any_number_of_threads():
    values = cloud("random", 2, 50, 64).requires_grad_()
    index = torch.randint(50, (2, 400, 16), generator=torch.Generator().manual_seed(0))
    weight = cloud("random", 2 * 400, 16, 64, seed=2).view(2, 400, 16, 64)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 2, 2):
            torch.set_num_threads(number)
            found.append(torch.autograd.grad((gather(values, index) * weight).sum(), values)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


# devices and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_on_a_gpu(kind, width, precision):
    points, lengths = cloud(kind, 2, 1000, width).cuda(), torch.tensor([1000, 300]).cuda()
    torch.set_float32_matmul_precision(precision)
    try:
        distance, index = knn(points, points, 12, lengths=lengths)
    finally:
        torch.set_float32_matmul_precision("highest")
    close(distance, plain(points, points, 12, lengths)[0], rtol=1e-6, atol=0.0)
    assert torch.equal(distance, _search.squared(points[:, :, None], gather(points, index)))
    if width == 3:  # the order of a sum over 64 may depend on the shape, and so may ties by rounding
        assert same((distance, index), plain(points, points, 12, lengths))
        for by_distance in (False, True):
            found = ball(points[:, :20], points, 0.5, 40, sorted=by_distance, lengths=lengths)
            points_, query = points.cpu(), points[:, :20].cpu()
            assert torch.equal(found.cpu(), plain_ball(query, points_, 0.5, 40, by_distance, lengths))


@pytest.mark.slow
def test_a_million_points():
    points = cloud("random", 1, 1_000_000)
    query = points[:, :: 1_000_000 // 64]
    assert same(knn(query, points, 16), plain(query, points, 16))


# what is refused ----------------------------------------------------------------------------------------------------

POINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: knn(POINTS, POINTS, 6), "knn: k: expected at most the 5 points of cloud 0, got 6; ask for fewer"),
        (lambda: knn(POINTS, POINTS, 3, lengths=torch.tensor([5, 2])), "at most the 2 points of cloud 1, got 3"),
        (lambda: knn(POINTS, POINTS, 0), "knn: k: expected a whole number from 1 up, got 0"),
        (lambda: knn(POINTS[..., :2], POINTS, 1), r"knn: query: expected \(B, N, 3\), got \(2, 5, 2\)"),
        (lambda: knn(POINTS[:1], POINTS, 1), "knn: query: expected the 2 clouds of points, got 1"),
        (lambda: knn(POINTS, POINTS, 1, query_lengths=torch.tensor([6, 1])), "query_lengths: expected 1 to 5 .* got 6"),
        (lambda: knn(POINTS, POINTS.long(), 1), "knn: points: expected a floating dtype, got torch.int64"),
        (lambda: knn(POINTS, POINTS / 0, 1), "knn: points: expected finite coordinates, got nan in cloud 0, point 0"),
        (lambda: knn(POINTS - torch.inf, POINTS, 1), "knn: query: expected finite .* got -inf in cloud 0, point 0"),
        (lambda: ball(POINTS, POINTS, 0.0, 1), "ball: radius: expected a positive number, got 0.0"),
        (lambda: ball(POINTS, POINTS, float("inf"), 1), "ball: radius: expected a positive number, got inf"),
        (lambda: ball(POINTS, POINTS, 1.0, 0), "ball: k: expected a whole number from 1 up, got 0"),
        (lambda: ball(POINTS, POINTS / 0, 1.0, 1), "ball: points: expected finite coordinates, got nan"),
        (lambda: interpolate(POINTS[:, :2], POINTS[:, :2], POINTS), "at most the 2 points of cloud 0, got 3"),
        (lambda: interpolate(POINTS[:, :4], POINTS, POINTS), r"values: expected \(2, 5, C\), got \(2, 4, 3\)"),
        (lambda: gather(POINTS, torch.tensor([[5], [0]])), "gather: index: expected 0 to 4, got 5"),
        (lambda: gather(POINTS, torch.tensor([[-1], [0]])), "gather: index: expected 0 to 4, got -1"),
        (lambda: gather(POINTS, torch.tensor([0])), r"gather: index: expected \(2, ...\), got \(1,\)"),
        (lambda: gather(POINTS, POINTS), "gather: index: expected integers, got torch.float32"),
        (lambda: gather(POINTS[0], torch.tensor([0])), r"gather: values: expected \(B, N, C\), got \(5, 3\)"),
    ],
)
def test_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
