"""Farthest points: every backend against a plain numpy loop, on ties above all; what is refused; what is compiled."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statezoo.zoo import native
from statezoo.zoo.geometry import _fps_cpp, fps
from statezoo.zoo.geometry.fps import farthest_points

KINDS = ("random", "lattice", "duplicates", "line", "one place", "huge", "tiny", "far away", "sphere")


def cloud(kind, batch, size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    xyz = torch.randn(batch, size, 3, generator=draw)
    if kind == "lattice":
        return torch.randint(-3, 4, xyz.shape, generator=draw).float()
    if kind == "duplicates":
        return xyz[:, torch.randint(max(1, size // 3), (size,), generator=draw)]
    if kind == "line":
        return xyz[..., :1] * torch.tensor([1.0, -2.0, 0.5])
    if kind == "one place":
        return xyz[:, :1].expand(-1, size, -1).contiguous()
    if kind == "sphere":  # all as far from point 0, but for rounding: each operation shows
        xyz = torch.nn.functional.normalize(xyz, dim=-1)
        xyz[:, 0] = 0
        return xyz
    # squares that overflow to infinity, that underflow to zero, and differences with few bits
    return xyz * {"huge": 1e22, "tiny": 1e-22}.get(kind, 1) + (1e4 if kind == "far away" else 0)


def plain(xyz, count, lengths=None):
    """The rule in numpy, a cloud at a time; numpy's argmax is the first of equal maxima."""
    picks = []
    for b, points in enumerate(xyz.float().numpy()):
        points = points if lengths is None else points[: lengths[b]]
        distance, row = np.full(len(points), np.inf, np.float32), [0]
        with np.errstate(over="ignore", under="ignore"):
            while len(row) < count:
                dx, dy, dz = (points - points[row[-1]]).T
                distance = np.minimum(distance, dx * dx + dy * dy + dz * dz)
                row.append(int(distance.argmax()))
        picks.append(row)
    return torch.tensor(picks)


def whole(xyz):
    return torch.full((len(xyz),), xyz.shape[1])


@pytest.fixture(scope="module")
def cpp():
    try:
        return _fps_cpp.build()
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@settings(max_examples=60)
@given(st.data())
def test_both_cpu_backends_are_the_rule(cpp, data):
    batch, size = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 3, 7, 40, 255, 256, 257, 600]))
    xyz = cloud(data.draw(st.sampled_from(KINDS)), batch, size, data.draw(st.integers(0, 999)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, size), min_size=batch, max_size=batch)))
    count = data.draw(st.integers(1, int(lengths.min())))
    wanted = plain(xyz, count, lengths)
    for backend in (fps._reference, cpp):
        assert torch.equal(backend(xyz, lengths, count), wanted)
    assert torch.equal(farthest_points(xyz, count, lengths), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_all_points_of_a_cloud_of_many_leaves(cpp, kind):
    xyz = cloud(kind, 1, 3000)
    assert torch.equal(cpp(xyz, whole(xyz), 3000), plain(xyz, 3000))


def test_equals_fpsample_where_it_takes_the_first_of_ties():
    """It takes the last: so of the cloud backwards."""
    fpsample = pytest.importorskip("fpsample", reason="fpsample is not installed")
    for kind in ("random", "lattice", "duplicates"):
        (xyz,) = cloud(kind, 1, 500)
        backwards = fpsample.fps_sampling(xyz.flip(0).numpy(), 300, start_idx=499).astype(np.int64)
        assert torch.equal(farthest_points(xyz[None], 300)[0], 499 - torch.from_numpy(backwards))


def test_first_is_point_0_and_picks_nest():
    xyz = cloud("random", 2, 50)
    picks = farthest_points(xyz, 50)
    assert picks.dtype == torch.int64 and picks[:, 0].tolist() == [0, 0]
    assert picks.sort(1).values.tolist() == [list(range(50))] * 2
    assert torch.equal(farthest_points(xyz, 20), picks[:, :20])
    # an ordered cloud is its own order
    assert farthest_points(xyz.take_along_dim(picks[..., None], 1), 50).tolist() == [list(range(50))] * 2


def test_of_equal_maxima_the_first():
    square = torch.tensor([[[0.0, 0, 0], [1, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]])
    assert farthest_points(square, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert farthest_points(square.flip(1), 5).tolist() == [[0, 3, 1, 2, 4]]


def test_coincident_points_pick_index_0_again():
    assert farthest_points(torch.ones(1, 4, 3), 4).tolist() == [[0, 0, 0, 0]]
    two = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [2, 0, 0], [2, 0, 0]]])
    assert farthest_points(two, 4).tolist() == [[0, 2, 0, 0]]


def test_what_is_padded_is_ignored():
    xyz, lengths = cloud("random", 2, 30), torch.tensor([30, 12], dtype=torch.int32)
    alone = farthest_points(xyz[1:, :12], 12)
    for rubbish in (1e9, torch.nan, torch.inf):
        xyz[1, 12:] = rubbish
        assert torch.equal(farthest_points(xyz, 12, lengths)[1:], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_compared_in_float32(dtype):
    xyz = cloud("random", 2, 100).to(dtype)
    assert torch.equal(farthest_points(xyz, 60), plain(xyz, 60))


def test_strides_gradients_and_threads_change_nothing():
    xyz = cloud("random", 5, 300)
    wanted = farthest_points(xyz, 99)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert torch.equal(farthest_points(xyz.mT.contiguous().mT, 99), wanted)
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        picks = farthest_points(xyz.requires_grad_(), 99)
    assert torch.equal(picks, wanted) and not picks.requires_grad


@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        ("no-such-compiler", "cannot be built or loaded .*no-such-compiler"),
        ("sh -c 'echo broken >&2; exit 1'", "cannot build its kernel .broken"),
        (None, "no C\\+\\+ compiler found"),
    ],
)
def test_without_a_compiler_the_loop_serves_and_says_so(compiler, told, monkeypatch, tmp_path):
    monkeypatch.setenv("STATEZOO_CACHE", str(tmp_path))
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    fps._cpp.cache_clear()
    xyz = cloud("lattice", 2, 60)
    try:
        with pytest.warns(UserWarning, match=told):
            assert torch.equal(farthest_points(xyz, 40), plain(xyz, 40))
        assert torch.equal(farthest_points(xyz, 40), plain(xyz, 40))  # told once
    finally:
        fps._cpp.cache_clear()
    assert not list(tmp_path.rglob("*.so"))


