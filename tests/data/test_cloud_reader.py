"""Clouds, meshes and masks are read exactly, or refused with file, place and remedy."""

import gzip
import re
import struct

import numpy as np
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.cloud_reader import READERS, read_cloud, stem, suffix
from statezoo.zoo.data.ply import write_ply
from statezoo.zoo.errors import ZooError

RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(50, 3)).astype(np.float32)
TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int", "i2": "int16", "u2": "uint16"}
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
HEADER = "ply\nformat {kind} 1.0\nelement vertex {n}\n{properties}end_header\n"
FLOATS = "property float x\nproperty float y\nproperty float z\n"


def ply(columns, kind="binary_little_endian", faces=(), n=None, extra=""):
    """A PLY file of (name, type, values) columns and polygons."""
    n = len(columns[0][2]) if n is None else n
    properties = "".join(f"property {TYPES[code]} {name}\n" for name, code, _ in columns)
    if faces:
        properties += f"element face {len(faces)}\nproperty uchar red\nproperty list uchar int vertex_indices\n"
    head = HEADER.format(kind=kind, n=n, properties=extra + properties).encode()
    if kind == "ascii":
        rows = [" ".join(repr(value.item()) for value in row) for row in zip(*(c for _, _, c in columns), strict=True)]
        rows += [" ".join(map(str, (7, len(face), *face))) for face in faces]
        return head + "".join(row + "\n" for row in rows).encode()
    order = "<" if "little" in kind else ">"
    table = np.empty(len(columns[0][2]), [(name, order + code) for name, code, _ in columns])
    for name, _, values in columns:
        table[name] = values
    body = table.tobytes()
    for face in faces:
        body += struct.pack(f"{order}BB{len(face)}i", 7, len(face), *face)
    return head + body


def xyz_columns(xyz=XYZ, code="f4"):
    return [(name, code, np.asarray(xyz)[:, i].astype(code)) for i, name in enumerate("xyz")]


def read(folder, content, name="cloud.ply", **options):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_cloud(file, **options)


# ply ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("code", ["f4", "f8"])
def test_ply_of_every_kind(kind, code, tmp_path):
    columns = xyz_columns(code=code)
    columns[1:1] = [("red", "u1", RNG.integers(0, 256, 50).astype("u1"))]  # between the coordinates
    columns += [("label", "i2", RNG.integers(-3, 9, 50).astype("i2")), ("curvature", "f8", RNG.normal(size=50))]
    cloud = read(tmp_path, ply(columns, kind))
    assert np.array_equal(cloud.xyz, XYZ)
    assert cloud.xyz.dtype == (np.float64 if kind == "ascii" else np.dtype(code)), "as precise as the file"
    assert cloud.names == ("red", "curvature") and cloud.features.dtype == np.float32
    assert np.array_equal(cloud.features, np.stack([columns[1][2], columns[-1][2]], 1).astype(np.float32))
    assert cloud.label.dtype == np.int64 and cloud.label.tolist() == columns[-2][2].tolist()


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("faces", [SQUARES, [*SQUARES[:5], (1, 5, 7), (1, 7, 3)]], ids=["squares", "mixed"])
def test_ply_with_faces_is_a_mesh(kind, faces, tmp_path):
    cloud = read(tmp_path, ply(xyz_columns(CUBE), kind, faces), surface_points=3000)
    assert cloud.xyz.shape == (3000, 3) and cloud.label is None
    on_side = np.isclose(cloud.xyz[:, :, None], [0.0, 1.0], atol=1e-9).reshape(3000, 6)
    assert (on_side.sum(1) == 1).all() and np.abs(on_side.mean(0) - 1 / 6).max() < 0.025


