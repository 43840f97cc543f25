"""One volume from a folder with one DICOM series, with the geometry that its slices really have.

ITK only warns of missing slices, takes the spacing from those that are left, and ignores the tilt of a CT gantry.
Here the positions of all slices (Image Position and Orientation (Patient), DICOM PS3.3 C.7.6.2) are checked.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .errors import InputError, RegistrationWarning
from .itk_files import quiet_itk

MODALITY_TAG = "0008|0060"
_SERIES_TAG = "0020|000e"
_DESCRIPTION_TAG = "0008|103e"
_POSITION_TAG = "0020|0032"
_ORIENTATION_TAG = "0020|0037"
# SOP classes of CT and MR images: an unreadable file of such a class is a damaged slice, not some other object.
_IMAGE_CLASSES = tuple(b"1.2.840.10008.5.1.4.1.1." + kind + b"\0" for kind in (b"2", b"2.1", b"4", b"4.1"))
_GAP_TOLERANCE = 0.1  # of the slice spacing
_DRIFT_TOLERANCE = 0.5  # of a voxel in the plane, over the whole stack


@dataclass(frozen=True)
class _Slice:
    """What the header of one file says; position and orientation are NaN where it does not say."""

    path: Path
    series: str
    description: str
    modality: str
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    pixel: int
    components: int

    @property
    def normal(self) -> NDArray[np.float64]:
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)


def known_modality(code: str) -> str | None:
    """The modality as `Image` knows it, of the DICOM code: "CT", "MR" or None for others."""
    code = code.strip().upper()
    return code if code in ("CT", "MR") else None


def read_series(folder: str | Path) -> tuple[sitk.Image, str | None]:
    """The volume of the one DICOM series in a folder, and its modality.

    The order of the slices comes from their positions, not from file names. Objects that are no images (structure
    sets, reports) are passed over. Slices of a tilted gantry are shifted within their planes to a regular grid,
    with a `RegistrationWarning`: tilted head CTs are common, and no regular grid can hold them as they are.

    Raises:
        InputError: if the folder holds no series or several, a slice is missing, doubled or damaged, or the slices
            do not form one regular stack.
    """
    folder = Path(folder)
    slices = _single_series(_scan(folder), folder)
    modality = known_modality(slices[0].modality)
    if len(slices) == 1:
        return _read_files(slices, folder), modality
    _require_same_frame(slices, folder)
    ordered = _ordered(slices, folder)
    return _regular_volume(ordered, folder), modality


def _scan(folder: Path) -> list[_Slice]:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
    with quiet_itk():
        slices = [header for path in files if (header := _read_header(path)) is not None]
    if not slices:
        raise InputError(f"no DICOM images in the folder {folder}")
    return slices


def _read_header(path: Path) -> _Slice | None:
    """The header of a DICOM image, or None for any other file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if _is_image_class(path):
            raise InputError(f"the DICOM file {path} is truncated or damaged") from error
        return None

    def text(tag: str) -> str:
        if not reader.HasMetaDataKey(tag):
            return ""
        return reader.GetMetaData(tag).encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip(" \0")

    return _Slice(
        path=path,
        series=text(_SERIES_TAG),
        description=text(_DESCRIPTION_TAG),
        modality=text(MODALITY_TAG),
        position=_numbers(text(_POSITION_TAG), 3),
        orientation=_numbers(text(_ORIENTATION_TAG), 6),
        size=reader.GetSize(),
        spacing=reader.GetSpacing(),
        pixel=reader.GetPixelID(),
        components=reader.GetNumberOfComponents(),
    )


