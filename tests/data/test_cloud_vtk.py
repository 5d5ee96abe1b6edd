"""VTK files in every coding are read exactly, or refused."""

import base64
import struct
import zlib

import numpy as np
import pytest
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.errors import ZooError


def read(folder, content, name, **options):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_cloud(file, **options)


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