def test_ply_steps_over_other_elements(tmp_path):
    extra = "comment made by hand\nobj_info n = 3\n"
    body = ply(xyz_columns(), extra=extra)
    camera = b"element camera 2\nproperty double focus\nproperty list uint8 short path\nelement vertex"
    path = struct.pack("<dB3h", 1.0, 3, 1, 2, 3) + struct.pack("<dB1h", 1.0, 1, 9)
    at = body.index(b"end_header\n") + len(b"end_header\n")
    cloud = read(tmp_path, body[:at].replace(b"element vertex", camera) + path + body[at:])
    assert np.array_equal(cloud.xyz, XYZ)


def test_what_is_written_is_read_back(tmp_path):
    distance, label = RNG.normal(size=50).astype(np.float32), RNG.integers(0, 4, 50)
    write_ply(tmp_path / "a.ply", XYZ, distance=distance, label=label)
    cloud = read_cloud(tmp_path / "a.ply")
    assert np.array_equal(cloud.xyz, XYZ) and np.array_equal(cloud.features[:, 0], distance)
    assert cloud.names == ("distance",) and np.array_equal(cloud.label, label)


def test_a_million_points(tmp_path):
    xyz = np.random.default_rng(1).normal(size=(1_000_000, 3)).astype(np.float32)
    write_ply(tmp_path / "big.ply", xyz)
    assert np.array_equal(read_cloud(tmp_path / "big.ply").xyz, xyz)


# other clouds ---------------------------------------------------------------------------------------------------------

PCD = (
    "# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {type}\nCOUNT {count}\nWIDTH {n}\nHEIGHT 1\n"
    "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {data}\n"
)
PLAIN = {"fields": "x y z", "size": "4 4 4", "type": "F F F", "count": "1 1 1"}


@pytest.mark.parametrize("data", ["ascii", "binary"])
def test_pcd(data, tmp_path):
    colour = np.array([[255, 128, 3]] * 50, np.uint32)
    packed = (colour[:, 0] << 16 | colour[:, 1] << 8 | colour[:, 2]).astype(np.uint32).view(np.float32)
    shape = RNG.normal(size=(50, 2)).astype(np.float32)
    dtype = [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("_", "u1", 4),
        ("rgb", "<f4"),
        ("shape", "<f4", 2),
        ("label", "<u2"),
    ]
    rows = np.zeros(50, dtype)
    for i, name in enumerate("xyz"):
        rows[name] = XYZ[:, i]
    rows["rgb"], rows["shape"], rows["label"] = packed, shape, np.arange(50)
    head = PCD.format(
        fields="x y z _ rgb shape label",
        size="4 4 4 1 4 4 2",
        type="F F F U F F U",
        count="1 1 1 4 1 2 1",
        n=50,
        data=data,
    )
    flat = [[repr(float(v)) for v in np.concatenate([np.ravel(row[name]) for name, *_ in dtype])] for row in rows]
    body = rows.tobytes() if data == "binary" else "".join(" ".join(row) + "\n" for row in flat).encode()
    cloud = read(tmp_path, head.encode() + body, "a.pcd")
    assert np.array_equal(cloud.xyz, XYZ) and cloud.names == ("r", "g", "b", "shape_0", "shape_1")
    assert np.array_equal(cloud.features, np.hstack([colour, shape])) and cloud.label.tolist() == list(range(50))


def test_decimal_commas_are_refused_and_other_commas_read(tmp_path):
    file = tmp_path / "a.xyz"
    file.write_text("0,188 -0,198 0,961\n")
    with pytest.raises(ZooError, match="row 1: '0,188 -0,198 0,961' has commas within columns .*decimal points"):
        read_cloud(file)
    for row in ("1,2,3", "1, 2, 3", "1 ,2 , 3", "1.5 2 3", "\ufeff1 2 3"):
        file.write_text(f"{row}\n4 5 6\n", encoding="utf-8")
        assert read_cloud(file).xyz[:, 2].tolist() == [3, 6]


