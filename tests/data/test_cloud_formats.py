"""Forms that a format takes in the wild, further formats, and adapters that read by themselves."""

import struct
import subprocess
import sys
from dataclasses import replace

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


# adapters that read by themselves -------------------------------------------------------------------------------------


class Atlas(PointClouds):
    """Several clouds of one file, with labels of points."""

    tasks = ("segmentation", "classification")
    group = "cloud"
    license = "none"
    name = "atlas"
    reads = (".npz",)
    calls = 0

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
        type(self).calls += 1
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
    before = Atlas.calls
    Atlas(root=tmp_path, points=20).prepare()
    assert Atlas.calls == before, "from the cache"


class Scaled(Atlas):
    """Coordinates of another unit, which the zoo knows nothing of."""

    def __init__(self, *, unit: float = 1.0, axis: tuple = (), **config):
        super().__init__(**config)
        self.unit, self.axis = unit, axis

    def read(self, item):
        """Scaled."""
        cloud = super().read(item)
        scale = np.ones(3)
        scale[list(self.axis) or slice(None)] = self.unit
        return replace(cloud, xyz=cloud.xyz * scale)


def test_arguments_of_an_adapter_make_the_cached_arrays_anew(tmp_path):
    atlas(tmp_path)
    made = []
    for own in ({}, {"unit": 5.0}, {"unit": 5.0, "axis": (1,)}, {"unit": 1.0}):
        data = Scaled(root=tmp_path, points=20, **own)
        data.prepare()
        made.append(data.part("train").cloud(0))
    assert np.allclose(made[1], made[0] * 5) and np.allclose(made[2], made[0] * [1, 5, 1])
    assert np.array_equal(made[3], made[0])
    before = Atlas.calls
    data = Scaled(root=tmp_path, points=10, unit=5.0)  # points are the zoo's own, and drawn later
    data.prepare()
    assert Atlas.calls == before and data.part("train").batch(np.arange(1))["points"].shape == (1, 10, 3)


def test_an_argument_that_cannot_be_told_from_another_is_refused(tmp_path):
    atlas(tmp_path)
    with pytest.raises(ZooError, match="given as unit, a function, cannot be told"):
        Scaled(root=tmp_path, points=20, unit=lambda: 1).prepare()


NOTEBOOK = """
import sys
import numpy as np
from statezoo.zoo.data.clouds import PointClouds
from statezoo.zoo.data.cloud_columns import Cloud
from statezoo.zoo.data.cloud_pack import Item

class Mine(PointClouds):
    reads = (".npz",)
    def source_files(self): return ("atlas.npz",)
    def items(self): return [Item(f"c{i}", f"c{i}", "atlas.npz", category="ab"[i % 2]) for i in range(10)]
    def places(self, items): return {"train": np.arange(6), "valid": np.arange(6, 8), "test": np.arange(8, 10)}
    def read(self, item):
        table = np.load(self.folder / item.cloud)[item.id] * FACTOR
        return Cloud(table[:, :3], np.zeros((len(table), 0), np.float32), (), None)
Mine.domain, Mine.tasks, Mine.group = "geometry", ("classification",), "cloud"

for FACTOR in (1, 5):
    data = Mine(root=sys.argv[1], points=20, task="classification")
    data.prepare()
    print(data.part("train").cloud(0).sum())
"""


def test_an_adapter_that_is_in_no_file_is_read_anew(tmp_path):
    tables = atlas(tmp_path)
    run = subprocess.run([sys.executable, "-", tmp_path], input=NOTEBOOK, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    total = tables["c0"][:, :3].sum()
    assert np.allclose([float(line) for line in run.stdout.split()], [total, 5 * total])


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


def test_an_adapter_that_reads_by_itself_predicts_on_its_files(tmp_path):
    atlas(tmp_path)
    spec = Atlas(root=tmp_path, points=20).prepare()
    spec.save(tmp_path / "prep")
    (tmp_path / "new").mkdir()
    new = {f"more-{i}": np.column_stack([XYZ * (i + 1), np.zeros(20)]) for i in range(2)}
    np.savez(tmp_path / "new/more.npz", **new)
    part = Atlas(points=20).inference(tmp_path / "new", tmp_path / "prep")
    assert part.ids.tolist() == ["more-0", "more-1"]
    np.testing.assert_allclose(part.cloud(1), XYZ * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"file,group\na/0.ply,p\na/0.ply,q\n", "row 3: a/0.ply has a row above; take one of the two out"),
        (b"file,group,group\na/0.ply,p,q\n", "row 1: a column's name occurs twice"),
        (b"file,group\na/0.ply,p,q\n", "row 2: 3 columns of 2; mend the row"),
        (b"file,group\na/0.ply\n", "row 2: 1 columns of 2; mend the row"),
        (b"file,group\na/0.ply,M\xfcller\n", "no table in UTF-8"),
        (b'file,group\na/0.ply,"p\n', "no table in UTF-8 .unexpected end of data"),
    ],
)
def test_bad_tables_of_groups(text, what, tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a/0.npy", XYZ)
    (tmp_path / "groups.csv").write_bytes(text)
    with pytest.raises(ZooError, match=f"groups.csv: {what}"):
        create_dataset("cloud-folder", root=tmp_path).prepare()
