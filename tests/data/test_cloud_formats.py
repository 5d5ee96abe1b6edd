"""Forms that a format takes in the wild, further formats, and adapters that read by themselves."""

import base64
import gzip
import importlib.util
import struct
import sys
import zlib

import nibabel
import numpy as np
import pytest
from statezoo.zoo.api import create_dataset
from statezoo.zoo.data.cloud_columns import Cloud
from statezoo.zoo.data.cloud_pack import Item
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.data.clouds import PointClouds
from statezoo.zoo.errors import ZooError

RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(20, 3))
TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
LOOP = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
SOLID = f"solid a\n{LOOP}endsolid a\n"
BINARY = b"made by hand".ljust(80) + struct.pack("<I", 1) + struct.pack("<12f", 0, 0, 1, *np.ravel(TRIANGLE)) + b"\0\0"
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def read(folder, content, name, **options):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_cloud(file, **options)


# meshes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "capitals.stl": SOLID.upper(),
        "mark.stl": "\ufeff" + SOLID,
        "blanks.stl": "\n\n  " + SOLID.replace("\n", "\n\n"),
        "windows.stl": SOLID.replace("\n", "\r\n"),
        "nameless.stl": SOLID.replace(" a\n", "\n"),
        "two.stl": SOLID + SOLID.replace("0 0 0", "1 1 0"),
        "tail.stl": BINARY + b"\0\0\0",
        "solid tail.stl": b"solid" + BINARY[5:] + b"\r\n",
        "solid.stl": b"SOLID" + BINARY[5:],
        "plain.stl": BINARY,
        "continued.obj": OBJ + "f 1 \\\n2 \\\n3\n",
        "continued numbers.obj": "v 0 \\\n0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "comments.obj": "# by hand\n" + OBJ.replace("\n", " # a point\n") + "f 1 2 3 # a face\n",
        "mark.obj": "\ufeff" + OBJ + "f 1 2 3\n",
        "weights.obj": OBJ.replace("\n", " 1.0\n") + "f 1 2 3\n",
        "groups.obj": "mtllib a.mtl\no a\n"
        + OBJ
        + "vn 0 0 1\nvt 0 0\ns off\nusemtl b\ng c\nf 1/1/1 2/1/1 3/1/1\nl 1 2\n",
        "comments.off": "OFF # a triangle\n\n3 1 0 # counts\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 # a face\n",
        "beside.off": "OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
        "two counts.off": "OFF\n3 1\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 7\n",
        "normals.off": "NOFF\n3 1 0\n0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n3 0 1 2\n",
        "textures.off": "STOFF\n3 1 0\n0 0 0 0 1\n1 0 0 0 1\n0 1 0 0 1\n3 0 1 2\n",
    }.items(),
)
def test_meshes_as_they_are_written_elsewhere(name, content, tmp_path):
    cloud = read(tmp_path, content, name, surface_points=400)
    assert cloud.xyz.shape == (400, 3) and np.abs(cloud.xyz[:, 2]).max() == 0
    assert cloud.xyz.min() >= 0 and (name == "two.stl" or cloud.xyz[:, :2].sum(1).max() <= 1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.obj", "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\n", "rgb"),
        ("w.obj", "v 0 0 0 1 1 0 0\nv 1 0 0 1 0 1 0\nv 0 1 0 1 0 0 1\n", "rgb"),
        ("a.off", "COFF\n3 0 0\n0 0 0 1 0 0 1\n1 0 0 0 1 0 1\n0 1 0 0 0 1 1\n", "rgba"),
        ("b.off", "COFF\n3 0 0\n0 0 0 1 0 0\n1 0 0 0 1 0\n0 1 0 0 0 1\n", "rgb"),
        ("c.off", "OFF\n3 0 0\n0 0 0 1 0 0\n1 0 0 0 1 0\n0 1 0 0 0 1\n", "rgb"),
        (
            "n.off",
            "CNOFF\n3 0 0\n0 0 0 9 9 9 1 0 0 1\n1 0 0 9 9 9 0 1 0 1\n0 1 0 9 9 9 0 0 1 1\n",
            ["nx", "ny", "nz", *"rgba"],
        ),
    ],
)
def test_colours_and_normals_behind_coordinates(name, content, names, tmp_path):
    cloud = read(tmp_path, content, name)
    assert cloud.names == tuple(names) and cloud.xyz.tolist() == TRIANGLE
    at = cloud.names.index("r")
    assert cloud.features[:, at : at + 3].tolist() == np.eye(3).tolist()
    if "c.off" != name:
        faces = "f 1 2 3\n" if "obj" in name else "3 0 1 2\n"
        mesh = read(tmp_path, content.replace("3 0 0\n", "3 1 0\n", 1) + faces, f"mesh{name}", surface_points=300)
        np.testing.assert_allclose(mesh.features[:, at : at + 3].sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(mesh.features[:, at + 1], mesh.xyz[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.stl", BINARY + b"\0" * 50, "do not hold the 1 triangles"),
        ("b.stl", SOLID.replace("endsolid a\n", ""), "ends after 3 corners"),
        ("c.stl", SOLID.replace("facet", "facett"), "row 2: 'facett normal 0 0 1' fits no triangle"),
        ("d.stl", SOLID + LOOP.replace("vertex 0 1 0\n", "") + LOOP, "row 14: 'endloop' fits no triangle"),
        ("a.off", "4OFF\n3 1 0\n", "row 1: 4OFF; save it as text in three dimensions"),
        ("b.off", "OFF BINARY\n" + "\0" * 20, "row 1: OFF BINARY; save it as text"),
        ("c.off", "COFF\n2 0 0\n0 0 0 1 0 0\n1 0 0 1 0 0 1\n", "row 4: more or fewer numbers than the first vertex"),
        ("d.off", "NOFF\n1 0 0\n0 0 0\n", "row 3: '0 0 0' is not 6 coordinates"),
        ("a.obj", OBJ + "f 1 2 \\\n", "row 4: 'f 1 2 ' is no face"),
        ("b.obj", OBJ + "f 1 2 # 3\n", "row 4: 'f 1 2' is no face"),
    ],
)
def test_meshes_that_are_still_refused(name, content, what, tmp_path):
    with pytest.raises(ZooError) as caught:
        read(tmp_path, content, name)
    assert what in str(caught.value)


# npy ------------------------------------------------------------------------------------------------------------------


def saved(array, tmp_path, name="a.npy", **options):
    np.save(tmp_path / name, array, **options)
    return tmp_path / name


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i2", "u1", "<u4"])
@pytest.mark.parametrize("order", "CF")
def test_arrays_of_numpy(kind, order, tmp_path):
    table = np.asarray(RNG.integers(0, 99, (20, 5)).astype(kind), order=order)
    cloud = read_cloud(saved(table, tmp_path))
    assert np.array_equal(cloud.xyz, table[:, :3]) and np.array_equal(cloud.features, table[:, 3:])
    assert cloud.names == ("column 4", "column 5") and cloud.label is None
    rows = np.zeros(20, [("label", ">i4"), ("z", kind), ("y", kind), ("heat", "<f8"), ("x", kind)])
    rows["x"], rows["y"], rows["z"], rows["label"], rows["heat"] = *table[:, :3].T, np.arange(20), XYZ[:, 0]
    cloud = read_cloud(saved(rows, tmp_path))
    assert np.array_equal(cloud.xyz, table[:, :3]) and cloud.label.tolist() == list(range(20))
    assert cloud.names == ("heat",) and np.array_equal(cloud.features[:, 0], XYZ[:, 0].astype(np.float32))


class Loud:
    def __reduce__(self):
        return print, ("run",)


def test_bad_arrays_of_numpy(tmp_path, capsys):
    good = saved(XYZ, tmp_path).read_bytes()
    fields = np.zeros(3, [("x", "f4"), ("y", "f4"), ("w", "f4")])
    for array, what in (
        (XYZ[:, :2], "2 columns; save x, y, z"),
        (XYZ[0], "an array of shape (3,)"),
        (XYZ[None], "an array of shape (1, 20, 3)"),
        (XYZ.astype(complex), "and type complex128"),
        (XYZ.astype("U9"), "and type <U9"),
        (XYZ > 0, "and type bool"),
        (np.zeros((1, 5000)), "5000 columns"),
        (fields, "has no 'z'"),
        (np.zeros(3, [("x", "f4", 2), ("y", "f4"), ("z", "f4")]), "an array of shape (3,)"),
        (np.zeros((0, 3)), "holds no points"),
        (np.full((2, 3), np.nan), "point 1: coordinates nan nan nan"),
    ):
        with pytest.raises(ZooError) as caught:
            read_cloud(saved(array, tmp_path))
        assert what in str(caught.value)
    with pytest.raises(ZooError, match="and type object"):
        read_cloud(saved(np.array([[Loud()] * 3] * 3), tmp_path, allow_pickle=True))
    assert capsys.readouterr().out == "", "no pickle is opened"
    for content, what in (
        (good[:-1], "holds 479 bytes of points, its header announces 480"),
        (good + b"\0", "holds 481 bytes of points"),
        (good.replace(b"(20, 3)", b"(9" + b"9" * 12 + b", 3)")[: len(good)], "no array of numpy|header announces"),
        (b"\x93NUMPY\x03" + good[7:], "no array of numpy"),
        (b"text", "no array of numpy"),
    ):
        (tmp_path / "b.npy").write_bytes(content)
        with pytest.raises(ZooError, match=what):
            read_cloud(tmp_path / "b.npy")


# vtk ------------------------------------------------------------------------------------------------------------------

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5]], "<f4")


