"""Image files through ITK, without its silences and its noises.

ITK does not notice all damage, and its libraries print to stderr on their own. Here damage is an `InputError`, and
stderr stays empty.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from .errors import InputError
from .file_integrity import NIFTI_SUFFIXES, damaged, is_whole_nifti, require_whole
from .files import staged_file

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha, .mhd) or a folder with one DICOM series"
WRITABLE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_DETACHED_HEADER_SUFFIXES = (".mhd", ".nhdr")
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
    require_whole(path, reader)
    try:
        with quiet_itk() as printed:
            image = reader.Execute()
            reported = printed()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if any(message in reported for message in _DAMAGE_MESSAGES):
        raise damaged(path)
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
        if path.name.lower().endswith(NIFTI_SUFFIXES) and not is_whole_nifti(staged, image):
            raise InputError(f"cannot write {path}: the disk is full")


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    if "orthonormal" in str(error):
        return InputError(
            f"{path} is sheared: the axes in its header (sform) are not at right angles; resample it first"
        )
    if "Unable to determine ImageIO" in str(error):
        return InputError(f"{path} is not an image that can be read, or is damaged: use {FORMATS}")
    if path.name.lower().endswith(_DETACHED_HEADER_SUFFIXES):
        return InputError(f"{path} is truncated or damaged, or the data file that belongs to it is missing")
    return damaged(path)
