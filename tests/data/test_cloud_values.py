"""No number of a file is cut, wrapped around or lost: what a type cannot hold, named twice or miscounted is refused."""

import gzip
import struct

import numpy as np
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.cloud_columns import LARGEST_LABEL, declared, whole
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.ply import write_ply
from statezoo.zoo.errors import ZooError

POINTS = "0 0 0\n1 0 0\n0 1 0\n"


def read(folder, content, name, **options):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_cloud(file, **options)


def pcd(column, kind, values, data="ascii", points=3, width=None, fields="x y z"):
    """Three points with one more column."""
    size = int(kind[1])
    head = (
        f"VERSION 0.7\nFIELDS {fields} {column}\nSIZE 4 4 4 {size}\nTYPE F F F {kind[0]}\nCOUNT 1 1 1 1\n"
        f"WIDTH {points if width is None else width}\nHEIGHT 1\nPOINTS {points}\nDATA {data}\n"
    ).encode()
    rows = [f"{row} {value}\n" for row, value in zip(POINTS.splitlines(), values, strict=True)]
    if data == "ascii":
        return head + "".join(rows).encode()
    code = kind[0].lower() if kind[0] != "F" else "f"
    table = np.zeros(3, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("v", f"<{code}{size}")])
    table["x"], table["v"] = range(3), values
    return head + table.tobytes()


def ply(properties, rows, kind="ascii", after="", n=3):
    head = f"ply\nformat {kind} 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\n"
    head += "".join(f"property {one}\n" for one in properties) + after + "end_header\n"
    return head.encode() + (rows if isinstance(rows, bytes) else rows.encode())


def with_column(*values):
    return "".join(f"{row} {value}\n" for row, value in zip(POINTS.splitlines(), values, strict=True))


def nifti(voxels, slope=0.0, intercept=0.0):
    codes = {"u1": 2, "i2": 4, "f4": 16, "i8": 1024, "u8": 1280, "f8": 64}
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<hh", head, 70, codes[voxels.dtype.str[1:]], 8 * voxels.dtype.itemsize)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<3f", head, 108, 352, slope, intercept)
    head[344:348] = b"n+1\0"
    return bytes(head) + voxels.tobytes(order="F")


def voxel(value, kind):
    voxels = np.zeros((4, 4, 4), kind)
    voxels[1, 2, 3] = value
    return voxels


def stl(count, announced, tail=b""):
    return (
        b"\0" * 80 + struct.pack("<I", announced) + (struct.pack("<12f", *[0] * 3, *range(9)) + b"\0\0") * count + tail
    )


FACE = "element face {n}\nproperty list {kind} {entry} vertex_indices\n"
BINARY = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
LITTLE = "binary_little_endian"