def vtp(coding="ascii", packed=False, head="I", order="<", pieces=1):
    """A square of two triangles and one of one quad, in every coding of VTK's XML."""
    appended = []

    def array(name, kind, values, components=1):
        values = np.asarray(values, kind).ravel()
        tag = f'<DataArray type="{ {"f": "Float", "i": "Int"}[kind[0]] }{8 * int(kind[1])}" Name="{name}" '
        tag += f'NumberOfComponents="{components}" format='
        if coding == "ascii":
            return f'{tag}"ascii">{" ".join(map(str, values.tolist()))}</DataArray>'
        data = values.astype(order + kind).tobytes()
        start = struct.pack(order + head, len(data))
        if packed:
            blocks = [data[i : i + 32] for i in range(0, len(data), 32)]
            small = [zlib.compress(block) for block in blocks]
            sizes = [len(blocks), 32, len(blocks[-1]) % 32 if blocks else 0, *map(len, small)]
            start, data = struct.pack(f"{order}{len(sizes)}{head}", *sizes), b"".join(small)
        if "raw" not in coding:
            start, data = (base64.b64encode(one) for one in (start, data))
        if coding == "binary":
            return f'{tag}"binary">\n{(start + data).decode()}\n</DataArray>'
        at = sum(map(len, appended))
        appended.append(start + data)
        return f'{tag}"appended" offset="{at}"/>'

    piece = (
        '<Piece NumberOfPoints="5" NumberOfVerts="0" NumberOfPolys="2"><PointData>'
        + array("label", "i4", [0, 0, 1, 1, 2])
        + array("Normals", "f4", [[0, 0, 1]] * 5, 3)
        + array("uv", "f4", SQUARE[:, :2], 2)
        + "</PointData><Points>"
        + array("Points", "f4", SQUARE, 3)
        + "</Points><Polys>"
        + array("connectivity", "i8", [0, 1, 2, 0, 1, 2, 3])
        + array("offsets", "i8", [3, 7])
        + "</Polys></Piece>"
    )
    first = '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="1.0" '
    first += f'byte_order="{"Little" if order == "<" else "Big"}Endian" header_type="UInt{8 * struct.calcsize(head)}"'
    first += ' compressor="vtkZLibDataCompressor"' if packed else ""
    text = f"{first}>\n<PolyData>{piece * pieces}</PolyData>".encode()
    if appended:
        text += b'<AppendedData encoding="%s">_' % (b"raw" if "raw" in coding else b"base64")
        text += b"".join(appended) + b"</AppendedData>"
    return text + b"</VTKFile>\n"


