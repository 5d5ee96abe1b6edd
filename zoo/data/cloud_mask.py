"""Label masks (NIfTI, NRRD, MetaImage): the voxels at the border of each label, in the file's world units.

NIfTI-1 and -2 (https://nifti.nimh.nih.gov) through nibabel; world coordinates are the sform's where it is set, else the
qform's, else voxel numbers times the voxel sizes. `.nrrd` and `.mha` through SimpleITK, an extra; its world coordinates
point left and to the back, and are turned to NIfTI's, which point right and to the front.

A header announces how many voxels follow, so that its word is held against the file's size before memory is taken:
deflate makes at most 1,032 bytes out of one.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import ZooError
from .cloud_columns import EXACT, LARGEST_LABEL, Cloud, bare
from .cloud_foreign import needed, told

MOST_VOXELS = 1 << 29  # 512 x 512 x 2048
MOST_BORDER = 1 << 25  # points; more is noise, and takes 24 bytes each
DEFLATE = 1032  # the most that deflate unpacks of one byte
SLAB = 1 << 22  # voxels looked at in one go, and bytes read
ELSEWHERE = {
    ".nrrd": re.compile(rb"(?im)^\s*data ?file\s*:"),
    ".mha": re.compile(rb"(?im)^\s*ElementDataFile\s*=\s*(?!LOCAL\s*$)"),
}
IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}


def read_mask(file: Path, background: int = 0) -> Cloud:
    """Border voxels: world coordinates (N, 3) float64 and labels (N,) int64.

    A labelled voxel (neither `background` nor NaN) is at the border where one of its six neighbours has another label
    or lies outside.
    """
    kind = file.suffix.lower()
    voxels, slope, intercept, affine = _itk(file, kind) if kind in IO else _nifti(file)
    labels = _labels(file, voxels, slope, intercept, background)
    if not (np.isfinite(affine).all() and np.linalg.det(affine[:, :3])):
        raise ZooError(f"{file}: its affine has no volume; mend the header")
    differs = _border(labels, background)
    if (count := int(np.count_nonzero(differs))) > MOST_BORDER:
        raise ZooError(f"{file}: {count} voxels lie at a border, which is noise; give a label mask, not an image")
    border = np.argwhere(differs)
    label = labels[tuple(border.T)].astype(np.int64)
    return bare(border @ affine[:, :3].T + affine[:, 3], label)


def _labels(file: Path, raw: np.ndarray, slope: float | None, intercept: float | None, background: int) -> np.ndarray:
    """The volume as whole numbers of at most 32 bits: as it is stored where that is what it holds."""
    scaled = slope is not None and (slope, intercept) != (1, 0)
    if raw.dtype.kind in "iu" and raw.itemsize <= 2 and not scaled:
        return raw
    labels = np.empty(raw.shape, np.int32, order="F")
    step = max(1, SLAB // max(1, raw.shape[0] * raw.shape[1]))
    for start in range(0, raw.shape[2], step):
        values = raw[:, :, start : start + step]
        if scaled:
            if values.dtype.kind in "iu" and values.itemsize == 8 and ((values > EXACT) | (values < -EXACT)).any():
                raise ZooError(f"{file}: values beyond 2^53 are scaled, so that they are rounded; save labels unscaled")
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * np.float64(slope) + np.float64(intercept)
        labels[:, :, start : start + step] = _whole(file, values, background)
    return labels


def _whole(file: Path, values: np.ndarray, background: int) -> np.ndarray:
    """Values as int32 labels, NaN as the background; refuses all that is no label."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        values = np.where(np.isnan(values), float(background), values)
        if not (np.isfinite(values).all() and (np.round(values) == values).all()):
            raise ZooError(f"{file}: holds values that are no whole numbers; give a label mask, not an image")
    beyond = (values > LARGEST_LABEL) | (values < -LARGEST_LABEL)
    if beyond.any():
        raise ZooError(
            f"{file}: label {values[beyond][0]:g} is too large; number the labels from 0, and check the header's slope"
        )
    return values.astype(np.int32)


def _border(labels: np.ndarray, background: int) -> np.ndarray:
    """Where a voxel is labelled and has a neighbour of another label."""
    differs = np.zeros(labels.shape, bool)
    for axis in range(3):
        here, there, side = ([slice(None)] * 3 for _ in range(3))
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        step = labels[tuple(here)] != labels[tuple(there)]
        differs[tuple(here)] |= step
        differs[tuple(there)] |= step
        for side[axis] in (0, -1):  # outside the volume is background
            differs[tuple(side)] = True
    differs &= labels != background
    return differs


