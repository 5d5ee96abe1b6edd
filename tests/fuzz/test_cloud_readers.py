"""Broken clouds, meshes and masks: each reader gives a result or a ZooError in little time and memory.

`STATEZOO_FUZZ` says how many mutants of each sample are tried (default 200).
"""

import contextlib
import gzip
import importlib.util
import io
import shutil
import signal
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.download import extract
from statezoo.zoo.errors import ZooError

SECONDS, MEMORY = 10, 1 << 30


def beside(path):
    """A module of the tests, by its path from here."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutate, vtk, masks = (
    beside(path) for path in ("_mutate.py", "../data/test_cloud_vtk.py", "../data/test_cloud_masks.py")
)

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], "<f4")
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7)]


def ply(kind, faces=True):
    head = f"ply\nformat {kind} 1.0\ncomment a cube\nelement vertex 8\nproperty float x\nproperty float y\n"
    head += "property float z\nproperty uchar red\nproperty int label\n"
    head += "element face 6\nproperty list uchar int vertex_indices\n" * faces + "end_header\n"
    if kind == "ascii":
        rows = "".join(f"{x:g} {y:g} {z:g} {i} {i % 3}\n" for i, (x, y, z) in enumerate(CUBE.tolist()))
        rows += "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in SQUARES) * faces
        return (head + rows).encode()
    order = "<" if "little" in kind else ">"
    rows = b"".join(struct.pack(f"{order}3fBi", *xyz, i, i % 3) for i, xyz in enumerate(CUBE.tolist()))
    if faces:
        rows += b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in SQUARES)
    return head.encode() + rows


def pcd(data):
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb label\nSIZE 4 4 4 4 2\nTYPE F F F U U\nCOUNT 1 1 1 1 1\nWIDTH 8\n"
        f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 8\nDATA {data}\n"
    ).encode()
    rows = np.zeros(8, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("label", "<u2")])
    rows["x"], rows["y"], rows["z"] = CUBE.T
    rows["rgb"], rows["label"] = np.arange(8) * 70000, np.arange(8)
    if data == "ascii":
        return head + "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()).encode()
    if data == "binary":
        return head + rows.tobytes()
    body = b"".join(rows[name].tobytes() for name in rows.dtype.names)
    # each run of four bytes that repeats the four before it as a copy, the rest as they are
    stream = b"".join(
        b"\x40\x03" if i and body[i : i + 4] == body[i - 4 : i] else bytes([len(body[i : i + 4]) - 1]) + body[i : i + 4]
        for i in range(0, len(body), 4)
    )
    return head + struct.pack("<II", len(stream), len(body)) + stream


def stl(text):
    triangles = [CUBE[[face[0], *face[i : i + 2]]] for face in SQUARES for i in range(1, len(face) - 1)]
    if text:
        loops = "".join(
            "facet normal 0 0 0\nouter loop\n"
            + "".join(f"vertex {x:g} {y:g} {z:g}\n" for x, y, z in triangle.tolist())
            + "endloop\nendfacet\n"
            for triangle in triangles
        )
        return f"solid cube\n{loops}endsolid cube\n".encode()
    return b"cube".ljust(80) + struct.pack("<I", 11) + b"".join(b"\0" * 12 + t.tobytes() + b"\0\0" for t in triangles)


def obj():
    lines = [f"v {x:g} {y:g} {z:g} 1 0 {i / 8}" for i, (x, y, z) in enumerate(CUBE.tolist())]
    lines += ["vn 0 0 1", "usemtl bone", "f 1/1/1 \\", "2//1 4 3 # a square"]
    return "\n".join(lines + ["f " + " ".join(str(i - 8) for i in face) for face in SQUARES[1:]] + [""]).encode()


def off():
    rows = [f"{x:g} {y:g} {z:g} 255 0 {i} 1" for i, (x, y, z) in enumerate(CUBE.tolist())]
    rows += [f"{len(face)} {' '.join(map(str, face))} 10 20 30" for face in SQUARES]
    return "\n".join(["COFF # a cube", "8 6 0", *rows, ""]).encode()


def nifti():
    voxels = np.zeros((5, 4, 6), "<i2")
    voxels[1:3, 1:3, 1:4], voxels[3, 1:3, 1:4] = 1, 2
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<hh", head, 70, 4, 16)
    struct.pack_into("<8f", head, 76, 1, 2, 3, 4, 0, 0, 0, 0)
    struct.pack_into("<3f", head, 108, 352, 1, 0)
    struct.pack_into("<2h", head, 252, 1, 0)
    struct.pack_into("<6f", head, 256, 0, 0, 0.5, 1, 2, 3)
    head[344:348] = b"n+1\0"
    return bytes(head) + voxels.tobytes(order="F")


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        files = {"a/cube.ply": ply("binary_little_endian"), "b/cube.xyz": table(" "), "b/cube.off": off()}
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # of a fixed date
    return stream.getvalue()


def table(separator):
    rows = np.column_stack([CUBE, CUBE.sum(1), np.arange(8) % 3])
    text = "".join(separator.join(f"{value:g}" for value in row) + "\n" for row in rows.tolist())
    return (separator.join(["x", "y", "z", "heat", "label"]) + "\n" + text).encode()


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def legacy():
    """Binary .vtk of version 5.1."""
    head = (
        b"# vtk DataFile Version 5.1\na cube\nBINARY\nDATASET POLYDATA\nPOINTS 8 float\n" + CUBE.astype(">f4").tobytes()
    )
    head += b"\nPOLYGONS 7 23\nOFFSETS vtktypeint64\n" + np.cumsum([0, *map(len, SQUARES)]).astype(">i8").tobytes()
    head += b"\nCONNECTIVITY vtktypeint64\n" + np.concatenate(SQUARES).astype(">i8").tobytes()
    return head + b"\nPOINT_DATA 8\nSCALARS label int\nLOOKUP_TABLE default\n" + np.arange(8).astype(">i4").tobytes()


FIELDS = np.array(
    [(*xyz, i) for i, xyz in enumerate(CUBE)], [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u8")]
)
SAMPLES = {
    **{"a.npy": saved(CUBE), "fields.npy": saved(FIELDS)},
    **{f"{coding}.vtp": vtk.vtp(coding) for coding in ("ascii", "binary", "appended raw")},
    **{f"packed {coding}.vtp": vtk.vtp(coding, True) for coding in ("binary", "appended raw")},
    **{"a.vtu": vtk.VTU.encode(), "a.vtk": vtk.LEGACY.encode(), "binary.vtk": legacy()},
    **{"a.mha": masks.mha(), "packed.mha": masks.mha(packed=True)},
    **{"a.nrrd": masks.nrrd(), "packed.nrrd": masks.nrrd(encoding="gzip")},
    **{f"{kind}.ply": ply(kind) for kind in ("ascii", "binary_little_endian", "binary_big_endian")},
    **{f"points of {kind}.ply": ply(kind, False) for kind in ("ascii", "binary_little_endian")},
    **{f"{data}.pcd": pcd(data) for data in ("ascii", "binary", "binary_compressed")},
    **{"text.stl": stl(True), "binary.stl": stl(False), "a.obj": obj(), "a.off": off()},
    **{"a.xyz": table(" "), "a.csv": table(","), "bare.txt": table("\t").partition(b"\n")[2]},
    **{"a.nii": nifti(), "packed.nii.gz": gzip.compress(nifti(), mtime=0), "a.zip": zipped()},
}


@contextlib.contextmanager
def bounded():
    """Fail after `SECONDS`, and where the process would grow by more than `MEMORY`."""
    import resource

    def late(*_):
        pytest.fail(f"no answer in {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    before = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def tried(file, content):
    """A result or the error's text; every other exception is told with the content that raised it."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    file.touch()
    with open(file, "r+b") as place:  # in place: making a file anew takes longer than reading it
        place.write(content)
        place.truncate()
    try:
        if file.suffix == ".zip":
            folder = file.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)
            clouds = [
                read_cloud(one, surface_points=64)
                for one in extract(file, folder)
                if one.suffix in (".ply", ".xyz", ".off")
            ]
        else:
            clouds = [read_cloud(file, surface_points=64)]
    except ZooError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, content
        return str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {content!r}") from error
    for cloud in clouds:
        assert cloud.xyz.shape[1:] == (3,) and len(cloud.xyz) and np.isfinite(cloud.xyz).all(), content
        assert cloud.features.shape == (len(cloud.xyz), len(cloud.names)) and np.isfinite(cloud.features).all(), content
        assert cloud.label is None or cloud.label.shape == (len(cloud.xyz),), content
    return clouds


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory and time are limited through Linux")
@pytest.mark.parametrize("name", SAMPLES)
def test_a_broken_file_gives_a_result_or_one_line(name, tmp_path):
    if name.endswith("nrrd"):
        pytest.importorskip("nrrd", reason="pynrrd is not installed")
    file = tmp_path / name
    assert isinstance(tried(file, SAMPLES[name]), list), "the sample itself is read"
    with bounded():
        answers = [tried(file, content) for content in mutate.mutants(SAMPLES[name], name)]
    assert any(isinstance(one, str) for one in answers), "some are refused"