@pytest.mark.parametrize("coding", ["ascii", "binary", "appended", "appended raw"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("head", "order"), [("I", "<"), ("Q", "<"), ("Q", ">")])
def test_polygons_of_vtp(coding, packed, head, order, tmp_path):
    cloud = read(tmp_path, vtp(coding, packed, head, order), "a.vtp", surface_points=300)
    assert cloud.names == ("nx", "ny", "nz", "uv_0", "uv_1") and np.abs(cloud.xyz[:, 2]).max() == 0
    np.testing.assert_allclose(cloud.features[:, 3:], cloud.xyz[:, :2], atol=1e-6)
    np.testing.assert_allclose(cloud.features[:, :3], [[0, 0, 1]] * 300, atol=1e-6)
    assert set(cloud.label.tolist()) == {0, 1}, "the vertex without a face carries nothing"


def test_pieces_of_vtp(tmp_path):
    text = vtp(pieces=2).replace(b'NumberOfPolys="2"', b'NumberOfPolys="0"')
    cloud = read(tmp_path, text, "a.vtp")
    assert np.array_equal(cloud.xyz, np.concatenate([SQUARE, SQUARE])) and cloud.label.tolist() == [0, 0, 1, 1, 2] * 2
    assert len(read(tmp_path, vtp(pieces=2), "b.vtp", surface_points=50).xyz) == 50


LEGACY = (
    "# vtk DataFile Version 3.0\na square\nASCII\nDATASET POLYDATA\nPOINTS 5 float\n0 0 0 1 0 0\n1 1 0 0 1 0 5 5 5\n"
    "VERTICES 1 2\n1 4\nPOLYGONS 2 9\n3 0 1 2\n4 0 1 2 3\nCELL_DATA 2\nSCALARS part int\nLOOKUP_TABLE default\n7 8\n"
    "POINT_DATA 5\nSCALARS label int 1\nLOOKUP_TABLE default\n0 0 1 1 2\nNORMALS normals float\n"
    + "0 0 1\n" * 5
    + "FIELD FieldData 1\nuv 2 5 double\n0 0 1 0 1 1 0 1 5 5\n"
)
VTU = (
    '<VTKFile type="UnstructuredGrid" version="0.1" byte_order="LittleEndian"><UnstructuredGrid>'
    '<Piece NumberOfPoints="4" NumberOfCells="2"><Points><DataArray type="Float64" NumberOfComponents="3">'
    "0 0 0 1 0 0 1 1 0 0 1 0</DataArray></Points><Cells>"
    '<DataArray type="Int32" Name="connectivity" format="ascii">0 1 2 3 3</DataArray>'
    '<DataArray type="Int32" Name="offsets" format="ascii">4 5</DataArray>'
    '<DataArray type="UInt8" Name="types" format="ascii">9 1</DataArray>'
    "</Cells></Piece></UnstructuredGrid></VTKFile>"
)


def test_legacy_vtk_and_grids(tmp_path):
    cloud = read(tmp_path, LEGACY, "a.vtk", surface_points=300)
    assert cloud.names == ("nx", "ny", "nz", "uv_0", "uv_1") and set(cloud.label.tolist()) == {0, 1}
    np.testing.assert_allclose(cloud.features[:, 3:], cloud.xyz[:, :2], atol=1e-6)
    points = LEGACY.replace("POLYGONS 2 9\n3 0 1 2\n4 0 1 2 3\n", "")
    assert np.array_equal(read(tmp_path, points, "b.vtk").xyz, SQUARE)
    assert read(tmp_path, VTU, "a.vtu", surface_points=30).xyz.shape == (30, 3)


def test_vtk_as_others_write_it(tmp_path):
    meshio = pytest.importorskip("meshio", reason="meshio is not installed: the oracle is absent")
    corners = np.array([[0, 1, 2], [0, 2, 3]])
    mesh = meshio.Mesh(SQUARE, [("triangle", corners)], point_data={"label": np.arange(5)})
    for suffix, options in (
        ("vtu", {"binary": False}),
        ("vtu", {"binary": True, "compression": None}),
        ("vtu", {"binary": True, "compression": "zlib"}),
        *(("vtk", {"file_format": form, "binary": binary}) for form in ("vtk42", "vtk51") for binary in (0, 1)),
    ):
        mesh.write(tmp_path / f"a.{suffix}", **options)
        cloud = read_cloud(tmp_path / f"a.{suffix}", surface_points=200)
        assert set(cloud.label.tolist()) == {0, 1, 2, 3} and np.abs(cloud.xyz[:, 2]).max() == 0


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (
            "a.vtp",
            vtp().replace(b'NumberOfPoints="5"', b'NumberOfPoints="6"'),
            "array 'Points' holds 15 numbers or bytes, its header announces 18",
        ),
        (
            "a.vtp",
            vtp("binary").replace(b'NumberOfPoints="5"', b'NumberOfPoints="4"'),
            "array 'Points' is broken .60 bytes for 48",
        ),
        ("a.vtp", vtp("appended raw")[:-60], "no XML|is cut off"),
        ("a.vtp", vtp("appended raw", True).replace(b"x\x9c", b"y\x9c"), "is broken"),
        ("a.vtp", vtp().replace(b"0 1 2 0 1 2 3", b"0 1 2 0 1 2 9"), "face 2: names vertex 9 of 5"),
        ("a.vtp", vtp().replace(b">3 7<", b">3 8<"), "holds 7 numbers or bytes, its header announces 8"),
        ("a.vtp", vtp().replace(b">3 7<", b">9 7<"), "its offsets do not divide its 7 corners"),
        ("a.vtp", vtp().replace(b"0 0 1 1 2<", b"0 0 1 1.5 2<"), "point 4: 'label' 1.5 does not fit its declared type"),
        ("a.vtp", vtp().replace(b'Name="Normals"', b'Name="uv"'), "the array 'uv_0' occurs twice"),
        ("a.vtp", vtp().replace(b"<VTKFile", b'<!DOCTYPE a [<!ENTITY b "c">]><VTKFile'), "declares types or entities"),
        ("a.vtp", vtp("binary", True).replace(b"ZLib", b"LZ4"), "is packed by vtkLZ4DataCompressor; save it with zlib"),
        ("a.vtp", VTU, "no VTKFile of PolyData"),
        ("a.vtu", VTU.replace(">9 1<", ">10 1<"), "cell 1 is of type 10, no polygon; extract the surface"),
        ("a.vtk", LEGACY.replace("POINTS 5", "POINTS 99999999999"), "is no count for a file of"),
        ("a.vtk", LEGACY.replace("POINTS 5", "POINTS 6"), "POINTS|no number"),
        ("a.vtk", LEGACY.replace("POLYGONS 2 9", "POLYGONS 2 8"), "cells do not fit their 8 numbers"),
        ("a.vtk", LEGACY.replace("POINT_DATA 5", "POINT_DATA 4"), "POINT_DATA of 4 rows for 5 points"),
        ("a.vtk", LEGACY.replace("POLYDATA", "STRUCTURED_POINTS"), "DATASET STRUCTURED_POINTS; save it as POLYDATA"),
        ("a.vtk", LEGACY.replace("POLYGONS", "TRIANGLE_STRIPS"), "has strips of triangles"),
        ("a.vtk", LEGACY + "more\n", "'MORE' is no section"),
        ("a.vtk", "POINTS\n", "does not begin with '# vtk DataFile Version'"),
    ],
)
def test_bad_vtk(name, content, what, tmp_path):
    with pytest.raises(ZooError, match=what):
        read(tmp_path, content, name)