# name: file, content, what is said
REFUSED = {
    # text that its declared type cannot hold
    "label 300 as one byte": ("a.pcd", pcd("label", "U1", (1, 300, 2)), "row 11: 'label' 300 does not fit"),
    "label below 0 as unsigned": ("a.pcd", pcd("label", "U4", (1, -1, 2)), "row 11: 'label' -1 does not fit"),
    "label 1.5 as whole": ("a.pcd", pcd("label", "I4", (1, 1.5, 2)), "row 11: 'label' 1.5 does not fit"),
    "label nan as whole": ("a.pcd", pcd("label", "I4", (1, "nan", 2)), "row 11: 'label' nan does not fit"),
    "feature 40000 as two bytes": ("a.pcd", pcd("heat", "I2", (1, 2, 40000)), "row 12: 'heat' 40000 does not fit"),
    "more than float64 counts": ("a.pcd", pcd("heat", "I8", (2**53 + 2, 2, 3)), "row 10: 'heat' 9.007199255e+15 does"),
    "feature beyond float": ("a.pcd", pcd("heat", "F4", (1e300, 2, 3)), "row 10: 'heat' 1e+300 does not fit"),
    "ply label 300 as uchar": (
        "a.ply",
        ply(["uchar label"], with_column(1, 300, 2)),
        "row 10: 'label' 300 does not fit",
    ),
    "ply 1.5 as int": ("a.ply", ply(["int heat"], with_column(1, 1.5, 2)), "row 10: 'heat' 1.5 does not fit"),
    "ply 1e300 as float": ("a.ply", ply(["float heat"], with_column(1, "1e300", 2)), "row 10: 'heat' 1e+300 does not"),
    "ply column beside a list": (
        "a.ply",
        ply(
            ["uchar label"],
            POINTS.replace("\n", " 1\n") + "256 3 0 1 2\n",
            after="element face 1\nproperty uchar label\nproperty list uchar int vertex_indices\n",
        ),
        "row 15: 'label' 256 does not fit",
    ),
    "corner beyond its type": (
        "a.ply",
        ply([], POINTS + "3 0 1 258\n", after=FACE.format(n=1, kind="uchar", entry="uchar")),
        "row 13: '3 0 1 258' is no 'face'",
    ),
    # labels
    "label 1e19 as double": (
        "a.ply",
        ply(["double label"], with_column(1, "1e19", 2)),
        "label 2 is 1e+19, which is too",
    ),
    "label 2^63 as U8": ("a.pcd", pcd("label", "U8", (1, 2**63, 2), "binary"), "label 2 is 9.22337e+18, which is too"),
    "label -2^63 as I8": ("a.pcd", pcd("label", "I8", (1, -(2**63), 2), "binary"), "label 2 is -9.22337e+18, which is"),
    "label 2^32 in text": ("a.csv", "x,y,z,label\n1,2,3,4294967296\n", "label 1 is 4.29497e+09, which is too large"),
    "label that is infinite": ("a.csv", "x,y,z,label\n1,2,3,inf\n", "label 1 is inf, no whole number"),
    "label that is no number": ("a.csv", "x,y,z,label\n1,2,3,nan\n", "label 1 is nan, no whole number"),
    "slope that leaves int64": ("a.nii", nifti(voxel(7, "i2"), 1e30), "label 7e+30 is too large"),
    "slope that leaves float64": ("a.nii", nifti(voxel(1e300, "f8"), 1e30), "holds values that are no whole numbers"),
    "label 2^40 of a mask": ("a.nii", nifti(voxel(2**40, "i8")), "label 1.09951e+12 is too large"),
    "label 2^63 of a mask": ("a.nii", nifti(voxel(2**63, "u8")), "label 9.22337e+18 is too large"),
    "scaled beyond 2^53": ("a.nii", nifti(voxel(2**60 + 1, "i8"), 2.0**-50), "values beyond 2^53 are scaled"),
    "infinite voxel": ("a.nii", nifti(voxel(np.inf, "f4")), "holds values that are no whole numbers"),
    # features and coordinates
    "feature beyond float32": ("a.csv", "x,y,z,heat\n1,2,3,4\n1,2,3,1e39\n", "point 2: 'heat' 1e+39 is too large"),
    # names
    "property twice": (
        "a.ply",
        ply(["int label", "int label"], with_column("1 2", "1 2", "1 2")),
        "row 8: the property 'l",
    ),
    "property twice but for case": (
        "a.ply",
        ply(["int label", "int Label"], with_column("1 2", "1 2", "1 2")),
        "'label' o",
    ),
    "coordinate twice": ("a.ply", ply(["float X"], with_column(1, 2, 3)), "'x' occurs twice"),
    "element twice": (
        "a.ply",
        ply([], POINTS * 2, after="element vertex 3\nproperty float q\n"),
        "row 7: the element 'v",
    ),
    "list twice": (
        "a.ply",
        ply(
            [],
            POINTS + "3 0 1 2 0\n",
            after=FACE.format(n=1, kind="uchar", entry="int") + "property list uchar int vertex_indices\n",
        ),
        "row 9: the property 'vertex_indices' occurs twice",
    ),
    "two lists of corners": (
        "a.ply",
        ply(
            [],
            POINTS + "3 0 1 2 0\n",
            after=FACE.format(n=1, kind="uchar", entry="int") + "property list uchar int vertex_index\n",
        ),
        "its faces have 2 lists",
    ),
    "two formats": (
        "a.ply",
        ply([], POINTS).replace(b"1.0\n", b"1.0\nformat ascii 1.0\n"),
        "row 3: 'format ascii 1.0'",
    ),
    "field twice": ("a.pcd", pcd("y", "F4", (1, 2, 3)), "the field 'y' occurs twice"),
    "field twice but for case": ("a.pcd", pcd("Y", "F4", (1, 2, 3)), "the field 'y' occurs twice"),
    "colour beside packed colours": (
        "a.pcd",
        pcd("rgb", "U4", (1, 2, 3))
        .replace(b"x y z rgb", b"x y z rgb r")
        .replace(b"4 4 4 4", b"4 4 4 4 4")
        .replace(b"F F F U", b"F F F U F")
        .replace(b"1 1 1 1", b"1 1 1 1 1")
        .replace(b"0 0 0 1\n1 0 0 2\n0 1 0 3\n", b"0 0 0 1 1\n1 0 0 2 1\n0 1 0 3 1\n"),
        "the field 'r' occurs twice",
    ),
    "line of a header twice": (
        "a.pcd",
        pcd("q", "F4", (1, 2, 3)).replace(b"DATA", b"POINTS 3\nDATA"),
        "row 9: POINTS occ",
    ),
    "name of csv twice": ("a.csv", "x,y,z,Label,label\n1,2,3,4,5\n", "a column's name occurs twice"),
    # counts
    "width times height": ("a.pcd", pcd("q", "F4", (1, 2, 3), width=4), "WIDTH 4 times HEIGHT 1 is not POINTS 3"),
    "pcd text with one more": ("a.pcd", pcd("q", "F4", (1, 2, 3), points=2), "holds 3 points, its header announces 2"),
    "pcd text with one less": ("a.pcd", pcd("q", "F4", (1, 2, 3), points=4), "holds 3 points, its header announces 4"),
    "pcd with more bytes": (
        "a.pcd",
        pcd("q", "F4", (1, 2, 3), "binary") + b"\0",
        "holds 49 bytes of points, its header",
    ),
    "ply with a row more": ("a.ply", ply([], POINTS + "1 1 1\n"), "1 lines more than its header announces"),
    "ply of 10^18 points": ("a.ply", ply([], BINARY, LITTLE, n=10**17), "ends in 'vertex' 4 of"),
    "ply text of 10^18 points": ("a.ply", ply([], POINTS, n=10**17), "ends in 'vertex' 4 of"),
    "ply of more points than digits": ("a.ply", ply([], BINARY, LITTLE, n="9" * 5000), "is no line of a PLY header"),
    "element without property": ("a.ply", ply([], BINARY, LITTLE, "element nothing 99999999999\n"), "has no property"),
    "list below 0": (
        "a.ply",
        ply([], BINARY + struct.pack("<b3i", -3, 0, 1, 2), LITTLE, FACE.format(n=1, kind="char", entry="int")),
        "'face' 1 has a list of length -3",
    ),
    "list of a fraction": (
        "a.ply",
        ply([], BINARY, LITTLE, FACE.format(n=1, kind="float", entry="int")),
        "is no line of",
    ),
    "corners in fractions": (
        "a.ply",
        ply([], POINTS + "3 0 1 1.5\n", after=FACE.format(n=1, kind="uchar", entry="float")),
        "number their corners in fractions",
    ),
    "list of 2^31 numbers": (
        "a.ply",
        ply([], BINARY + struct.pack("<I3i", 2**31, 0, 1, 2), LITTLE, FACE.format(n=1, kind="uint", entry="int")),
        "ends in 'face' 1 of 1",
    ),
    "face of two corners": (
        "a.ply",
        ply([], POINTS + "3 0 1 2\n2 0 1\n", after=FACE.format(n=2, kind="uchar", entry="int")),
        "face 2: has 2 corners",
    ),
    "second of mixed faces": (
        "a.ply",
        ply([], POINTS + "3 0 1 2\n4 0 1 2 -1\n3 0 1 2\n", after=FACE.format(n=3, kind="uchar", entry="int")),
        "face 2: names vertex -1 of 3",
    ),
    "faces without corners": (
        "a.ply",
        ply([], POINTS + "7\n", after="element face 1\nproperty uchar red\n"),
        "its faces have 0 lists",
    ),
    "off with a vertex more": (
        "a.off",
        OFF.replace("\n3 0 1 2", "\n5 5 5\n3 0 1 2"),
        "5 rows for 3 vertices and 1 faces",
    ),
    "off with a face more": ("a.off", OFF + "3 0 1 2\n", "5 rows for 3 vertices and 1 faces; its counts are wrong"),
    "off of 10^17 faces": ("a.off", OFF.replace("3 1 0", f"3 {10**17} 0"), "4 rows for 3 vertices and 1000"),
    "off of more digits": (
        "a.off",
        OFF.replace("3 1 0", f"3 {'9' * 5000} 0"),
        "row 2: no numbers of vertices and faces",
    ),
    "off of nowhere": ("a.off", OFF.replace("3 0 1 2", "3 0 1 3"), "face 1: names vertex 3 of 3"),
    "off below 0": ("a.off", OFF.replace("3 0 1 2", "3 0 1 -1"), "row 6: '3 0 1 -1' is no face"),
    "off with half a colour": ("a.off", OFF.replace("3 0 1 2", "3 0 1 2 255 0"), "row 6: 2 numbers behind 3 corners"),
    "off with a long vertex": ("a.off", OFF.replace("1 0 0", "1 0 0 7"), "row 4: '1 0 0 7' is not 3 coordinates"),
    "stl with a triangle more": ("a.stl", stl(3, 2), "do not hold the 2 triangles"),
    "stl with a triangle less": ("a.stl", stl(2, 3), "do not hold the 3 triangles"),
    "stl of 2^32 triangles": ("a.stl", stl(2, 2**32 - 1), "do not hold the 4294967295 triangles"),
    "text stl of four corners": (
        "a.stl",
        "solid\nfacet\nouter loop\n"
        + "vertex 0 0 0\n" * 4
        + "endloop\nouter loop\nvertex 1 0 0\nvertex 0 1 0\nendloop\n"
        "endfacet\nendsolid\n",
        "row 8: 'endloop' fits no triangle",
    ),
    "obj index 0": ("a.obj", OBJ + "f 0 1 2\nv 1 1 1\n", "row 4: 'f 0 1 2' is no face"),
    "obj of nowhere": ("a.obj", OBJ + "f 1 2 4\n", "face 1: names vertex 3 of 3"),
    "obj before the first": ("a.obj", OBJ + "f 1 2 3\nf 1 2 -4\n", "face 2: names vertex -1 of 3"),
    "obj half a corner": ("a.obj", OBJ + "f 1/x 2 3\n", "row 4: 'f 1/x 2 3' is no face"),
    "obj of more digits": ("a.obj", OBJ + f"f 1 2 {'3' * 5000}\n", "is no face"),
    "obj with five numbers": ("a.obj", OBJ + "v 1 2 3 4 5\n", "row 4: 'v 1 2 3 4 5' is not 3 coordinates"),
    "obj with a weight": ("a.obj", OBJ + "v 1 2 3 0.5\n", "row 4: a vertex of weight 0.5"),
    "obj colours of some": ("a.obj", OBJ + "v 1 2 3 1 0 0\n", "row 4: some vertices have colours"),
    "obj of curves": ("a.obj", OBJ + "curv 0 1 1 2 3\n", "row 4: 'curv 0 1 1 2 3' is no line of a mesh"),
    "mask with more bytes": ("a.nii", nifti(voxel(1, "u1")) + b"\0", "holds more than the 416 bytes"),
    "packed mask with more": (
        "a.nii.gz",
        gzip.compress(nifti(voxel(1, "u1")) + b"\0"),
        "holds more than the 416 bytes",
    ),
    # rows of tables
    "empty column": ("a.csv", "0,,0,1\n1,2,3,4\n", "row 1: column 2 of '0,,0,1' is empty"),
    "empty column in every row": ("a.csv", "0,,0,1\n1,,3,4\n", "row 1: column 2 of '0,,0,1' is empty"),
    "empty column later": ("a.csv", "0,1,0,1\n1, ,3,4\n", "row 2: column 2 of '1, ,3,4' is empty"),
    "empty first column": ("a.csv", "1,2,3\n,1,2,3\n", "row 2: column 1 of ',1,2,3' is empty"),
    "empty last column": ("a.csv", "x,y,z,label\n1,2,3,1\n1,2,3,\n", "row 3: column 4 of '1,2,3,' is empty"),
    "empty column of semicolons": ("a.txt", "0;;0;1\n", "row 1: column 2 of '0;;0;1' is empty"),
    "empty column of tabs": ("a.txt", "1\t2\t3\t4\n0\t\t0\t1\n", "row 2: two tabs follow each other"),
    "long row": ("a.csv", "1,2,3\n1,2,3,4\n", "row 2: '1 2 3 4' is not 3 numbers"),
    "short row": ("a.csv", "1,2,3,4\n1,2,3\n", "row 2: '1 2 3' is not 4 numbers"),
    "blanks within a column": ("a.csv", "1,2,3\n1,2,3\n1 2,3,4\n", "row 3: '1 2 3 4' is not 3 numbers"),
    "decimal commas later": (
        "a.txt",
        "1;2;3;4;5;6\n1;2;3;4;5;6\n0,5;1,5;2,5\n",
        "row 3: '0 5 1 5 2 5' is not 6 numbers",
    ),
    "a blank row": ("a.xyz", "1 2 3\n\n1 2 3\n", "row 2: '' is not 3 numbers"),
    "underscores": ("a.xyz", "1 2 3\n1_0 2 3\n", "row 2: '1_0 2 3' is not 3 numbers"),
    "digits of elsewhere": ("a.xyz", "1 2 3\n1 2 \u0663\n", "row 2: '1 2 \u0663' is not 3 numbers"),
    "a file of one row": ("a.txt", "1 " * 9000, "row 1: more than 4096 columns"),
    "count before the rows": ("a.pts", "4\n1 2 3\n4 5 6\n", "row 2: '1 2 3' is not 1 numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused(case, tmp_path):
    name, content, said = REFUSED[case]
    with pytest.raises(ZooError) as caught:
        read(tmp_path, content, name)
    text = str(caught.value)
    assert said in text and text.startswith(str(tmp_path / name)) and ";" in text and "\n" not in text


def test_labels_and_declared_types_at_their_bounds():
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"):
        values = np.array([0, 100], kind)
        assert whole("f", values).tolist() == [0, 100] and whole("f", values).dtype == np.int64
    assert whole("f", np.array([LARGEST_LABEL, -LARGEST_LABEL], "f8")).tolist() == [LARGEST_LABEL, -LARGEST_LABEL]
    for kind, low, high in (("u1", 0, 255), ("i2", -32768, 32767), ("u4", 0, 2**32 - 1), ("i8", -(2**53), 2**53)):
        values = declared("f", "v", np.array([low, high], float), kind, (1, 2))
        assert values.tolist() == [low, high] and values.dtype == kind
        for wrong in (low - 2, high + 2):
            with pytest.raises(ZooError, match="row 1: 'v' .* does not fit its declared type"):
                declared("f", "v", np.array([wrong], float), kind, (1, 2))


def test_coordinates_of_64_bits(tmp_path):
    head = b"FIELDS x y z\nSIZE 8 8 8\nTYPE I I I\nPOINTS 2\nDATA binary\n"
    rows = np.array([[1, 2, 3], [4, 2**53, 6]], "<i8")
    with pytest.raises(ZooError, match="point 2: 'y' 9.00.*e.15 is too large to be a coordinate"):
        read(tmp_path, head + (rows + [0, 1, 0]).tobytes(), "a.pcd")
    assert read(tmp_path, head + rows.tobytes(), "a.pcd").xyz.tolist() == rows.tolist()


def test_rows_that_end_in_a_separator(tmp_path):
    for text in ("1,2,3,\n4,5,6,\n", "x,y,z,\n1,2,3,\n4,5,6,\n", "1;2;3;\n4;5;6;\n", "x,y,z,\n1,2,3\n4,5,6\n"):
        assert read(tmp_path, text, "a.csv").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read(tmp_path, "1\t2\t3\n4\t 5\t 6\n", "a.txt").xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    cloud = read(tmp_path, "x,y,z,heat of skin\n1,2,3,4\n", "a.csv")
    assert cloud.names == ("heat of skin",) and cloud.features.tolist() == [[4]]


# what a mesh carries --------------------------------------------------------------------------------------------------

SHEET = np.array([[x, y, 0] for x in range(3) for y in range(3)], float)
QUADS = [(3 * x + y, 3 * x + y + 1, 3 * x + y + 4, 3 * x + y + 3) for x in range(2) for y in range(2)]


def sheet(labels, kind="ascii"):
    """A sheet of 3 x 3 vertices with labels, the sum of their coordinates, and 2 x 2 squares."""
    rows = np.column_stack([SHEET, labels, SHEET.sum(1)])
    after = FACE.format(n=4, kind="uchar", entry="int")
    if kind == "ascii":
        text = "".join(f"{x:g} {y:g} {z:g} {int(label)} {total}\n" for x, y, z, label, total in rows)
        return ply(
            ["int label", "float sum"], text + "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS), kind, after, 9
        )
    table = b"".join(struct.pack("<3fif", x, y, z, int(label), total) for x, y, z, label, total in rows)
    return ply(["int label", "float sum"], table + b"".join(struct.pack("<B4i", 4, *q) for q in QUADS), kind, after, 9)


@pytest.mark.parametrize("kind", ["ascii", LITTLE])
def test_points_of_a_mesh_have_the_labels_and_features_of_its_vertices(kind, tmp_path):
    cloud = read(tmp_path, sheet(np.arange(9), kind), "a.ply", surface_points=500)
    assert cloud.names == ("sum",) and cloud.features.dtype == np.float32 and cloud.label.dtype == np.int64
    np.testing.assert_allclose(cloud.features[:, 0], cloud.xyz.sum(1), atol=1e-6, err_msg="linear on each triangle")
    near = np.linalg.norm(cloud.xyz - SHEET[cloud.label], axis=1)
    assert near.max() < np.sqrt(5) / 2 and len(set(cloud.label.tolist())) == 9
    corner = np.abs(cloud.xyz - SHEET[4]).max(1) < 0.3
    assert corner.sum() > 5 and (cloud.label[corner] == 4).all(), "near a vertex its label"
    bare = read(
        tmp_path,
        ply(
            [],
            "".join(f"{x:g} {y:g} 0\n" for x, y, _ in SHEET) + "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS),
            "ascii",
            FACE.format(n=4, kind="uchar", entry="int"),
            9,
        ),
        "b.ply",
        surface_points=500,
    )
    assert np.array_equal(bare.xyz, cloud.xyz) and bare.label is None, "what is carried changes no draw"


def test_labelled_meshes_are_segmentations(tmp_path):
    """Labels in the mesh, or one per vertex beside it."""
    for i in range(12):
        side = (SHEET[:, 0] > 1).astype(int)
        (tmp_path / f"p{i}.ply").write_bytes(sheet(side if i % 2 else np.zeros(9)))
        if i % 2 == 0:
            (tmp_path / f"p{i}.seg").write_text("".join(f"{one}\n" for one in side))
    data = create_dataset("cloud-folder", root=tmp_path, task="segmentation", points=50, surface_points=300)
    assert data.prepare().outputs.classes == ("0", "1")
    assert min(data.check()["points_per_class"].values()) > 12 * 300 / 8
    with_features = create_dataset(
        "cloud-folder", root=tmp_path, task="segmentation", features=True, points=9, surface_points=9
    )
    assert with_features.prepare().inputs.tensors["features"].shape == (9, 1)
    (tmp_path / "p0.seg").write_text("1\n" * 300)
    with pytest.raises(ZooError, match="p0.seg: 300 labels for a cloud of 9 vertices; give one label per vertex"):
        create_dataset("cloud-folder", root=tmp_path, task="segmentation", surface_points=300).prepare()


# masks: what is background --------------------------------------------------------------------------------------------


def test_the_background_of_masks(tmp_path):
    voxels = np.full((5, 5, 5), 9, "i2")
    voxels[1:4, 1:4, 1:4] = 0
    assert read(tmp_path, nifti(voxels), "a.nii").label.tolist() == [9] * len(np.argwhere(voxels == 9)), "0 by default"
    cloud = read(tmp_path, nifti(voxels), "a.nii", background=9)
    assert cloud.label.tolist() == [0] * 26, "0 is a label where the background is another"
    assert read(tmp_path, nifti(voxels), "a.nii", background=-1).label.tolist().count(0) == 26
    floats = voxels.astype("f4")
    floats[voxels == 9] = np.nan
    floats[voxels == 0] = 3
    assert read(tmp_path, nifti(floats), "a.nii").label.tolist() == [3] * 26, "NaN belongs to nothing"
    with pytest.raises(ZooError, match="holds no points"):
        read(tmp_path, nifti(floats), "a.nii", background=3)


def test_the_background_is_an_option_of_the_adapter(tmp_path):
    for i in range(12):
        voxels = np.full((6, 5, 4 + i % 3), 255, "u1")
        voxels[1:3, 1:4, 1:3], voxels[3:5, 1:4, 1:3] = 0, 1
        (tmp_path / f"p{i}.nii").write_bytes(nifti(voxels))
    options = {"root": tmp_path, "task": "segmentation", "points": 20}
    assert create_dataset("cloud-folder", background=255, **options).prepare().outputs.classes == ("0", "1")
    assert create_dataset("cloud-folder", **options).prepare().outputs.values == (1, 255)


# nan ------------------------------------------------------------------------------------------------------------------


def test_nan_points_are_refused_or_dropped_and_counted(tmp_path):
    xyz = np.random.default_rng(0).normal(size=(40, 3))
    for i in range(12):
        mine = xyz + i
        mine[3, 1] = np.nan
        heat = np.ones(40)
        heat[7] = np.nan
        write_ply(tmp_path / f"p{i}.ply", mine, heat=heat)
        (tmp_path / f"p{i}.seg").write_text("".join(f"{k % 2}\n" for k in range(40)))
    make = lambda **options: create_dataset("cloud-folder", root=tmp_path, task="segmentation", **options)  # noqa: E731
    with pytest.raises(ZooError, match="point 4: coordinates .* or set data.nan_points=drop"):
        make().prepare()
    data = make(nan_points="drop", points=38)
    facts = data.check()
    assert facts["nan_points_dropped"] == 24 and facts["most_points"] == 38
    part = data.part("test")
    wanted = np.delete(np.arange(40) % 2, [3, 7])
    assert np.array_equal(part._span("label", "start", 0), wanted), "labels stay with their points"
    with pytest.raises(ZooError, match="unknown data.nan_points 'keep' in cloud-folder; valid: drop, refuse"):
        make(nan_points="keep")
    (tmp_path / "p0.ply").write_bytes(ply([], "nan 0 0\ninf 0 0\n0 0 0\n"))
    with pytest.raises(ZooError, match="point 1: coordinates inf 0 0"):
        read_cloud(tmp_path / "p0.ply", nan_points="drop")
    (tmp_path / "p0.ply").write_bytes(ply([], "nan 0 0\n" * 3))
    with pytest.raises(ZooError, match="holds no points"):
        read_cloud(tmp_path / "p0.ply", nan_points="drop")
    mesh = ply([], "nan 0 0\n0 0 0\n1 0 0\n3 0 1 2\n", after=FACE.format(n=1, kind="uchar", entry="int"))
    with pytest.raises(ZooError, match="point 1: coordinates nan 0 0"):
        read(tmp_path, mesh, "m.ply", nan_points="drop")


def test_organised_clouds_of_a_depth_camera(tmp_path):
    """A PCD of rows and columns has NaN where the camera saw nothing."""
    head = "FIELDS x y z label\nSIZE 4 4 4 1\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 2\nHEIGHT 2\nPOINTS 4\nDATA ascii\n"
    content = head + "0 0 1 3\nnan nan nan 0\n1 0 1 4\n0 1 1 255\n"
    with pytest.raises(ZooError, match="point 2: coordinates nan nan nan"):
        read(tmp_path, content, "a.pcd")
    cloud = read(tmp_path, content, "a.pcd", nan_points="drop")
    assert cloud.label.tolist() == [3, 4, 255] and cloud.counts == {"nan_points_dropped": 1}
