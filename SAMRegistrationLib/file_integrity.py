"""Whether an image file is whole: what ITK's readers and writers of NIfTI and NRRD do not tell.

The NIfTI library fills what is missing in a truncated file, ignores the checksum of compressed data, replaces
numbers that are not finite by 0, and does not notice a full disk; the NRRD library ignores the checksum.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import SimpleITK as sitk

from .errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
_NIFTI_HEADER_BYTES = 352
_FLOAT_TYPES: dict[str, np.dtype[Any]] = {"16": np.dtype(np.float32), "64": np.dtype(np.float64)}
_CHUNK = 1 << 20


def damaged(path: Path) -> InputError:
    """The sentence for a file that cannot be read to its end."""
    return InputError(f"{path} is truncated or damaged")


def require_whole(path: Path, header: sitk.ImageFileReader) -> None:
    """Check length, checksum and, for NIfTI, that all numbers are finite. Other formats are left to ITK.

    Args:
        path: the image file.
        header: a reader that has read its header.

    Raises:
        InputError: if the file is truncated or damaged or holds a number that is not finite.
    """
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES) and header.HasMetaDataKey("vox_offset"):
        _require_whole_nifti(path, header)
    elif name.endswith(NRRD_SUFFIXES):
        _require_whole_nrrd(path)


def is_whole_nifti(path: Path, image: sitk.Image) -> bool:
    """Whether a NIfTI file that was just written has its full length; a compressed one tells it at its end."""
    voxels = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
    needed = _NIFTI_HEADER_BYTES + voxels * image.GetSizeOfPixelComponent()
    if not _is_gzip(path):
        return path.stat().st_size >= needed
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little") == needed % (1 << 32)


def _require_whole_nifti(path: Path, header: sitk.ImageFileReader) -> None:
    offset = int(float(header.GetMetaData("vox_offset")))
    dimensions = [int(header.GetMetaData(f"dim[{axis}]")) for axis in range(8)]
    voxels = prod(max(length, 1) for length in dimensions[1 : dimensions[0] + 1])
    missing = voxels * int(header.GetMetaData("bitpix")) // 8
    number = _FLOAT_TYPES.get(header.GetMetaData("datatype"))
    not_finite = 0
    with _unpacked(path) as stream:
        start = stream.read(offset)
        if number is not None and int.from_bytes(start[:4], "little") > 1000:  # the header's length, byte-swapped
            number = number.newbyteorder(">")
        for chunk in _chunks(stream):
            values = chunk[:missing]
            missing -= len(values)
            if number is not None and len(values) % number.itemsize == 0:
                not_finite += int((~np.isfinite(np.frombuffer(values, number))).sum())
    if missing:
        raise damaged(path)
    if not_finite:
        raise InputError(
            f"{path} has {not_finite} voxels that are NaN or infinite; replace them by a number first"
        )


def _require_whole_nrrd(path: Path) -> None:
    data, offset = _nrrd_data(path)
    if data.is_file() and _is_gzip(data, offset):
        with _unpacked(data, offset) as stream:
            for _ in _chunks(stream):
                pass


def _nrrd_data(path: Path) -> tuple[Path, int]:
    """The file with the voxels of a NRRD file and where they begin in it: after the header's blank line."""
    with path.open("rb") as stream:
        while line := stream.readline().strip():
            field, _, value = line.partition(b":")
            if field.strip().lower() in (b"data file", b"datafile"):
                return path.parent / value.strip().decode(errors="replace"), 0
        return path, stream.tell()


@contextmanager
def _unpacked(path: Path, offset: int = 0) -> Iterator[IO[bytes]]:
    """The bytes of a file from `offset` on, unpacked if they are gzip data; what fails to unpack is damage."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            if not _is_gzip(path, offset):
                yield file
                return
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream  # type: ignore[misc]
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path) from error


def _is_gzip(path: Path, offset: int = 0) -> bool:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(2) == b"\x1f\x8b"


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