# masks ----------------------------------------------------------------------------------------------------------------


def boxes(kind="i2"):
    voxels = np.zeros((9, 8, 7), kind)
    voxels[1:6, 1:6, 1:6], voxels[6:8, 1:6, 2:5] = 1, 5
    return voxels


AFFINE = np.array([[0, 2, 0, 10], [-3, 0, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])


def nrrd(voxels=None, encoding="raw", space="left-posterior-superior", affine=AFFINE, extra=""):
    voxels = boxes() if voxels is None else voxels
    turn = {"left-posterior-superior": [-1, -1, 1], "left-anterior-superior": [-1, 1, 1]}.get(space, [1, 1, 1])
    steps = (np.diag(turn) @ affine[:3]).T
    point = lambda row: "(" + ",".join(f"{value:g}" for value in row) + ")"  # noqa: E731
    head = (
        f"NRRD0004\n# by hand\ntype: short\ndimension: 3\nspace: {space}\nsizes: {' '.join(map(str, voxels.shape))}\n"
    )
    head += f"space directions: {' '.join(map(point, steps[:3]))}\nkinds: domain domain domain\nendian: little\n"
    head += f"encoding: {encoding}\nspace origin: {point(steps[3])}\n{extra}\n"
    data = voxels.tobytes(order="F")
    return head.encode() + (gzip.compress(data, mtime=0) if encoding == "gzip" else data)


def mha(voxels=None, packed=False, affine=AFFINE, last="LOCAL", extra=""):
    voxels = boxes() if voxels is None else voxels
    steps = np.diag([-1, -1, 1]) @ affine[:3]
    size = np.linalg.norm(steps[:, :3], axis=0)
    words = lambda values: " ".join(f"{value:g}" for value in np.ravel(values))  # noqa: E731
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    head += f"CompressedData = {packed}\nTransformMatrix = {words((steps[:, :3] / size).T)}\n"
    head += f"Offset = {words(steps[:, 3])}\nElementSpacing = {words(size)}\nDimSize = {words(voxels.shape)}\n"
    head += f"{extra}ElementType = MET_SHORT\n"
    data = voxels.tobytes(order="F")
    return f"{head}ElementDataFile = {last}\n".encode() + (zlib.compress(data) if packed else data)


def test_masks_are_the_same_in_every_format(tmp_path):
    nibabel.save(nibabel.Nifti1Image(boxes(), AFFINE), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti2Image(boxes(), AFFINE), tmp_path / "b.nii")
    wanted = read_cloud(tmp_path / "a.nii.gz")
    inside = np.argwhere(boxes() > 0)
    assert set(map(tuple, wanted.xyz)) <= set(map(tuple, inside @ AFFINE[:3, :3].T + AFFINE[:3, 3]))
    others = {"b.nii": (tmp_path / "b.nii").read_bytes(), "a.mha": mha(), "b.mha": mha(packed=True)}
    if importlib.util.find_spec("nrrd"):
        others |= {"a.nrrd": nrrd(), "b.nrrd": nrrd(encoding="gzip")}
        others |= {f"{s[:1]}.nrrd": nrrd(space=s) for s in ("right-anterior-superior", "left-anterior-superior")}
    for name, content in others.items():
        cloud = read(tmp_path, content, name)
        np.testing.assert_allclose(cloud.xyz, wanted.xyz, atol=1e-5, err_msg=name)
        assert np.array_equal(cloud.label, wanted.label)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4", "f8", "u2", "i8"])
def test_nifti_as_nibabel_writes_it(kind, tmp_path):
    turned = nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([2, 3, -4])
    affine = nibabel.affines.from_matvec(turned, [7, 8, 9])
    for form in ("sform", "qform"):
        image = nibabel.Nifti1Image(boxes(kind), affine, dtype=kind)
        image.set_sform(affine, int(form == "sform"))
        image.set_qform(affine, int(form == "qform"))
        nibabel.save(image, tmp_path / "a.nii.gz")
        again = nibabel.load(tmp_path / "a.nii.gz")
        cloud = read_cloud(tmp_path / "a.nii.gz")
        at = np.rint(nibabel.affines.apply_affine(np.linalg.inv(again.affine), cloud.xyz)).astype(int)
        np.testing.assert_allclose(nibabel.affines.apply_affine(again.affine, at), cloud.xyz, atol=1e-4)
        assert np.array_equal(np.asarray(again.dataobj)[tuple(at.T)], cloud.label)


def test_volumes_as_simpleitk_writes_them(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: the oracle is absent")
    pytest.importorskip("nrrd", reason="pynrrd is not installed")
    image = sitk.GetImageFromArray(boxes("u2").T)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((4, 5, 6))
    image.SetDirection(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    wanted = read_cloud(tmp_path / "a.nii")
    for suffix in ("nrrd", "mha"):
        for packed in (False, True):
            sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"), useCompression=packed)
            cloud = read_cloud(tmp_path / f"a.{suffix}")
            np.testing.assert_allclose(cloud.xyz, wanted.xyz, atol=1e-4)
            assert np.array_equal(cloud.label, wanted.label)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.mha", mha()[:-1], "do not hold 9 x 8 x 7 voxels; it is cut off"),
        ("a.mha", mha() + b"\0", "holds more than the 1008 bytes"),
        ("a.mha", mha(packed=True)[:-9], "do not hold 9 x 8 x 7 voxels|unpacking fails"),
        ("a.mha", mha(last="/etc/passwd"), "its voxels lie in another file"),
        ("a.mha", mha().replace(b"9 8 7", b"9 8 7 2"), r"dimensions \[9, 8, 7, 2\], not one volume"),
        ("a.mha", mha().replace(b"9 8 7", b"9999 9999 9999"), "more than 536870912; crop the mask"),
        ("a.mha", mha().replace(b"9 8 7", b"900 800 700"), "do not hold 900 x 800 x 700 voxels"),
        ("a.mha", mha().replace(b"MET_SHORT", b"MET_WORD"), "no MetaImage of a volume"),
        ("a.mha", mha(extra="NDims = 3\n"), "'NDims' is no new key"),
        ("a.mha", mha(extra="ElementNumberOfChannels = 3\n"), "are to be single numbers"),
        (
            "a.mha",
            mha(affine=np.zeros((4, 4)) + np.eye(4) * [1, 1, 0, 1]).replace(b"nan", b"0"),
            "affine has no volume",
        ),
        ("a.nrrd", nrrd()[:-1], "do not hold 9 x 8 x 7 voxels; it is cut off"),
        ("a.nrrd", nrrd() + b"\0", "holds more than the 1008 bytes"),
        ("a.nrrd", nrrd(encoding="gzip")[:-9], "gzip fails"),
        ("a.nrrd", nrrd(extra="data file: /etc/passwd\n"), "its voxels lie elsewhere"),
        ("a.nrrd", nrrd(extra="byte skip: -1\n"), "its voxels lie elsewhere"),
        ("a.nrrd", nrrd(encoding="bzip2"), "encoding bzip2: no plain numbers, raw or gzip"),
        ("a.nrrd", nrrd().replace(b"9 8 7", b"900 800 700"), "do not hold 900 x 800 x 700 voxels"),
        ("a.nrrd", nrrd(extra="type: short\n"), "no NRRD file of one piece"),
        ("a.nrrd", b"NRRD0004\ntype: short", "no NRRD file of one piece"),
    ],
)
def test_bad_volumes(name, content, what, tmp_path):
    if name.endswith("nrrd"):
        pytest.importorskip("nrrd", reason="pynrrd is not installed")
    with pytest.raises(ZooError, match=what):
        read(tmp_path, content, name)


def test_masks_that_unpack_without_end_are_refused(tmp_path):
    """3 GB of zeros behind a header that announces a small mask, or all of them."""
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), "u1"), np.eye(4))
    small = image.to_bytes()
    large = bytearray(small)
    struct.pack_into("<3h", large, 42, 2000, 2000, 800)
    zeros = gzip.compress(bytes(1 << 24), mtime=0) * 64  # members follow each other
    for head, what in ((small, "holds more than the 416 bytes"), (bytes(large), "voxels are more than 536870912")):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(head, mtime=0) + zeros)
        with pytest.raises(ZooError, match=what):
            read_cloud(tmp_path / "a.nii.gz")
    struct.pack_into("<3h", large, 42, 700, 700, 700)
    with pytest.raises(ZooError, match="do not hold 700 x 700 x 700 voxels"):
        read(tmp_path, gzip.compress(bytes(large)), "b.nii.gz")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nrrd", None)  # an import fails
    with pytest.raises(ZooError, match=r"a.nrrd: reading .nrrd needs nrrd, .*; pip install 'statezoo\[formats\]'$"):
        read(tmp_path, nrrd(), "a.nrrd")