def _nifti(file: Path) -> tuple[np.ndarray, float | None, float | None, np.ndarray]:
    """Voxels as stored, slope and intercept, and the affine (3, 4)."""
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        data = _read(file, stream, bytearray(), 540)
        header = _header(file, bytes(data))
        shape, dtype, offset = _layout(file, header)
        size, wanted = file.stat().st_size, offset + math.prod(shape) * dtype.itemsize
        if wanted > size * (DEFLATE if packed else 1):
            raise _short(file, size, shape)
        data = _read(file, stream, data, wanted + 1)
    if len(data) < wanted:
        raise _short(file, len(data), shape)
    if len(data) > wanted:
        raise ZooError(
            f"{file}: holds more than the {wanted} bytes that its header announces; the header is wrong, write it anew"
        )
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = header.get_slope_inter()
        affine = _affine(header)
    except (HeaderDataError, ValueError) as error:
        raise ZooError(f"{file}: its scale or affine is none ({told(error)}); mend the header") from error
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order="F"), slope, intercept, affine


def _read(file: Path, stream: BinaryIO, data: bytearray, size: int) -> bytearray:
    """`data` and what follows in the stream, `size` bytes together; taken in blocks, as long as there are any."""
    try:
        while len(data) < size and (block := stream.read(min(SLAB, size - len(data)))):
            data += block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ZooError(f"{file}: gzip fails ({error}); it is cut off, get it again") from error
    return data


def _header(file: Path, data: bytes):
    """The header of NIfTI-1 or NIfTI-2, by the size and the byte order that its first number tells."""
    from nibabel import Nifti1Header, Nifti2Header

    for kind, size, magic, at in ((Nifti1Header, 348, b"n+1", 344), (Nifti2Header, 540, b"n+2", 4)):
        for order, word in (("<", "little"), (">", "big")):
            if len(data) >= size and int.from_bytes(data[:4], word) == size and data[at : at + 3] == magic:
                return kind(data[:size], order, check=False)  # its check guesses what is missing
    raise ZooError(f"{file}: no NIfTI-1 file of one piece (n+1), nor NIfTI-2; convert it to .nii.gz")


def _layout(file: Path, header) -> tuple[tuple[int, int, int], np.dtype, int]:
    """Shape of the one volume, type of its voxels, and where they begin."""
    dim = [int(n) for n in header["dim"]]
    if not 3 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1 or any(n != 1 for n in dim[4 : dim[0] + 1]):
        raise ZooError(f"{file}: dimensions {dim[1 : max(dim[0], 0) + 1]}, not one volume; split the file")
    from nibabel.nifti1 import data_type_codes

    shape, code, offset = tuple(dim[1:4]), int(header["datatype"]), float(header["vox_offset"])
    if math.prod(shape) > MOST_VOXELS:
        raise ZooError(f"{file}: {' x '.join(map(str, shape))} voxels are more than {MOST_VOXELS}; crop the mask")
    dtype = header.get_data_dtype() if code in data_type_codes.dtype else np.dtype("V1")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ZooError(f"{file}: data type {code} is no plain number; save the mask as integers")
    if not (math.isfinite(offset) and header.sizeof_hdr <= offset == int(offset)):
        raise ZooError(f"{file}: its voxels begin at byte {offset:g}, which is none; mend the header")
    return shape, dtype, int(offset)


def _short(file: Path, size: int, shape: tuple[int, ...]) -> ZooError:
    return ZooError(f"{file}: {size} bytes do not hold {' x '.join(map(str, shape))} voxels; it is cut off")


def _affine(header) -> np.ndarray:
    """World coordinates = affine[:, :3] @ voxel + affine[:, 3]."""
    if header["sform_code"] > 0:
        return header.get_sform()[:3].astype(np.float64)
    if header["qform_code"] > 0:
        if header["pixdim"][0] not in (-1, 1):
            header["pixdim"][0] = 1  # 0 stands for 1
        return header.get_qform()[:3].astype(np.float64)
    return np.hstack([np.diag(header["pixdim"][1:4].astype(np.float64)), np.zeros((3, 1))])


def _itk(file: Path, kind: str) -> tuple[np.ndarray, None, None, np.ndarray]:
    """The same of NRRD and MetaImage, whose values are not scaled."""
    sitk = needed(file, "SimpleITK")
    with open(file, "rb") as start:
        if ELSEWHERE[kind].search(start.read(1 << 16).partition(b"\n\n" if kind == ".nrrd" else b"LOCAL")[0]):
            raise ZooError(f"{file}: its voxels lie in another file; save it as one {kind} file")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(IO[kind])
    reader.SetFileName(str(file))
    quiet = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        shape = reader.GetSize()
        if len(shape) != 3 or reader.GetNumberOfComponents() != 1:
            raise ZooError(f"{file}: dimensions {list(shape)}, not one volume of single numbers; split the file")
        if math.prod(shape) > min(MOST_VOXELS, file.stat().st_size * DEFLATE):
            raise _short(file, file.stat().st_size, shape)
        image = reader.Execute()
    except RuntimeError as error:
        raise ZooError(f"{file}: SimpleITK cannot read it ({told(error)}); write the file anew") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(quiet)
    voxels = sitk.GetArrayFromImage(image).T
    if voxels.dtype.kind not in "iuf":
        raise ZooError(f"{file}: holds {image.GetPixelIDTypeAsString()}; save the mask as integers")
    turn = np.diag([-1.0, -1.0, 1.0])
    steps = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    return voxels, None, None, turn @ np.column_stack([steps, image.GetOrigin()])