def test_names_or_a_count_before_the_rows(tmp_path):
    cloud = read(tmp_path, "X;Y;Z;heat;label\n1;2;3;0.5;1\n4;5;6;0.7;-1\n", "a.csv")
    assert cloud.xyz.tolist() == [[1, 2, 3], [4, 5, 6]] and cloud.label.tolist() == [1, -1]
    assert cloud.names == ("heat",) and cloud.features[:, 0].tolist() == pytest.approx([0.5, 0.7])
    assert read(tmp_path, "2\n1 2 3\n4 5 6\n", "a.pts").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read(tmp_path, "z,y,x\n1,2,3\n", "b.csv").xyz.tolist() == [[3, 2, 1]]
    for text, told in (
        ("x,y,z\n1,2\n", "row 2: '1 2' is not 3 numbers; mend the row"),
        ("x,y,z,x\n1,2,3,4\n", "row 1: a column's name occurs twice"),
        ("a,b,c\n1,2,3\n", "row 1: 'a b c' is not 3 numbers"),
        ("3\n1 2 3\n4 5 6\n", "row 2: '1 2 3' is not 1 numbers"),
        ("x,y,z\n", "holds no points"),
        ("2\n0,5 1,5 2,5\n3,5 4,5 5,5\n", "row 2: '0,5 1,5 2,5' has commas within columns"),
        ("0,5;1,5;2,5\n", "row 1: '0,5;1,5;2,5' has commas within columns"),
    ):
        with pytest.raises(ZooError, match=re.escape(told)):
            read(tmp_path, text, "bad.csv")


@pytest.mark.parametrize(("name", "separator"), [("a.xyz", " "), ("a.txt", "\t"), ("a.csv", ", "), ("a.pts", "  ")])
def test_xyz(name, separator, tmp_path):
    rows = "".join(separator.join(map(repr, row)) + "\n" for row in np.hstack([XYZ, XYZ[:, :1]]).astype(float).tolist())
    cloud = read(tmp_path, "# x y z v\n\n" + rows + "\n", name)
    assert (
        np.array_equal(cloud.xyz, XYZ) and np.array_equal(cloud.features, XYZ[:, :1]) and cloud.names == ("column 4",)
    )


# meshes ---------------------------------------------------------------------------------------------------------------


def mesh_files():
    triangles = [corner for square in SQUARES for corner in (square[:3], (square[0], *square[2:]))]
    corners = CUBE[np.array(triangles)].astype("<f4")
    binary = b"solid but binary".ljust(80) + struct.pack("<I", 12)
    binary += b"".join(struct.pack("<3f", 0, 0, 0) + corner.tobytes() + b"\0\0" for corner in corners)
    loops = "".join(
        "facet normal 0 0 0\n outer loop\n"
        + "".join(f"  vertex {x} {y} {z}\n" for x, y, z in t)
        + " endloop\nendfacet\n"
        for t in corners.tolist()
    )
    vertices = "".join(f"v {x} {y} {z}\n" for x, y, z in CUBE)
    obj = (
        vertices
        + "vn 0 0 1\nusemtl bone\n"
        + "".join(f"f {a + 1}/1/1 {b + 1}//1 {c + 1} {d + 1}\n" for a, b, c, d in SQUARES)
    )
    back = vertices + "".join("f " + " ".join(str(corner - 8) for corner in square) + "\n" for square in SQUARES)
    points = "".join(f"{x} {y} {z}\n" for x, y, z in CUBE)
    faces = "".join("4 " + " ".join(map(str, square)) + " 255 0 0\n" for square in SQUARES)
    return {
        "binary.stl": binary,
        "ascii.stl": f"solid cube\n{loops}endsolid cube\n",
        "slashes.obj": obj,
        "backwards.obj": back,
        "a.off": f"OFF # a cube\n# of\n8 6 0\n{points}\n{faces}",
        "beside.off": f"OFF 8 6 12\n{points}{faces}",
    }


