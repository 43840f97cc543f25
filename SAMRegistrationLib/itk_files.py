"""Image files through ITK, without its silences and its noises.

ITK reads a truncated NIfTI file, and a damaged compressed MetaImage, without an error, and writes a NIfTI file
onto a full disk without one; its libraries meanwhile print to stderr. Here damage is an `InputError`, and stderr
stays empty.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import SimpleITK as sitk

from .errors import InputError
from .files import staged_file

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha, .mhd) or a folder with one DICOM series"
WRITABLE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_DAMAGE_MESSAGES = ("Uncompress failed", "data not read completely")
_CHUNK = 1 << 20
_stderr_lock = threading.RLock()


@contextmanager
def quiet_itk() -> Iterator[Callable[[], str]]:
    """Keep what ITK and its libraries print away from stderr; the yielded function returns it so far."""
    with _stderr_lock, tempfile.TemporaryFile() as sink:
        warnings_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.GlobalWarningDisplayOff()
        stderr = _redirect_stderr(sink.fileno())
        try:
            yield lambda: _content(sink.fileno())
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(warnings_shown)
            if stderr is not None:
                os.dup2(stderr, 2)
                os.close(stderr)


def _redirect_stderr(target: int) -> int | None:
    """Point file descriptor 2 at `target`; returns a duplicate of the old one, or None where there is none."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # a windowed program without a console
        return None
    os.dup2(target, 2)
    return stderr


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while chunk := os.read(descriptor, _CHUNK):
        parts.append(chunk)
    return b"".join(parts).decode(errors="replace")


def read_header(path: str | Path) -> sitk.ImageFileReader:
    """A reader that knows size, geometry and pixel type of an image file, but has read no voxels.

    Raises:
        InputError: if the file is missing or no image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"file not found: {path}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader


def read_voxels(reader: sitk.ImageFileReader) -> sitk.Image:
    """The image of a reader from `read_header`.

    Raises:
        InputError: if the file is truncated or damaged.
    """
    path = Path(reader.GetFileName())
    if path.name.lower().endswith(_NIFTI_SUFFIXES) and reader.HasMetaDataKey("vox_offset"):
        _require_complete_nifti(path, _nifti_bytes(reader))
    try:
        with quiet_itk() as printed:
            image = reader.Execute()
            damaged = any(message in printed() for message in _DAMAGE_MESSAGES)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if damaged:
        raise _damaged(path)
    return image


def read_sitk(path: str | Path) -> sitk.Image:
    """A whole image file of any dimension and pixel type.

    Raises:
        InputError: if the file is missing, no image, truncated or damaged.
    """
    return read_voxels(read_header(path))


def write_sitk(image: sitk.Image, path: str | Path, compress: bool = True) -> None:
    """Write an image file, complete or not at all.

    Raises:
        InputError: if the file type is unknown, the place cannot be written or the disk is full.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITABLE_SUFFIXES):
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(WRITABLE_SUFFIXES)}")
    with staged_file(path) as staged:
        try:
            with quiet_itk():
                sitk.WriteImage(image, os.fspath(staged), useCompression=compress)
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: the disk is full or the place cannot be written") from error
        if not _written_completely(staged, image):
            raise InputError(f"cannot write {path}: the disk is full")


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    if "orthonormal" in str(error):
        return InputError(
            f"{path} is sheared: the axes in its header (sform) are not at right angles; resample it first"
        )
    if "Unable to determine ImageIO" in str(error):
        return InputError(f"{path} is not an image that can be read: use {FORMATS}")
    return _damaged(path)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is truncated or damaged")


def _nifti_bytes(reader: sitk.ImageFileReader) -> int:
    """How long the uncompressed file must be, from its header."""
    dimensions = [int(reader.GetMetaData(f"dim[{axis}]")) for axis in range(8)]
    voxels = prod(max(length, 1) for length in dimensions[1 : dimensions[0] + 1])
    offset = int(float(reader.GetMetaData("vox_offset"))) if reader.GetMetaData("nifti_type") == "1" else 0
    return offset + voxels * int(reader.GetMetaData("bitpix")) // 8


def _require_complete_nifti(path: Path, needed: int) -> None:
    if not _is_gzip(path):
        if path.stat().st_size < needed:
            raise _damaged(path)
        return
    length = 0
    try:
        with gzip.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                length += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path) from error
    if length < needed:
        raise _damaged(path)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _written_completely(path: Path, image: sitk.Image) -> bool:
    """Whether a NIfTI file just written has its full length; for a compressed one, as its last four bytes say."""
    if not path.name.lower().endswith(_NIFTI_SUFFIXES):
        return True
    voxels = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
    needed = 352 + voxels * image.GetSizeOfPixelComponent()
    if not _is_gzip(path):
        return path.stat().st_size >= needed
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little") == needed % (1 << 32)
