"""Volumes resampled once to the working spacing and kept as memory-mapped arrays."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from .manifest import UNSPECIFIC_LABELS, USABLE_MODALITIES, Volume

AIR = -1024
OUTSIDE, BODY, FIRST_LABEL = 0, 1, 2
"""Codes of the cached label map: outside the body, body without a label, and from 2 on the structures."""

LARGEST_SKIPPED_SHARE = 0.1
LANDMARK_QUANTILES = (0.02, 0.5, 0.98)
IGNORED_SCHEME_PREFIX = "binary"


@dataclass(frozen=True)
class CachedVolume:
    """One prepared volume: where its arrays are and what is known about it.

    `landmarks` maps a structure's name to points (k, 3) in mm (x, y, z) from the center of the first voxel:
    the structure's extent along each axis and its centroid, for rough correspondence between subjects.
    """

    name: str
    region: str
    subject: str
    folder: str
    spacing: float
    landmarks: dict[str, list[list[float]]]

    def image(self) -> np.ndarray:
        """HU, int16, (z, y, x), memory-mapped copy-on-write."""
        return np.load(Path(self.folder) / f"{self.name}.npy", mmap_mode="c")

    def labels(self) -> np.ndarray:
        """Codes, uint8, (z, y, x), memory-mapped copy-on-write; see `VolumeCache.structures`."""
        return np.load(Path(self.folder) / f"{self.name}_labels.npy", mmap_mode="c")


@dataclass(frozen=True)
class VolumeCache:
    """All prepared volumes, the structure name of every code, and the volumes that could not be used."""

    volumes: list[CachedVolume]
    structures: dict[str, int]
    skipped: dict[str, str]


def build_cache(volumes: list[Volume], folder: Path, spacing: float, *, progress: bool = False) -> VolumeCache:
    """Prepare every volume that is not in the cache folder yet.

    Raises `InputError` when more than a tenth of the volumes cannot be used (missing, not CT, unreadable), naming
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    structures = _read_structures(folder)
    prepared: list[CachedVolume] = []
    skipped: dict[str, str] = {}
    for volume in volumes:
        try:
            prepared.append(_prepare_once(volume, folder, spacing, structures))
        except (InputError, RuntimeError, OSError) as error:
            skipped[volume.name] = _first_sentence(error)
        if progress and len(prepared) % 20 == 0:
            print(f"prepared {len(prepared)} of {len(volumes)} volumes", flush=True)
    _refuse_if_too_few(volumes, skipped)
    return VolumeCache(prepared, structures, skipped)


def _prepare_once(volume: Volume, folder: Path, spacing: float, structures: dict[str, int]) -> CachedVolume:
    description = folder / f"{volume.name}.json"
    identity = {"source": str(volume.path), "spacing": spacing}
    if description.is_file():
        stored = json.loads(description.read_text())
        if all(stored.get(key) == value for key, value in identity.items()):
            return CachedVolume(**stored["volume"])
    cached = _prepare(volume, folder, spacing, structures)
    _write_json(folder / "structures.json", structures)
    _write_json(description, {**identity, "volume": asdict(cached)})
    return cached


def _prepare(volume: Volume, folder: Path, spacing: float, structures: dict[str, int]) -> CachedVolume:
    if volume.modality not in USABLE_MODALITIES:
        raise InputError(f"{volume.name} is {volume.modality}, not CT")
    image = _read(volume.path)
    reference = _isotropic_reference(image, spacing)
    hu = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), reference, sitk.Transform(), sitk.sitkLinear, AIR)
    array = sitk.GetArrayFromImage(hu).round().clip(AIR, 3071).astype(np.int16)
    if array.min() == array.max():
        raise InputError(f"{volume.name} is constant")
    codes = _body_mask(array).astype(np.uint8)
    landmarks = _add_labels(volume, reference, codes, structures, spacing)
    np.save(folder / f"{volume.name}.npy", array)
    np.save(folder / f"{volume.name}_labels.npy", codes)
    return CachedVolume(volume.name, volume.region, volume.subject, str(folder), spacing, landmarks)


def _add_labels(
    volume: Volume, reference: sitk.Image, codes: np.ndarray, structures: dict[str, int], spacing: float
) -> dict[str, list[list[float]]]:
    landmarks: dict[str, list[list[float]]] = {}
    for label_file in volume.labels:
        if label_file.scheme.startswith(IGNORED_SCHEME_PREFIX):
            continue
        image = sitk.Resample(_read(label_file.path), reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        array = sitk.GetArrayFromImage(image)
        for value in np.unique(array[array > 0]).tolist():
            if value in UNSPECIFIC_LABELS.get(label_file.scheme, ()):
                continue
            name = f"{label_file.scheme}:{int(value)}"
            inside = array == value
            codes[inside] = structures.setdefault(name, FIRST_LABEL + len(structures))
            landmarks[name] = _landmarks(inside, spacing)
    return landmarks


def _landmarks(inside: np.ndarray, spacing: float) -> list[list[float]]:
    """Mean position of the voxels around the low, middle and high quantile along each axis, and the centroid."""
    points = np.argwhere(inside)[:, ::-1] * spacing
    result = [points.mean(axis=0)]
    for axis in range(3):
        for quantile in LANDMARK_QUANTILES:
            level = np.quantile(points[:, axis], quantile)
            near = np.abs(points[:, axis] - level) <= 1.5 * spacing
            result.append(points[near].mean(axis=0))
    return [[round(float(value), 2) for value in point] for point in result]


def _body_mask(hu: np.ndarray) -> np.ndarray:
    """Everything inside the skin: above -400 HU, closed, holes filled slice by slice, specks removed."""
    mask = sitk.GetImageFromArray((hu > -400).astype(np.uint8))
    mask = sitk.BinaryMorphologicalClosing(mask, (2, 2, 2))
    filled = np.stack(
        [sitk.GetArrayFromImage(sitk.BinaryFillhole(mask[:, :, index])) for index in range(mask.GetSize()[2])]
    )
    opened = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(filled), (2, 2, 2))
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(opened), minimumObjectSize=4000)
    return sitk.GetArrayFromImage(parts) > 0


def _read(path: Path) -> sitk.Image:
    if not path.exists():
        raise InputError(f"{path.name} is missing")
    image = sitk.ReadImage(str(path))
    if image.GetDimension() != 3:
        raise InputError(f"{path.name} is not a 3D volume")
    return sitk.DICOMOrient(image, "LPS")


def _isotropic_reference(image: sitk.Image, spacing: float) -> sitk.Image:
    extent = [size * old for size, old in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    size = [max(1, round(length / spacing)) for length in extent]
    reference = sitk.Image(size, sitk.sitkUInt8)
    reference.SetSpacing([spacing] * 3)
    reference.SetDirection(image.GetDirection())
    corner = image.TransformContinuousIndexToPhysicalPoint([-0.5] * 3)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    reference.SetOrigin((np.array(corner) + direction @ np.full(3, spacing / 2)).tolist())
    return reference


def _refuse_if_too_few(volumes: list[Volume], skipped: dict[str, str]) -> None:
    if len(skipped) > LARGEST_SKIPPED_SHARE * len(volumes):
        names = "; ".join(f"{name} ({reason})" for name, reason in skipped.items())
        raise InputError(f"{len(skipped)} of {len(volumes)} volumes of the manifest cannot be used: {names}.")


def _read_structures(folder: Path) -> dict[str, int]:
    path = folder / "structures.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