@pytest.mark.parametrize("name", mesh_files())
def test_meshes_are_drawn_from_uniformly(name, tmp_path):
    cloud = read(tmp_path, mesh_files()[name], name, surface_points=6000)
    again, other = (read_cloud(tmp_path / name, surface_points=6000, seed=seed).xyz for seed in (0, 1))
    assert np.array_equal(cloud.xyz, again) and not np.array_equal(cloud.xyz, other)
    on_side = np.isclose(cloud.xyz[:, :, None], [0.0, 1.0], atol=1e-6).reshape(6000, 6)
    assert (on_side.sum(1) >= 1).all() and np.abs(on_side.mean(0) - 1 / 6).max() < 4 * np.sqrt(5 / 36 / 6000)
    # within a side: the mean and the variance of a uniform square
    top = cloud.xyz[on_side[:, 5], :2]
    assert np.abs(top.mean(0) - 0.5).max() < 0.04 and np.abs(top.var(0) - 1 / 12).max() < 0.01


def test_area_decides(tmp_path):
    # two triangles, one of nine times the area, and one that is a line
    obj = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 5\nv 3 0 5\nv 0 3 5\nf 1 2 3\nf 4 5 6\nf 1 1 2\n"
    xyz = read(tmp_path, obj, "a.obj", surface_points=4000).xyz
    assert set(np.round(xyz[:, 2], 9)) == {0, 5} and abs((xyz[:, 2] > 1).mean() - 0.9) < 0.02
    assert read(tmp_path, "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "b.obj").xyz.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


# masks ----------------------------------------------------------------------------------------------------------------


def nifti(voxels, *, order="<", sform=None, qform=None, size=(2, 3, 4), slope=0.0, intercept=0.0, handed=1.0):
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64}
    code = voxels.dtype.str[1:]
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, voxels.ndim, *voxels.shape, *[1] * (7 - voxels.ndim))
    struct.pack_into(order + "hh", head, 70, codes[code], 8 * voxels.dtype.itemsize)
    struct.pack_into(order + "8f", head, 76, handed, *size, 0, 0, 0, 0)
    struct.pack_into(order + "3f", head, 108, 352, slope, intercept)
    struct.pack_into(order + "2h", head, 252, qform is not None, sform is not None)
    if qform is not None:
        struct.pack_into(order + "6f", head, 256, *qform)
    if sform is not None:
        struct.pack_into(order + "12f", head, 280, *np.ravel(sform))
    head[344:348] = b"n+1\0"
    return bytes(head) + voxels.astype(order + code).tobytes(order="F")


def two_boxes(dtype="u1"):
    voxels = np.zeros((9, 8, 7), dtype)
    voxels[1:6, 1:6, 1:6] = 1
    voxels[6:8, 1:6, 1:6] = 5
    return voxels


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_mask(order, dtype, tmp_path):
    cloud = read(tmp_path, nifti(two_boxes(dtype), order=order), "a.nii")
    packed = read(tmp_path, gzip.compress(nifti(two_boxes(dtype), order=order)), "a.nii.gz")
    assert np.array_equal(cloud.xyz, packed.xyz) and np.array_equal(cloud.label, packed.label)
    # the border of each label, where the two touch as well: a shell of 5^3 voxels, and all of 2 * 5 * 5
    assert (cloud.label == 1).sum() == 5**3 - 3**3 and (cloud.label == 5).sum() == 2 * 5 * 5
    assert cloud.xyz.min(0).tolist() == [2, 3, 4] and cloud.xyz.max(0).tolist() == [14, 15, 20], "voxel sizes count"


def test_mask_at_the_edge_of_the_volume(tmp_path):
    assert len(read(tmp_path, nifti(np.ones((3, 3, 3), "u1")), "a.nii").xyz) == 26


def test_masks_are_segmentations(tmp_path):
    for i in range(12):
        (tmp_path / f"p{i}.nii").write_bytes(nifti(np.roll(two_boxes(), i % 2, 1), size=(1, 1, i + 1)))
    data = create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=50)
    assert data.prepare().outputs.classes == ("1", "5")
    batch = data.part("test").batch(np.arange(1))
    assert np.bincount(batch["all_label"][0]).tolist() == [98, 50]


