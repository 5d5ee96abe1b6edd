"""Scan orders are permutations with their inverses; curves equal naive definitions, bit by bit."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from statezoo.zoo import orders
from statezoo.zoo.orders import Order

# measured from Pointcept's serialization at depth 4
POINTS = torch.tensor([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (2, 0, 0), (3, 5, 7)])
CODES = {
    ("z", False): [0, 4, 2, 1, 7, 32, 239],
    ("z", True): [0, 2, 4, 1, 7, 16, 351],
    ("hilbert", False): [0, 7, 3, 1, 5, 8, 391],
    ("hilbert", True): [0, 3, 7, 1, 5, 60, 305],
}
CODE = {"z": orders.z_code, "hilbert": orders.hilbert_code}
BATCHED = {"z": orders.z_order, "hilbert": orders.hilbert}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def check(path: Order, *shape: int) -> None:
    """`path` holds permutations, and gathering by the inverse restores what gathering by the order gave."""
    assert path.order.dtype == path.inverse.dtype == torch.int64
    assert path.order.shape == path.inverse.shape == shape
    steps = torch.arange(shape[-1]).expand(shape)
    assert torch.equal(path.order.sort(-1).values, steps)
    x = torch.randn(shape, generator=generator(0))
    assert torch.equal(x.take_along_dim(path.order, -1).take_along_dim(path.inverse, -1), x)


def naive_interleave(axes, depth):
    code = 0
    for bit in reversed(range(depth)):
        for axis in axes:
            code = code << 1 | (axis >> bit & 1)
    return code


def naive_hilbert(axes, depth):
    """AxesToTranspose of Skilling (2004), scalar, and the interleaved bits of its result."""
    x, n = list(axes), len(axes)
    q = 1 << (depth - 1)
    while q > 1:
        p = q - 1
        for i in range(n):
            if x[i] & q:
                x[0] ^= p
            else:
                t = (x[0] ^ x[i]) & p
                x[0] ^= t
                x[i] ^= t
        q >>= 1
    for i in range(1, n):
        x[i] ^= x[i - 1]
    t, q = 0, 1 << (depth - 1)
    while q > 1:
        if x[n - 1] & q:
            t ^= q - 1
        q >>= 1
    return naive_interleave([v ^ t for v in x], depth)


NAIVE = {"z": naive_interleave, "hilbert": naive_hilbert}


def every_cell(axes, depth):
    side = torch.arange(1 << depth)
    return torch.cartesian_prod(*[side] * axes)


# grids

sides = st.integers(1, 9)


@given(sides, sides)
def test_orders_of_a_grid_are_permutations(height, width):
    length = height * width
    for transpose in (False, True):
        check(orders.raster(height, width, transpose=transpose), length)
        for curve in ("z", "hilbert"):
            check(orders.grid_curve(height, width, curve, transpose=transpose), length)
    for scan in (orders.cross_scan, orders.continuous_scan):
        path = scan(height, width)
        check(path, 4, length)
        assert torch.equal(path.order[2:], path.order[:2].flip(-1)), "the last two are the first two backwards"


def test_raster_and_cross_scan_by_hand():
    assert orders.raster(2, 3).order.tolist() == [0, 1, 2, 3, 4, 5]
    assert orders.raster(2, 3, transpose=True).order.tolist() == [0, 3, 1, 4, 2, 5]
    assert orders.cross_scan(2, 3).order.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_continuous_scan_and_its_directions_by_hand():
    path = orders.continuous_scan(3, 3).order
    assert path.tolist() == [
        [0, 1, 2, 5, 4, 3, 6, 7, 8],
        [0, 3, 6, 7, 4, 1, 2, 5, 8],
        [8, 7, 6, 3, 4, 5, 2, 1, 0],
        [8, 5, 2, 1, 4, 7, 6, 3, 0],
    ]
    assert orders.directions(path, 3).tolist() == [
        [0, 1, 1, 4, 2, 2, 4, 1, 1],
        [0, 4, 4, 1, 3, 3, 1, 4, 4],
        [0, 2, 2, 3, 1, 1, 3, 2, 2],
        [0, 3, 3, 2, 4, 4, 2, 3, 3],
    ]


@given(sides, sides)
def test_continuous_scan_steps_to_neighbours_as_its_directions_say(height, width):
    path = orders.continuous_scan(height, width).order
    codes = orders.directions(path, width)
    assert codes.shape == path.shape and codes.dtype == torch.int64
    assert not codes[:, 0].any()
    move = torch.tensor([(0, 0), (0, 1), (0, -1), (-1, 0), (1, 0)])[codes[:, 1:]]
    assert (codes[:, 1:] > 0).all()
    cells = torch.stack([path // width, path % width], -1)
    assert torch.equal(cells[:, :-1] + move, cells[:, 1:])


def test_directions_are_zero_at_jumps():
    assert orders.directions(orders.raster(2, 3).order, 3).tolist() == [0, 1, 1, 0, 1, 1]
    assert orders.directions(orders.raster(3, 1).order, 1).tolist() == [0, 4, 4], "one column: the raster goes down"
    assert orders.directions(torch.tensor([0, 2, 8, 4, 0]), 3).tolist() == [0, 0, 0, 0, 0], "two cells, or diagonal"


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_grid_curve_skips_the_cells_outside(curve, transpose):
    height, width = 5, 11
    whole = orders.grid_curve(16, 16, curve, transpose=transpose).order.tolist()
    inside = [divmod(cell, 16) for cell in whole if cell // 16 < height and cell % 16 < width]
    path = orders.grid_curve(height, width, curve, transpose=transpose).order.tolist()
    assert path == [r * width + c for r, c in inside]
    turned = orders.grid_curve(width, height, curve, transpose=not transpose).order.tolist()
    assert [divmod(cell, height)[::-1] for cell in turned] == inside


def test_grid_curve_by_hand():
    assert orders.grid_curve(2, 2, "z").order.tolist() == [0, 1, 2, 3]
    assert orders.grid_curve(2, 2, "hilbert").order.tolist() == [0, 1, 3, 2]
    steps = orders.directions(orders.grid_curve(8, 8, "hilbert").order, 8)
    assert (steps[1:] > 0).all(), "without jumps where the sides are one power of two"


# flips


def test_flip_keeps_the_padded_tail():
    assert orders.flip(4).order.tolist() == [3, 2, 1, 0]
    path = orders.flip(4, torch.tensor([4, 2, 1, 0]))
    assert path.order.tolist() == [[3, 2, 1, 0], [1, 0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


@given(st.integers(0, 9), st.data())
def test_flip_invert_and_reverse_are_permutations(length, data):
    check(orders.flip(length), length)
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4)))
    batch = len(lengths)
    check(orders.flip(length, lengths), batch, length)
    shuffled = torch.stack([torch.randperm(length, generator=generator(i)) for i in range(batch)])
    path = Order(shuffled, orders.invert(shuffled))
    check(path, batch, length)
    check(orders.reverse(path), batch, length)
    assert torch.equal(orders.reverse(path).order, shuffled.flip(-1))
    points = torch.randn(batch, length, 2, generator=generator(1))
    path = orders.by_coordinate(points, 0, lengths=lengths)
    back = orders.reverse(path, lengths)
    check(back, batch, length)
    for one, other, n in zip(back.order.tolist(), path.order.tolist(), lengths.tolist(), strict=True):
        assert one == other[:n][::-1] + other[n:]


def test_invert_takes_strided_and_expanded_orders():
    order = torch.stack([torch.randperm(6, generator=generator(i)) for i in range(3)])
    assert torch.equal(orders.invert(order.t().contiguous().t()), orders.invert(order))
    assert torch.equal(orders.invert(order[0].expand(3, 6)), orders.invert(order[0]).expand(3, 6))


# curves


@pytest.mark.parametrize("curve, transpose", CODES)
def test_reference_codes(curve, transpose):
    assert CODE[curve](POINTS, 4, transpose=transpose).tolist() == CODES[curve, transpose]


def test_the_curve_of_hilbert_sort():
    """Golden: github.com/rz4/HilbertSort of 4 and of 32 bins an axis; a bijection in unit steps at any depth."""
    cells = torch.cartesian_prod(*3 * [torch.arange(4)])
    path = cells[orders.hilbert_sort_code(cells, 2).argsort()]
    assert path[:8].tolist() == [
        [0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0],
    ]  # fmt: skip
    assert orders.hilbert_sort_code(POINTS, 5).tolist() == [0, 7, 1, 3, 5, 8, 407]
    for depth in (1, 2, 3, 4):
        cells = torch.cartesian_prod(*3 * [torch.arange(2**depth)])
        code = orders.hilbert_sort_code(cells, depth)
        assert torch.equal(code.sort().values, torch.arange(8**depth))
        assert bool((cells[code.argsort()].diff(dim=0).abs().sum(1) == 1).all())
    order, inverse = orders.hilbert_sort(cells[None].flip(1), 4)
    assert torch.equal(cells[None].flip(1)[0, order[0]], cells[code.argsort()])
    assert torch.equal(order[0, inverse[0]], torch.arange(len(cells)))


def test_hilbert_codes_depend_on_the_depth():
    assert orders.hilbert_code(POINTS, 3).tolist() == [0, 1, 7, 3, 5, 30, 177]
    assert orders.hilbert_code(POINTS, 5).tolist() == [0, 3, 1, 7, 5, 60, 293]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("curve", ["z", "hilbert"])
@given(data=st.data())
def test_codes_equal_naive_loops_at_every_depth(curve, transpose, data):
    axes = data.draw(st.sampled_from([2, 3]))
    depth = data.draw(st.integers(1, orders.MAX_DEPTH[axes]))
    cell = st.tuples(*[st.integers(0, (1 << depth) - 1)] * axes)
    cells = [(0,) * axes, ((1 << depth) - 1,) * axes, *data.draw(st.lists(cell, max_size=8))]
    codes = CODE[curve](torch.tensor(cells), depth, transpose=transpose)
    assert codes.dtype == torch.int64
    swapped = [(y, x, *z) for x, y, *z in cells] if transpose else cells
    assert codes.tolist() == [NAIVE[curve](axis, depth) for axis in swapped]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_codes_are_bijections_and_hilbert_takes_unit_steps(axes, depth):
    cells = every_cell(axes, depth)
    for code in CODE.values():
        assert code(cells, depth).sort().values.tolist() == list(range(len(cells)))
    path = cells[orders.hilbert_code(cells, depth).argsort()]
    assert (path.diff(dim=0).abs().sum(-1) == 1).all()
    assert path[0].tolist() == [0] * axes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_codes_take_any_integers_shapes_and_leave_their_input(curve, dtype):
    expected = torch.tensor(CODES[curve, False])
    coords = POINTS.to(dtype)
    assert torch.equal(CODE[curve](coords, 4), expected)
    assert torch.equal(CODE[curve](coords[None, :, None], 4), expected[None, :, None])
    strided = coords.t().contiguous().t()  # every axis is contiguous here, so that a missing copy would show
    assert torch.equal(CODE[curve](strided, 4), expected)
    assert torch.equal(strided, coords)
    assert CODE[curve](coords[6], 4).item() == expected[6]
    assert CODE[curve](coords[:0], 4).shape == (0,)


@given(st.sampled_from(["z", "hilbert"]), st.sampled_from([2, 3]), st.integers(0, 20), st.booleans(), st.data())
def test_curve_orders_are_permutations_sorted_by_code(curve, axes, points, transpose, data):
    depth = data.draw(st.integers(1, orders.MAX_DEPTH[axes]))
    coords = torch.randint(1 << depth, (2, points, axes), generator=generator(depth))
    path = BATCHED[curve](coords, depth, transpose=transpose)
    check(path, 2, points)
    codes = CODE[curve](coords, depth, transpose=transpose).take_along_dim(path.order, -1)
    assert (codes.diff(dim=-1) >= 0).all()


# points

# all orders of a cloud, as functions of float points (B, N, 3) and lengths
CLOUD = {
    "x": lambda points, lengths=None: orders.by_coordinate(points, 0, lengths=lengths),
    "z": lambda points, lengths=None: orders.by_coordinate(points, 2, lengths=lengths),
    "inside_out": lambda points, lengths=None: orders.inside_out(points, lengths=lengths),
    "z_order": lambda points, lengths=None: orders.z_order(
        orders.grid_coordinates(points, depth=4, lengths=lengths)[0], 4, lengths=lengths
    ),
    "hilbert": lambda points, lengths=None: orders.hilbert(
        *orders.grid_coordinates(points, 0.2, 10, lengths=lengths), lengths=lengths
    ),
}


@pytest.mark.parametrize("name", CLOUD)
@given(st.integers(1, 20), st.integers(1, 4))
def test_orders_of_clouds_are_permutations_and_do_not_depend_on_the_batch(name, points, batch):
    cloud = torch.randn(batch, points, 3, generator=generator(points))
    path = CLOUD[name](cloud)
    check(path, batch, points)
    for i in range(batch):
        alone = CLOUD[name](cloud[i : i + 1])
        assert torch.equal(alone.order[0], path.order[i]) and torch.equal(alone.inverse[0], path.inverse[i])


@pytest.mark.parametrize("junk", [0.0, -1e3, math.inf, math.nan])
@pytest.mark.parametrize("name", CLOUD)
def test_padded_points_stay_at_the_end_and_change_nothing(name, junk):
    cloud = torch.randn(4, 12, 3, generator=generator(0)) + 9  # far from 0
    lengths = torch.tensor([12, 7, 1, 0])
    padded = cloud.masked_fill((torch.arange(12) >= lengths[:, None])[..., None], junk)
    padded[1, 8] = 5.0  # padding of unequal values has no order either
    path = CLOUD[name](padded, lengths)
    check(path, 4, 12)
    for i, n in enumerate(lengths.tolist()):
        assert path.order[i, n:].tolist() == list(range(n, 12))
        if n:
            assert torch.equal(path.order[i, :n], CLOUD[name](cloud[i : i + 1, :n]).order[0])


@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_padded_cells_are_not_read(curve):
    coords = torch.randint(8, (2, 6, 3), generator=generator(0))
    coords[1, 4:] = -1
    path = BATCHED[curve](coords, 3, lengths=torch.tensor([6, 4]))
    assert path.order[1, 4:].tolist() == [4, 5]
    assert torch.equal(path.order[1, :4], BATCHED[curve](coords[1:, :4], 3).order[0])


def test_infinite_and_nan_coordinates_stay_before_the_padding():
    points = torch.tensor([[math.nan, math.inf, 1.0, -math.inf, 0.0, -5.0]])[..., None]
    path = orders.by_coordinate(points, 0, lengths=torch.tensor([4]))
    assert path.order.tolist() == [[3, 2, 1, 0, 4, 5]]


def test_by_coordinate_and_inside_out_by_hand():
    points = torch.tensor([[(3.0, 0.0), (0.0, 1.0), (-3.0, 2.0), (0.5, 5.0), (-0.5, 2.0)]])  # mean (0, 2)
    assert orders.by_coordinate(points, 0).order.tolist() == [[2, 4, 1, 3, 0]]
    assert orders.by_coordinate(points, 1).order.tolist() == [[0, 1, 2, 4, 3]]
    assert orders.inside_out(points).order.tolist() == [[4, 1, 2, 3, 0]]
    assert orders.inside_out(points.long()).order.shape == (1, 5)


def test_ties_keep_the_order_of_the_input():
    steps = list(range(1000))
    ties = torch.zeros(2, 1000, 3)
    ties[:, ::2] = -0.0
    for order in CLOUD.values():
        assert order(ties).order.tolist() == [steps, steps]
    points = torch.randint(3, (1, 1000, 3), generator=generator(0))
    for path, key in (
        (orders.by_coordinate(points.float(), 1), points[0, :, 1]),
        (orders.z_order(points, 2), orders.z_code(points, 2)[0]),
        (orders.hilbert(points, 2), orders.hilbert_code(points, 2)[0]),
    ):
        assert path.order[0].tolist() == sorted(steps, key=key.tolist().__getitem__)


def test_inside_out_sees_equal_distances_as_equal():
    # all permutations of three numbers are equally far from their mean, in whatever order the squares are summed
    triples = torch.rand(50, 3, generator=generator(0))
    points = triples[:, list(itertools.permutations(range(3)))]
    assert orders.inside_out(points).order.tolist() == [list(range(6))] * 50


def test_grid_coordinates_of_a_size_are_those_of_ptv3():
    points = torch.randn(1, 50, 3, generator=generator(0)) * 3
    cells, depth = orders.grid_coordinates(points, 0.1)
    expected = [[math.trunc(v) for v in row] for row in ((points[0] - points[0].amin(0)) / 0.1).tolist()]
    assert cells.dtype == torch.int64 and cells[0].tolist() == expected
    assert depth == (max(map(max, expected)) + 1).bit_length()
    line = torch.arange(8.0)[None, :, None].expand(1, 8, 3)
    assert orders.grid_coordinates(line, 1.0)[1] == 4, "bit_length(max + 1), not of max"
    assert orders.grid_coordinates(line[:, :7], 1.0)[1] == 3
    assert orders.grid_coordinates(line[:, :1], 1.0)[1] == 1
    assert orders.grid_coordinates(line.half(), 1)[0].tolist() == line.long().tolist()
    cells, depth = orders.grid_coordinates(line, 1.0, 12)
    assert depth == 12 and torch.equal(cells, line.long())


def test_grid_coordinates_of_a_depth_fill_the_cube():
    points = torch.randn(3, 40, 3, generator=generator(0)) * torch.tensor([0.1, 1.0, 50.0])[:, None, None]
    points[2] = 4.0  # one place
    for depth in (1, 4, 20):
        cells, same = orders.grid_coordinates(points, depth=depth)
        assert same == depth and cells.amin() == 0
        assert cells.amax((1, 2)).tolist() == [(1 << depth) - 1] * 2 + [0]
    square = torch.tensor([[(0.0, 0.0), (0.99, 0.5), (1.0, 1.01), (4.0, 2.0)]])
    assert orders.grid_coordinates(square, depth=2)[0].tolist() == [[[0, 0], [0, 0], [1, 1], [3, 2]]]


# mistakes

FLOATS = torch.zeros(2, 5, 3)
CELLS = torch.zeros(2, 5, 3, dtype=torch.int64)
MISTAKES = {
    "negative": (lambda: orders.z_code(CELLS - 1, 4), "coords", "from 0 to 15 (depth 4)", "-1"),
    "too large": (lambda: orders.hilbert_code(CELLS + 16, 4), "coords", "from 0 to 15 (depth 4)", "16"),
    "batch too large": (lambda: orders.hilbert(CELLS + 16, 4), "coords", "from 0 to 15", "16"),
    "float": (lambda: orders.z_code(FLOATS, 4), "coords", "integers", "torch.float32"),
    "bool": (lambda: orders.hilbert_code(CELLS.bool(), 4), "coords", "integers", "torch.bool"),
    "axes": (lambda: orders.z_code(CELLS[..., :1], 4), "coords", "(..., 2) or (..., 3)", "(2, 5, 1)"),
    "scalar": (lambda: orders.z_code(torch.tensor(3), 4), "coords", "(..., 2) or (..., 3)", "()"),
    "depth 3-D": (lambda: orders.hilbert_code(CELLS, 21), "depth", "from 1 to 20", "21"),
    "depth 2-D": (lambda: orders.z_code(CELLS[..., :2], 32), "depth", "from 1 to 31", "32"),
    "depth 0": (lambda: orders.z_code(CELLS, 0), "depth", "from 1 to 20", "0"),
    "depth float": (lambda: orders.z_code(CELLS, 4.0), "depth", "integer", "4.0"),
    "depth bool": (lambda: orders.z_code(CELLS, True), "depth", "integer", "True"),
    "unbatched": (lambda: orders.z_order(CELLS[0], 4), "coords", "(B, N, 2 or 3)", "(5, 3)"),
    "unbatched points": (lambda: orders.inside_out(FLOATS[0]), "points", "(B, N, d)", "(5, 3)"),
    "axis": (lambda: orders.by_coordinate(FLOATS, 3), "axis", "from 0 to 2", "3"),
    "lengths shape": (
        lambda: orders.inside_out(FLOATS, lengths=torch.tensor([1])), "lengths", "torch.int64 of shape (2,)", "(1,)"
    ),
    "lengths scalar": (lambda: orders.flip(3, torch.tensor(1)), "lengths", "torch.int64 of shape (1,)", "()"),
    "lengths dtype": (
        lambda: orders.hilbert(CELLS, 4, lengths=torch.tensor([1.0, 2.0])), "lengths", "torch.int64", "torch.float32"
    ),
    "lengths long": (lambda: orders.flip(3, torch.tensor([4, 1])), "lengths", "from 0 to 3", "[4, 1]"),
    "lengths negative": (lambda: orders.flip(3, torch.tensor([-1])), "lengths", "from 0 to 3", "[-1]"),
    "length": (lambda: orders.flip(-1), "length", "an integer from 0 up", "-1"),
    "height": (lambda: orders.cross_scan(0, 3), "height", "an integer from 1 up", "0"),
    "width": (lambda: orders.continuous_scan(3, 2.0), "width", "an integer from 1 up", "2.0"),
    "directions width": (lambda: orders.directions(torch.arange(4), 0), "width", "an integer from 1 up", "0"),
    "directions dtype": (lambda: orders.directions(torch.ones(4), 2), "order", "torch.int64", "torch.float32"),
    "order dtype": (lambda: orders.invert(torch.arange(4.0)), "order", "torch.int64", "torch.float32"),
    "curve": (lambda: orders.grid_curve(2, 2, "peano"), "curve", "'z' or 'hilbert'", "'peano'"),
    "no size": (lambda: orders.grid_coordinates(FLOATS), "size", "positive number", "None"),
    "size 0": (lambda: orders.grid_coordinates(FLOATS, 0.0), "size", "positive number", "0.0"),
    "size NaN": (lambda: orders.grid_coordinates(FLOATS, math.nan, 4), "size", "positive number", "nan"),
    "size small": (
        lambda: orders.grid_coordinates(torch.arange(6.0).view(1, 2, 3), 1e-30), "size", "depth 20", "1e-30"
    ),
    "size for its depth": (
        lambda: orders.hilbert(*orders.grid_coordinates(torch.arange(6.0).view(1, 2, 3), 0.1, 4)),
        "coords", "from 0 to 15", "30",
    ),
    "grid depth": (lambda: orders.grid_coordinates(FLOATS, depth=21), "depth", "from 1 to 20", "21"),
    "grid NaN": (lambda: orders.grid_coordinates(FLOATS * math.nan, 0.1), "points", "finite", "NaN"),
    "grid axes": (lambda: orders.grid_coordinates(FLOATS[..., :1], 0.1), "points", "(B, N, 2 or 3)", "(2, 5, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_argument_expected_and_got(name):
    call, argument, expected, got = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{argument}: expected ") and "\n" not in message
    said, seen = message.split(", got ")
    assert expected in said and got in seen


def test_largest_grids_fit():
    assert orders.grid_coordinates(torch.tensor([[[0.0, 0, 0], [1048574.0, 0, 0]]]), 1.0)[1] == 20
    with pytest.raises(ValueError, match="size: expected a cell so large that depth 20"):
        orders.grid_coordinates(torch.tensor([[[0.0, 0, 0], [1048575.0, 0, 0]]]), 1.0)


# graphs


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("transpose", [False, True])
def test_compiled_hilbert_codes_are_equal(axes, transpose):
    compiled = torch.compile(orders.hilbert_code, backend="aot_eager", fullgraph=True)
    coords = torch.randint(1 << 10, (2, 50, axes), generator=generator(0))
    assert torch.equal(compiled(coords, 10, transpose=transpose), orders.hilbert_code(coords, 10, transpose=transpose))
    with pytest.raises(ValueError, match="depth: expected"):
        orders.hilbert_code(coords, 99)


def everything(points, lengths):
    """One call of every function that runs without reading a value; points (B, N, 3)."""
    paths = [order(points, lengths) for order in CLOUD.values()] + [order(points) for order in CLOUD.values()]
    paths += [orders.flip(points.shape[1], lengths), orders.reverse(paths[0], lengths), orders.reverse(paths[1])]
    for scan in (orders.raster, orders.cross_scan, orders.continuous_scan):
        paths.append(scan(3, 5, device=points.device))
    paths += [orders.grid_curve(3, 5, curve, device=points.device) for curve in ("z", "hilbert")]
    return paths, orders.directions(paths[-3].order, 5)


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert torch.equal(a.order.cpu(), b.order.cpu()) and torch.equal(a.inverse.cpu(), b.inverse.cpu())
    assert torch.equal(one[1].cpu(), other[1].cpu())


def test_everything_compiles_to_one_graph():
    points, lengths = torch.randn(3, 20, 3, generator=generator(0)), torch.tensor([20, 9, 0])
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    assert_same(compiled(points, lengths), everything(points, lengths))


def test_export_with_dynamic_lengths():
    class Orders(torch.nn.Module):
        def forward(self, points, lengths):
            path = orders.hilbert(*orders.grid_coordinates(points, depth=6, lengths=lengths), lengths=lengths)
            return path.order, orders.flip(points.shape[1], lengths).order, orders.inside_out(points).inverse

    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)
    example = torch.randn(2, 9, 3, generator=generator(0)), torch.tensor([9, 4])
    program = torch.export.export(Orders(), example, dynamic_shapes=({0: batch, 1: steps}, {0: batch}))
    points, lengths = torch.randn(3, 17, 3, generator=generator(1)), torch.tensor([0, 17, 5])
    for a, b in zip(program.module()(points, lengths), Orders()(points, lengths), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("points", [20, 1000, 100_000])  # CUDA sorts short, middle and long rows by different kernels
def test_cuda_equals_cpu_also_with_ties(points):
    cloud = torch.randint(-4, 5, (3, points, 3), generator=generator(0)).float() / 4
    cloud *= torch.where(torch.rand(cloud.shape, generator=generator(1)) < 0.5, -1, 1)  # zeros of both signs
    lengths = torch.tensor([points, points // 3, 0])
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(everything(cloud.cuda(), lengths.cuda()), everything(cloud, lengths))
    finally:
        torch.use_deterministic_algorithms(False)
    cells = torch.randint(1 << 20, (points, 3), generator=generator(2))
    for code in CODE.values():
        assert torch.equal(code(cells.cuda(), 20).cpu(), code(cells, 20))
    with pytest.raises(ValueError, match="coords: expected values from 0 to 15"):
        orders.hilbert_code(cells.cuda(), 4)
