"""Volumes of numbers with their place in the world: NIfTI (`.nii`, `.nii.gz`), NRRD (`.nrrd`) and MetaImage (`.mha`).

NIfTI-1 and -2 (https://nifti.nimh.nih.gov): headers by nibabel; the world is the sform's where it is set, else the
qform's, else voxel numbers times the voxel sizes. NRRD (https://teem.sourceforge.net/nrrd/format.html): headers by
pynrrd, an extra. MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation): key = value, read here; SimpleITK, which
would serve both, ends the whole process on broken files. Worlds that point left or to the back are turned to NIfTI's,
which points right and to the front, so that a mask has the same points in every format.

Headers announce how many voxels follow. Their word is held against the file's size before memory is taken (deflate
makes at most 1,032 bytes out of one), and unpacking ends where it is more. Voxels in another file are refused.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import ZooError
from .cloud_columns import count_of, number_of
from .cloud_foreign import needed, told

MOST_VOXELS = 1 << 29  # 512 x 512 x 2048
DEFLATE = 1032  # the most that deflate unpacks of one byte
BLOCK = 1 << 22  # bytes read in one go
HEADER = 1 << 20  # bytes of a header of text at most
WORLDS = {  # of NRRD: what turns its axes right, front and up
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
}
NRRD_TYPES = {
    **{"signed char": "i1", "int8": "i1", "int8_t": "i1"},
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}


class Volume(NamedTuple):
    """Voxels (X, Y, Z) as stored; world = affine[:, :3] @ voxel + affine[:, 3]; value = slope * voxel + intercept."""

    voxels: np.ndarray
    affine: np.ndarray
    slope: float | None = None
    intercept: float | None = None


def read_volume(file: Path) -> Volume:
    """A volume by its file's suffix; `ZooError` where it is none."""
    with np.errstate(invalid="ignore", over="ignore"):  # an affine that is none is refused by who uses it
        return {".nrrd": _nrrd, ".mha": _mha}.get(file.suffix.lower(), _nifti)(file)


def _nifti(file: Path) -> Volume:
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        data = _read(file, stream, bytearray(), 540)
        header = _header(file, bytes(data))
        shape, dtype, offset = _layout(file, header)
        wanted = offset + _bytes(file, shape, dtype, packed)
        data = _read(file, stream, data, wanted + 1)
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = header.get_slope_inter()
        affine = _affine(header)
    except (HeaderDataError, ValueError) as error:
        raise ZooError(f"{file}: its scale or affine is none ({told(error)}); mend the header") from error
    return Volume(_array(file, data, dtype, shape, offset), affine, slope, intercept)


def _bytes(file: Path, shape: tuple[int, ...], dtype: np.dtype, packed: bool) -> int:
    """The size of a volume, where the file can hold that much."""
    if len(shape) != 3 or min(shape) < 1:
        raise ZooError(f"{file}: dimensions {list(shape)[:8]}, not one volume; split the file")
    if math.prod(shape) > MOST_VOXELS:
        raise ZooError(f"{file}: {' x '.join(map(str, shape))} voxels are more than {MOST_VOXELS}; crop the mask")
    size, wanted = file.stat().st_size, math.prod(shape) * dtype.itemsize
    if wanted > size * (DEFLATE if packed else 1):
        raise _short(file, size, shape)
    return wanted


def _array(file: Path, data: bytes, dtype: np.dtype, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """The voxels that `data` holds, first axis fastest; it must hold them all and nothing else."""
    wanted = offset + math.prod(shape) * dtype.itemsize
    if len(data) < wanted:
        raise _short(file, len(data), shape)
    if len(data) > wanted:
        raise ZooError(
            f"{file}: holds more than the {wanted} bytes that its header announces; the header is wrong, write it anew"
        )
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order="F")


def _read(file: Path, stream: BinaryIO, data: bytearray, size: int) -> bytearray:
    """`data` and what follows in the stream, `size` bytes together; taken in blocks, as long as there are any."""
    try:
        while len(data) < size and (block := stream.read(min(BLOCK, size - len(data)))):
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