def test_world_coordinates(tmp_path):
    voxels = np.zeros((5, 5, 5), "u1")
    voxels[1, 2, 3] = 1
    sform = [[0, 2, 0, 10], [-3, 0, 0, 20], [0, 0, 4, 30]]
    at = lambda **options: read(tmp_path, nifti(voxels, **options), "a.nii").xyz  # noqa: E731
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(at(), at(sform=sform))
    assert at(sform=sform, qform=(0, 0, 0, 1, 1, 1)).tolist() == [[14, 17, 42]], "the sform goes before the qform"
    # a quarter turn about z: (x, y) to (-y, x)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(at(qform=(0, 0, half, 1, 2, 3)), [[1 - 6, 2 + 2, 3 + 12]], atol=1e-5)
    np.testing.assert_allclose(at(qform=(0, 0, 0, 0, 0, 0), handed=-1.0), [[2, 6, -12]])
    # values are scaled before they are labels
    assert read(tmp_path, nifti(voxels, slope=2.0, intercept=0.0), "a.nii").label.tolist() == [2]


# what is refused ------------------------------------------------------------------------------------------------------

LINES = "".join(f"{x} {y} {z}\n" for x, y, z in XYZ.tolist())
ASCII = HEADER.format(kind="ascii", n=50, properties=FLOATS)
GOOD = ply(xyz_columns())


def spoiled(value, place=7):
    xyz = XYZ.copy()
    xyz[place, 1] = value
    return xyz


