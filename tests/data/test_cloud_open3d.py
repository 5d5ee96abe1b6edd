"""PLY and compressed PCD against open3d: what it writes is read alike, without it; what is broken is refused."""

import struct

import numpy as np
import pytest
from statezoo.zoo.data.cloud_lzf import decompress
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.ply import write_ply
from statezoo.zoo.errors import ZooError

RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(50, 3)).astype(np.float32)
# 12 points by open3d 0.20 (open3d.t.io.write_point_cloud, compressed=True); its header is that of HEAD
HEAD = (
    "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {type}\n"
    "COUNT {count}\nWIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA binary_compressed\n"
)
WRITTEN = (
    HEAD.format(fields="x y z label intensity", size="4 4 4 4 4", type="F F F I F", count="1 1 1 1 1", n=12).encode()
    + b"a\x00\x00\x00\xf0\x00\x00\x00\x01\x00\x00@\x00\x04@?\x00\x00\xc0 \x03\x00\x00 \x03\x00\xa0 \x03\x01\x80> \x03 "
    b"\x07@\x00\xe0g\x1b\xe0\x05\x00\x00\x01 \x0e\xe0\x03\x03\x00\x02 \x0f\xe0\x03\x03@\x00\x0b\x8c.\xba=\x8c.:>\xe9"
    b'\xa2\x8b> \x0b\x03>/\xba\xe8 \x0b\x05\x0b?\xba\xe8"? \x17\x07?]tQ?/\xbah \xcf\x01\x80?'
)


def open3d():
    return pytest.importorskip("open3d", reason="open3d cannot be imported: the oracle is absent", exc_type=ImportError)


def read(folder, content, name="a.pcd"):
    (folder / name).write_bytes(content)
    return read_cloud(folder / name)


def packed(body, size=None, length=None):
    """A compressed PCD of one field and one point for every four bytes, with this LZF stream."""
    size = len(body) if size is None else size
    head = HEAD.format(fields="x y z", size="4 4 4", type="F F F", count="1 1 1", n=size // 12)
    return head.encode() + struct.pack("<II", len(body) if length is None else length, size) + body


def runs(data):
    """LZF without any copy: runs of 32 bytes at most."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def test_compressed_pcd_is_read_without_open3d(tmp_path):
    cloud = read(tmp_path, WRITTEN)
    assert np.array_equal(cloud.xyz, (np.arange(36).reshape(12, 3) % 7 / 4).astype(np.float32))
    assert cloud.label.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and cloud.names == ("intensity",)
    assert np.array_equal(cloud.features[:, 0], np.linspace(0, 1, 12).astype(np.float32))
    assert np.array_equal(read(tmp_path, packed(runs(XYZ.T.tobytes()), XYZ.nbytes)).xyz, XYZ)


def test_lzf():
    assert decompress(b"\x02abc", 3) == b"abc"
    assert decompress(b"\x00a\x20\x00", 4) == b"aaaa", "a copy of 3 that overlaps what it makes"
    assert decompress(b"\x02abc\xe0\x03\x02", 15) == b"abcabcabcabcabc", "7 + 3 + 2 bytes from 3 before"
    assert decompress(b"\x01ab\x40\x01\x00c", 7) == b"abababc", "4 bytes from two before, then a run"
    far = bytes(range(256)) * 32
    assert decompress(runs(far[:8192]) + b"\x3f\xff", 8195) == far[:8192] + far[:3], "8,192 bytes back"


@pytest.mark.parametrize(
    ("stream", "size", "what"),
    [
        (b"\x05ab", 2, "ends within a run"),
        (b"\x00a\x20", 4, "ends within a copy"),
        (b"\x00a\xe0\x01", 12, "ends within a copy"),
        (b"\x00a\x20\x01", 4, "begins before the first byte"),
        (b"\x02abc", 2, "more than the 2 bytes"),
        (b"\x02abc", 4, "becomes 3 bytes, 4 are announced"),
        (b"", 1, "0 bytes cannot become 1"),
        (b"\x00a\xe0\xff\x00", 1 << 40, "5 bytes cannot become"),
    ],
)
def test_broken_lzf(stream, size, what):
    with pytest.raises(ValueError, match=what):
        decompress(stream, size)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (WRITTEN[:-1], "holds 96 compressed bytes, its header announces 97"),
        (WRITTEN + b"\0", "holds 98 compressed bytes, its header announces 97"),
        (WRITTEN[: WRITTEN.index(b"compressed\n") + 14], "ends before its compressed points"),
        (packed(runs(XYZ.tobytes()), 588), "becomes more than the 588 bytes announced"),
        (packed(b"\x00a", 4_200_000_000), "2 bytes cannot become"),
        (WRITTEN.replace(b"S 12", b"S 13").replace(b"H 12", b"H 13"), "holds 240 bytes of points when unpacked"),
    ],
    ids=["cut off", "longer", "no sizes", "more", "bomb", "other count"],
)
def test_broken_compressed_pcd_is_refused(content, what, tmp_path):
    with pytest.raises(ZooError, match=what):
        read(tmp_path, content)


def test_ply_as_open3d_writes_and_reads_it(tmp_path):
    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(XYZ.astype(np.float64)))
    cloud.colors = o3d.utility.Vector3dVector(RNG.random((50, 3)))
    for ascii in (True, False):
        file = tmp_path / f"{ascii}.ply"
        o3d.io.write_point_cloud(str(file), cloud, write_ascii=ascii)
        mine = read_cloud(file)
        assert np.array_equal(mine.xyz, np.asarray(o3d.io.read_point_cloud(str(file)).points))
        assert mine.names == ("red", "green", "blue")
    write_ply(tmp_path / "mine.ply", XYZ)
    assert np.array_equal(np.asarray(o3d.io.read_point_cloud(str(tmp_path / "mine.ply")).points), XYZ)


@pytest.mark.parametrize("n", [1, 50, 5000])
def test_compressed_pcd_as_open3d_writes_it(n, tmp_path):
    o3d = open3d()
    xyz = RNG.integers(-40, 40, (n, 3)).astype(np.float32) / 8  # repeats, so that there is something to copy
    colour, label = RNG.random((n, 3)), RNG.integers(0, 5, (n, 1)).astype(np.int32)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz.astype(np.float64)))
    cloud.colors = o3d.utility.Vector3dVector(colour)
    o3d.io.write_point_cloud(str(tmp_path / "colours.pcd"), cloud, compressed=True)
    assert b"binary_compressed" in (tmp_path / "colours.pcd").read_bytes()
    mine = read_cloud(tmp_path / "colours.pcd")
    assert np.array_equal(mine.xyz, xyz) and mine.names == ("r", "g", "b")
    assert np.abs(mine.features - colour * 255).max() <= 1
    tensors = o3d.t.geometry.PointCloud(o3d.core.Tensor(xyz))
    tensors.point["label"] = o3d.core.Tensor(label)
    o3d.t.io.write_point_cloud(str(tmp_path / "labels.pcd"), tensors, compressed=True)
    mine = read_cloud(tmp_path / "labels.pcd")
    assert np.array_equal(mine.xyz, xyz) and mine.label.tolist() == label[:, 0].tolist()