def _is_image_class(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(1024)
    return start[128:132] == b"DICM" and any(kind in start for kind in _IMAGE_CLASSES)


def _numbers(text: str, count: int) -> NDArray[np.float64]:
    """The numbers of a DICOM string; all NaN unless there are exactly `count` of them."""
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        values = np.empty(0)
    return values if len(values) == count else np.full(count, np.nan)


def _single_series(slices: list[_Slice], folder: Path) -> list[_Slice]:
    by_series: dict[str, list[_Slice]] = defaultdict(list)
    for one in slices:
        by_series[one.series].append(one)
    if len(by_series) > 1:
        raise InputError(
            f"the folder {folder} holds {len(by_series)} DICOM series, one is needed: "
            + "; ".join(_describe(series) for series in by_series.values())
        )
    return slices


def _describe(slices: list[_Slice]) -> str:
    first = slices[0]
    name = f'"{first.description}"' if first.description else f"without description ({first.series})"
    count = "1 slice" if len(slices) == 1 else f"{len(slices)} slices"
    return f"{first.modality or 'unknown modality'} {name} with {count}"


def _require_same_frame(slices: list[_Slice], folder: Path) -> None:
    first = slices[0]
    if not all(np.isfinite(one.position).all() and np.isfinite(one.orientation).all() for one in slices):
        raise InputError(f"the DICOM series in {folder} does not say where its slices lie (no Image Position)")
    if any(one.components != 1 for one in slices):
        raise InputError(f"the DICOM series in {folder} holds color images; one number per voxel is needed")
    if any(one.size != first.size or not np.allclose(one.spacing[:2], first.spacing[:2]) for one in slices):
        raise InputError(f"the slices of the DICOM series in {folder} differ in size or pixel spacing")
    if first.size[2] > 1:
        raise InputError(f"the DICOM series in {folder} holds several multi-frame volumes; one is needed")
    if not all(np.allclose(one.orientation, first.orientation, atol=1e-3) for one in slices):
        raise InputError(
            f"the slices of the DICOM series in {folder} differ in orientation; is a localizer among them?"
        )


def _ordered(slices: list[_Slice], folder: Path) -> list[_Slice]:
    """The slices along their normal, evenly spaced."""
    normal = slices[0].normal
    ordered = sorted(slices, key=lambda one: float(normal @ one.position))
    heights = np.array([normal @ one.position for one in ordered])
    gaps = np.diff(heights)
    spacing = float(np.median(gaps))
    if gaps.min() < max(1e-3, 0.01 * spacing):
        place = int(np.argmin(gaps))
        raise InputError(
            f"the DICOM series in {folder} has two slices at the same position, {ordered[place].path.name} and "
            f"{ordered[place + 1].path.name}; several time points must be in folders of their own"
        )
    widest = int(np.argmax(gaps))
    if gaps[widest] > 1.5 * spacing:
        raise InputError(
            f"the DICOM series in {folder} misses a slice: the gap between {ordered[widest].path.name} and "
            f"{ordered[widest + 1].path.name} is {gaps[widest]:g} mm, the others are {spacing:g} mm"
        )
    if np.abs(gaps - spacing).max() > _GAP_TOLERANCE * spacing:
        raise InputError(
            f"the slices of the DICOM series in {folder} are unevenly spaced ({gaps.min():g} to {gaps.max():g} mm)"
        )
    return ordered


def _regular_volume(ordered: list[_Slice], folder: Path) -> sitk.Image:
    """The slices as a volume whose geometry is that of their positions."""
    first = ordered[0]
    normal = first.normal
    positions = np.array([one.position for one in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    spacing = (*first.spacing[:2], float(step @ normal))
    off_line = positions - positions[0] - np.arange(len(ordered))[:, None] * step
    off_line -= np.outer(off_line @ normal, normal)
    if np.linalg.norm(off_line, axis=1).max() > _DRIFT_TOLERANCE * min(first.spacing[:2]):
        raise InputError(f"the slices of the DICOM series in {folder} do not lie on one line")
    volume = _read_files(ordered, folder)
    volume.SetSpacing(spacing)
    volume.SetOrigin(positions[0].tolist())
    axes = np.stack([first.orientation[:3], first.orientation[3:], normal], axis=1)
    volume.SetDirection(axes.ravel().tolist())
    drift = step - (step @ normal) * normal
    if np.linalg.norm(drift) * (len(ordered) - 1) <= _DRIFT_TOLERANCE * min(first.spacing[:2]):
        return volume
    tilt = np.degrees(np.arctan2(np.linalg.norm(drift), step @ normal))
    warnings.warn(
        f"the DICOM series in {folder} was taken with a gantry tilt of {tilt:.1f} degrees; "
        "its slices were shifted to a regular grid",
        RegistrationWarning,
        stacklevel=4,
    )
    return _untilted(volume, drift, axes, first.modality)


def _read_files(slices: list[_Slice], folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([os.fspath(one.path) for one in slices])
    if len({one.pixel for one in slices}) > 1:
        # Slices with rescale slopes of their own would be cut to the pixel type of the first one.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with quiet_itk():
            if len(slices) == 1:
                return sitk.ReadImage(os.fspath(slices[0].path))
            return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"a file of the DICOM series in {folder} is truncated or damaged") from error


def _untilted(
    volume: sitk.Image, drift: NDArray[np.float64], axes: NDArray[np.float64], modality: str
) -> sitk.Image:
    """The volume, each slice shifted within its plane by `drift` mm per slice, on a grid that holds them all."""
    spacing = np.array(volume.GetSpacing())
    size = np.array(volume.GetSize())
    normal = axes[:, 2]
    # A point of the regular stack lies, in truth, shifted by its slice number times the drift.
    shear = np.outer(drift, normal) / spacing[2]
    to_stack = sitk.AffineTransform(3)
    to_stack.SetCenter(volume.GetOrigin())
    to_stack.SetMatrix((np.eye(3) - shear).ravel().tolist())
    drift_voxels = (axes.T @ drift)[:2] / spacing[:2] * (size[2] - 1)
    before = np.floor(np.minimum(drift_voxels, 0)).astype(int)
    after = np.ceil(np.maximum(drift_voxels, 0)).astype(int)
    origin = np.array(volume.GetOrigin()) + axes[:, :2] @ (before * spacing[:2])
    new_size = [int(size[0] + after[0] - before[0]), int(size[1] + after[1] - before[1]), int(size[2])]
    fill = -1024.0 if modality == "CT" else float(sitk.GetArrayViewFromImage(volume).min())
    return sitk.Resample(
        volume,
        new_size,
        to_stack,
        sitk.sitkLinear,
        origin.tolist(),
        volume.GetSpacing(),
        volume.GetDirection(),
        fill,
        volume.GetPixelID(),
    )