# adapters that read by themselves -------------------------------------------------------------------------------------


class Atlas(PointClouds):
    """Several clouds of one file, with labels of points."""

    tasks = ("segmentation", "classification")
    group = "cloud"
    license = "none"
    name = "atlas"
    reads = 0

    def source_files(self):
        """One file."""
        return ("atlas.npz",)

    def items(self):
        """A cloud for each of its arrays."""
        with np.load(self.folder / "atlas.npz") as file:
            return [Item(name, name, "atlas.npz", category="ab"[i % 2]) for i, name in enumerate(sorted(file))]

    def places(self, items):
        """In order."""
        return {"train": np.arange(6), "valid": np.arange(6, 8), "test": np.arange(8, 10)}

    def read(self, item):
        """One array: x y z label."""
        type(self).reads += 1
        with np.load(self.folder / item.cloud) as file:
            table = file[item.id]
        return Cloud(table[:, :3], np.zeros((len(table), 0), np.float32), (), table[:, 3])

    def new_items(self, files):
        """All clouds of all files."""
        return [Item(f"{file.stem}-{i}", "", file.as_posix()) for file in files for i in range(2)]


def atlas(folder, change=lambda table: table):
    tables = {f"c{i}": np.column_stack([XYZ + i, np.arange(20) % 3]) for i in range(10)}
    tables["c4"] = change(tables["c4"])
    np.savez(folder / "atlas.npz", **tables)
    return tables