# name: file, content, what is wrong, remedy
BAD = {
    "empty file": ("a.ply", "", "is empty (0 bytes)", "get or write it again"),
    "no points": ("a.ply", ply(xyz_columns(XYZ[:0])), "holds no points", "drop the file"),
    "no rows": ("a.xyz", "# nothing\n", "holds no points", "drop the file"),
    "nan": ("a.ply", ply(xyz_columns(spoiled(np.nan))), "point 8: coordinates", "drop these points"),
    "infinity": ("a.ply", ply(xyz_columns(spoiled(-np.inf))), "point 8: coordinates", "drop these points"),
    "nan in text": ("a.xyz", "0 0 0\n1 nan 1\n", "point 2: coordinates 1 nan 1", "drop these points"),
    "nan in a feature": (
        "a.ply",
        ply([*xyz_columns(), ("curvature", "f4", spoiled(np.nan)[:, 1])]),
        "point 8: 'curvature' is not finite",
        "drop them",
    ),
    "wrong byte order": (
        "a.ply",
        GOOD.replace(b"little", b"big"),
        "are no lengths: the byte order or the types in its header are wrong",
        "write the file anew",
    ),
    "wrong byte order of round numbers": (
        "a.ply",
        ply(xyz_columns(np.round(XYZ))).replace(b"little", b"big"),
        "are no lengths: the byte order",
        "write the file anew",
    ),
    "no ply": ("a.plY", b"solid" + GOOD, "no PLY file", "write it anew"),
    "no end of the header": ("a.ply", GOOD.replace(b"end_header", b"comment"), "have an 'end_header'", "write it anew"),
    "no format": ("a.ply", ASCII.replace("format ascii 1.0\n", "") + LINES, "states no format", "write the file anew"),
    "unknown type": ("a.ply", ASCII.replace("float y", "real y"), "row 5: 'property real y' is no line", "anew"),
    "no vertices": ("a.ply", ASCII.replace("vertex", "edge") + LINES, "no element 'vertex'", "write the file anew"),
    "no z": ("a.ply", ply(xyz_columns()[:2]), "has no 'z' among x, y", "write x, y and z"),
    "too many announced": ("a.ply", ply(xyz_columns(), n=51), "ends in 'vertex' 51 of 51", "cut off"),
    "too few announced": ("a.ply", ply(xyz_columns(), n=49), "12 bytes more than its header announces", "anew"),
    "cut off": ("a.ply", GOOD[:-5], "ends in 'vertex' 50 of 50", "cut off"),
    "text cut off": ("a.ply", ASCII + LINES[: LINES.rindex("\n", 0, -1) + 1], "ends in 'vertex' 50 of 50", "cut off"),
    "text too long": ("a.ply", ASCII + LINES + "1 2 3\n", "1 lines more than its header announces", "anew"),
    "short row": ("a.ply", ASCII + LINES.replace("\n", "\n1 2\n", 1), "row 9: '1 2' is not 3 numbers", "mend the row"),
    "blank row": ("a.ply", ASCII + LINES.replace("\n", "\n\n", 1), "row 9: '' is not 3 numbers", "mend the row"),
    "faces cut off": ("a.ply", ply(xyz_columns(CUBE), faces=SQUARES)[:-3], "ends in 'face' 6 of 6", "cut off"),
    "face without corner": (
        "a.ply",
        ply(xyz_columns(CUBE), "ascii", [(0, 1, 2)]).replace(b"7 3 0 1 2", b"7 3 0 1"),
        "row 19: '7 3 0 1' is no 'face'",
        "mend the row",
    ),
    "face of nowhere": ("a.ply", ply(xyz_columns(CUBE), faces=[(0, 1, 8)]), "face 1: names vertex 8 of 8", "mend"),
    "faces without area": ("a.ply", ply(xyz_columns(CUBE), faces=[(0, 0, 1)]), "1 faces have no area", "mend the mesh"),
    "label with a fraction": (
        "a.ply",
        ply([*xyz_columns(), ("label", "f4", spoiled(0.5)[:, 1] * 0 + 0.5)]),
        "label 1 is 0.5, no whole number",
        "mend the row",
    ),
    "text in numbers": ("a.xyz", "1 2 3\n4 five 6\n", "row 2: '4 five 6' is not 3 numbers", "mend the row"),
    "ragged": ("a.xyz", "1 2 3\n4 5 6 7\n", "row 2: '4 5 6 7' is not 3 numbers", "mend the row"),
    "two columns": ("a.csv", "1,2\n3,4\n", "row 1: 2 columns, no x y z", "check the separator"),
    "unknown suffix": ("a.plyy", GOOD, "unknown point-cloud format '.plyy'", "did you mean '.ply'?"),
    "pcd without header": ("a.pcd", LINES, "row 1: no line of a PCD header", "write it anew"),
    "pcd of other length": (
        "a.pcd",
        PCD.format(**PLAIN, n=51, data="binary").encode() + XYZ.tobytes(),
        "holds 600 bytes of points, its header announces 612",
        "get it again",
    ),
    "pcd text of other length": (
        "a.pcd",
        PCD.format(**PLAIN, n=49, data="ascii") + LINES,
        "holds 50 points, its header announces 49",
        "get it again",
    ),
    "pcd of other numbers": (
        "a.pcd",
        PCD.format(**{**PLAIN, "type": "F F Q"}, n=50, data="binary"),
        "its SIZE, TYPE and COUNT name no numbers",
        "write the file anew",
    ),
    "pcd of fewer types": (
        "a.pcd",
        PCD.format(**{**PLAIN, "type": "F F"}, n=50, data="binary"),
        "have different lengths",
        "write the file anew",
    ),
    "pcd without points": ("a.pcd", PCD.format(**PLAIN, n="x", data="ascii"), "no number of POINTS", "write"),
    "pcd of another kind": ("a.pcd", PCD.format(**PLAIN, n=50, data="zip"), "DATA zip", "save it as ascii, binary"),
    "stl cut off": ("a.stl", mesh_files()["binary.stl"][:-9].replace(b"solid", b"cube."), "header announces", "cut"),
    "stl without triangle": ("a.stl", b"\0" * 84, "holds no triangle", "drop the file"),
    "text stl cut off": ("a.stl", mesh_files()["ascii.stl"][:-100], "ends after", "get it again"),
    "text stl with a word": (
        "a.stl",
        mesh_files()["ascii.stl"].replace("vertex 0.0 0.0 0.0", "vertex 0.0 o 0.0", 1),
        "row 4: 'vertex 0.0 o 0.0' is not 3 coordinates",
        "mend the row",
    ),
    "obj with two corners": ("a.obj", "v 0 0 0\nv 1 0 0\nf 1 2\n", "row 3: 'f 1 2' is no face", "mend the row"),
    "obj with a word": ("a.obj", "v 0 zero 0\n", "row 1: 'v 0 zero 0' is not 3 coordinates", "mend the row"),
    "obj of nowhere": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "names vertex 8 of 3", "mend the face"),
    "obj before the first": ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -9\n", "face 1: names vertex", "mend the face"),
    "no off": ("a.off", "8 6 0\n", "row 1: does not begin with OFF", "write the file anew"),
    "off without counts": ("a.off", "OFF\n0.5 0 0\n", "row 2: no numbers of vertices and faces", "write the file anew"),
    "off cut off": ("a.off", mesh_files()["a.off"][:-60], "rows for 8 vertices and 6 faces", "get it again"),
    "off with few corners": (
        "a.off",
        mesh_files()["beside.off"].replace("4 0 1 3 2 255 0 0", "4 0 1 3"),
        "row 10: 3 corners of 4",
        "mend the row",
    ),
    "off with a word": (
        "a.off",
        mesh_files()["beside.off"].replace("4 0 1 3 2", "4 0 1 b 2"),
        "row 10: '4 0 1 b 2 255 0 0' is no face",
        "mend the row",
    ),
    "no nifti": ("a.nii", b"\0" * 400, "no NIfTI-1 file of one piece", "convert it to .nii.gz"),
    "broken gzip": ("a.nii.gz", gzip.compress(nifti(two_boxes()))[:-20], "gzip fails", "get it again"),
    "nifti cut off": ("a.nii", nifti(two_boxes())[:-20], "do not hold 9 x 8 x 7 voxels", "cut off"),
    "several volumes": ("a.nii", nifti(np.ones((2, 2, 2, 3), "u1")), "dimensions [2, 2, 2, 3]", "split the file"),
    "image, no mask": ("a.nii", nifti(two_boxes("f4") * np.float32(0.3)), "no whole numbers", "give a label mask"),
    "empty mask": ("a.nii", nifti(np.zeros((4, 4, 4), "u1")), "holds no points", "drop the file"),
    "flat affine": ("a.nii", nifti(two_boxes(), sform=np.zeros((3, 4))), "affine has no volume", "mend the header"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case, tmp_path):
    name, content, what, remedy = BAD[case]
    with pytest.raises(ZooError) as caught:
        read(tmp_path, content, name)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / name)) or case == "unknown suffix"
    assert what in text and remedy in text.partition(what)[2] and ";" in text and "\n" not in text


def test_a_missing_file_and_a_number_format_that_is_none(tmp_path):
    with pytest.raises(ZooError, match="a.ply: no such file; check the path"):
        read_cloud(tmp_path / "a.ply")
    voxels = bytearray(nifti(two_boxes()))
    struct.pack_into("<h", voxels, 70, 32)  # complex
    with pytest.raises(ZooError, match="data type 32 is no plain number; save the mask as integers"):
        read(tmp_path, bytes(voxels), "a.nii")


def test_suffixes(tmp_path):
    names = {"a.nii.gz": ".nii.gz", "a.b.PLY": ".ply", "a": ""}
    assert {name: suffix(tmp_path / name) for name in names} == names
    assert stem(tmp_path / "p1.left.nii.gz") == "p1.left" and stem(tmp_path / "a.b.PLY") == "a.b"
    own = {".ply", ".pcd", ".xyz", ".txt", ".pts", ".csv", ".npy", ".stl", ".obj", ".off", ".vtp", ".vtu", ".vtk"}
    assert set(READERS) == {*own, ".nii", ".nii.gz", ".nrrd", ".mha"}