def _nrrd(file: Path) -> Volume:
    nrrd = needed(file, "nrrd")
    with open(file, "rb") as stream:
        head = stream.read(HEADER)
        end = min((at + len(gap) for gap in (b"\n\n", b"\r\n\r\n") if (at := head.find(gap)) >= 0), default=0)
        try:
            header = nrrd.read_header(head[:end].decode("ascii", "replace").splitlines()) if end else {}
            shape = tuple(int(one) for one in header["sizes"])
            affine = _nrrd_affine(header)
        except (nrrd.NRRDError, ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError) as error:
            raise ZooError(f"{file}: no NRRD file of one piece ({told(error)}); write the file anew") from error
        for key in ("data file", "datafile", "byte skip", "byteskip", "line skip", "lineskip"):
            if key in header and header[key] not in (0, "0"):
                raise ZooError(f"{file}: its voxels lie elsewhere ('{key}'); save it as one .nrrd file")
        kind, order = NRRD_TYPES.get(header.get("type")), {"little": "<", "big": ">"}.get(header.get("endian"))
        packed = header.get("encoding") in ("gzip", "gz")
        if kind is None or (order is None and kind[1] != "1") or not (packed or header.get("encoding") == "raw"):
            said = ", ".join(f"{key} {header.get(key)}" for key in ("type", "endian", "encoding"))
            raise ZooError(f"{file}: {said[:80]}: no plain numbers, raw or gzip; save the mask as integers")
        dtype = np.dtype((order or "<") + kind)
        wanted = _bytes(file, shape, dtype, packed)
        stream.seek(end)
        data = _read(file, gzip.GzipFile(fileobj=stream) if packed else stream, bytearray(), wanted + 1)
    return Volume(_array(file, data, dtype, shape), affine)


def _nrrd_affine(header: dict) -> np.ndarray:
    if "space directions" in header:
        steps = np.asarray(header["space directions"], np.float64).reshape(3, 3).T
    else:
        steps = np.diag(np.asarray(header.get("spacings", np.ones(3)), np.float64).reshape(3))
    origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64).reshape(3)
    return np.diag(WORLDS.get(str(header.get("space")).lower(), (1, 1, 1))) @ np.column_stack([steps, origin])


def _mha(file: Path) -> Volume:
    with open(file, "rb") as stream:
        header = _mha_header(file, stream)
        try:
            shape = tuple(count_of(word) or 0 for word in header["DimSize"].split())
            kind, packed = META_TYPES[header["ElementType"]], _truth(header, "CompressedData")
            big = _truth(header, "BinaryDataByteOrderMSB") or _truth(header, "ElementByteOrderMSB")
            one = header.get("ElementNumberOfChannels", "1") == "1" and header.get("HeaderSize", "0") == "0"
            if not (one and _truth(header, "BinaryData")):
                raise ValueError("voxels are to be single numbers in binary, behind the header")
            affine = _mha_affine(header)
        except (KeyError, ValueError) as error:
            raise ZooError(f"{file}: no MetaImage of a volume ({told(error)}); write the file anew") from error
        dtype = np.dtype((">" if big else "<") + kind)
        wanted = _bytes(file, shape, dtype, packed)
        data = _read(file, stream, bytearray(), file.stat().st_size if packed else wanted + 1)
    if packed:
        try:
            data = zlib.decompressobj().decompress(data, wanted + 1)
        except zlib.error as error:
            raise ZooError(f"{file}: unpacking fails ({error}); it is cut off, get it again") from error
    return Volume(_array(file, data, dtype, shape), affine)


def _mha_header(file: Path, stream: BinaryIO) -> dict[str, str]:
    """The keys up to ElementDataFile, which is the last; refuses another file than this, and a key twice."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header and stream.tell() < HEADER:
        line = stream.readline(HEADER)
        key, equals, value = (part.strip() for part in line.decode("ascii", "replace").partition("="))
        if not equals or key in header:
            raise ZooError(f"{file}: row {len(header) + 1}: '{key[:40]}' is no new key of a MetaImage; write it anew")
        header[key] = value
    if header.get("ElementDataFile", "").upper() != "LOCAL":
        raise ZooError(f"{file}: its voxels lie in another file; save it as one .mha file")
    return header


def _mha_affine(header: dict[str, str]) -> np.ndarray:
    def numbers(names: tuple[str, ...], default: np.ndarray) -> np.ndarray:
        found = next((header[name].split() for name in names if name in header), None)
        return default if found is None else np.array([number_of(word) for word in found]).reshape(default.shape)

    axes = numbers(("TransformMatrix", "Rotation", "Orientation"), np.eye(3)).T
    steps = axes * numbers(("ElementSpacing", "ElementSize"), np.ones(3))
    return np.diag([-1, -1, 1]) @ np.column_stack([steps, numbers(("Offset", "Position", "Origin"), np.zeros(3))])


def _truth(header: dict[str, str], name: str) -> bool:
    return header.get(name, "False").lower() in ("true", "1")