def test_an_adapter_reads_by_itself_several_clouds_of_one_file(tmp_path):
    tables = atlas(tmp_path)
    data = Atlas(root=tmp_path, points=20)
    assert data.prepare().outputs.classes == ("0", "1", "2") and data.counts["clouds"] == 10
    test = data.part("test")
    np.testing.assert_allclose(test.cloud(0), tables["c8"][:, :3], atol=1e-6)
    assert test.batch(np.arange(1))["all_label"][0].tolist() == (np.arange(20) % 3).tolist()
    before = Atlas.reads
    Atlas(root=tmp_path, points=20).prepare()
    assert Atlas.reads == before, "from the cache"
    assert "reader" in data._own_reader() and create_dataset("cloud-folder", root=tmp_path)._own_reader() == {}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: np.column_stack([t[:, :3], t[:, 3] + 0.5]), "label 1 is 0.5, no whole number"),
        (lambda t: np.column_stack([t[:, :3], t[:, 3] + 1e19]), "label 1 is 1e\\+19, which is too large"),
        (lambda t: t * [1, np.nan, 1, 1], "point 1: coordinates .* nan"),
        (lambda t: t[:0], "holds no points"),
        (lambda t: t.astype(np.int64), "read\\(\\) gave coordinates that are no float32 or float64"),
    ],
)
def test_what_an_adapter_reads_is_checked(change, what, tmp_path):
    atlas(tmp_path, change)
    with pytest.raises(ZooError, match=f"atlas.npz: {what}"):
        Atlas(root=tmp_path, points=20).prepare()
