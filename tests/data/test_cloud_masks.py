"""Masks of every format are the same points; what is no mask, or unpacks without end, is refused."""

import gzip
import importlib.util
import struct
import sys
import zlib

import nibabel
import numpy as np
import pytest
from statezoo.zoo.data.cloud_reader import read_cloud
from statezoo.zoo.errors import ZooError


def read(folder, content, name, **options):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_cloud(file, **options)


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
    size = np.maximum(np.linalg.norm(steps[:, :3], axis=0), 1e-9)
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
            mha(affine=np.zeros((4, 4)) + np.eye(4) * [1, 1, 0, 1]),
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