def test_the_kernel_is_compiled_once(cpp, monkeypatch):
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    xyz = cloud("random", 1, 20)
    assert torch.equal(_fps_cpp.build()(xyz, whole(xyz), 9), plain(xyz, 9))


def test_one_node_under_compile_and_plain_torch_in_an_export():
    xyz, lengths = cloud("lattice", 2, 40), torch.tensor([40, 20])
    wanted = plain(xyz, 9, lengths)
    compiled = torch.compile(lambda x, n: farthest_points(x, 9, n), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(xyz, lengths), wanted)
    torch.library.opcheck(fps._op, (xyz, lengths, 9), test_utils=("test_schema", "test_faketensor"))

    class Sample(torch.nn.Module):
        def forward(self, x, n):
            return farthest_points(x, 9, n)

    program = torch.export.export(Sample(), (xyz, lengths))
    assert torch.equal(program.module()(xyz, lengths), wanted)
    assert not [node for node in program.graph.nodes if "statezoo" in str(node.target)]


def test_shapes_alone_on_the_meta_device():
    assert farthest_points(torch.empty(2, 9, 3, device="meta"), 4).shape == (2, 4)


INTERPRETED = """
import torch
from statezoo.zoo.geometry import _fps_triton, fps
draw = torch.Generator().manual_seed(0)
xyz, lengths = torch.randint(-3, 4, (3, 100, 3), generator=draw).float(), torch.tensor([100, 57, 30])
xyz[2] = 1
for _fps_triton.LARGEST in (8192, 32):  # held in registers; block by block
    assert torch.equal(_fps_triton.run(xyz, lengths, 30), fps._reference(xyz, lengths, 30))
"""


def test_the_triton_kernel_interpreted():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 31, 2048, 8193, 20_000])
def test_on_a_gpu(kind, size):
    xyz = cloud(kind, 3, size)
    lengths = torch.tensor([size, size // 2 + 1, size])
    count = min(size // 2 + 1, 500)
    assert torch.equal(farthest_points(xyz.cuda(), count, lengths.cuda()).cpu(), plain(xyz, count, lengths))


@pytest.mark.slow
def test_a_million_points():
    xyz = cloud("random", 1, 1_000_000)
    assert torch.equal(farthest_points(xyz, 256), plain(xyz, 256))


# what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xyz", "count", "lengths", "told"),
    [
        (torch.zeros(5, 3), 1, None, r"xyz: expected \(B, N, 3\), got \(5, 3\)"),
        (torch.zeros(1, 5, 2), 1, None, r"xyz: expected \(B, N, 3\), got \(1, 5, 2\)"),
        (torch.zeros(1, 0, 3), 1, None, r"xyz: expected \(B, N, 3\), got \(1, 0, 3\)"),
        (torch.zeros(1, 5, 3, dtype=torch.int64), 1, None, "xyz: expected a floating dtype, got torch.int64"),
        (torch.zeros(1, 5, 3), 6, None, "count: expected at most the 5 points of cloud 0, got 6; ask for fewer"),
        (torch.zeros(2, 5, 3), 4, [5, 3], "count: expected at most the 3 points of cloud 1, got 4; ask for fewer"),
        (torch.zeros(1, 5, 3), 0, None, "count: expected a whole number from 1 up, got 0"),
        (torch.zeros(1, 5, 3), 2.0, None, "count: expected a whole number from 1 up, got 2.0"),
        (torch.zeros(1, 5, 3), True, None, "count: expected a whole number from 1 up, got True"),
        (torch.zeros(2, 5, 3), 1, [5], r"lengths: expected \(2,\), got \(1,\)"),
        (torch.zeros(2, 5, 3), 1, [5, 0], "lengths: expected 1 to 5 points in every cloud, got 0 in cloud 1"),
        (torch.zeros(2, 5, 3), 1, [6, 5], "lengths: expected 1 to 5 points in every cloud, got 6 in cloud 0"),
        (torch.zeros(2, 5, 3), 1, [5.0, 5.0], "lengths: expected integers, got torch.float32"),
        (torch.full((1, 5, 3), 1e39, dtype=torch.float64), 1, None, "as float32.: expected finite .* got inf"),
    ],
)
def test_refused(xyz, count, lengths, told):
    with pytest.raises(ValueError, match=f"farthest_points: .*{told}"):
        farthest_points(xyz, count, None if lengths is None else torch.tensor(lengths))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_named(bad):
    xyz = torch.zeros(3, 5, 3)
    xyz[1, 4, 2] = bad
    told = f"xyz: expected finite coordinates, got {bad} in cloud 1, point 4; remove or mend that point"
    with pytest.raises(ValueError, match=told):
        farthest_points(xyz, 2)
