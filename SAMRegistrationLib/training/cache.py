"""Volumes resampled once to the working spacing and kept as memory-mapped arrays."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import InputError, RegistrationError
from ..grid import Grid
from ..image import Image
from ..image_io import read_image, read_labels
from ..sampling import Interpolation
from .manifest import UNSPECIFIC_LABELS, USABLE_MODALITIES, Volume

AIR = -1024
HIGHEST = 3071
OUTSIDE, BODY, FIRST_LABEL, LAST_LABEL = 0, 1, 2, 255
"""Codes of the cached label map: outside the body, body without a label, and from 2 on the structures."""

LARGEST_SKIPPED_SHARE = 0.1
PROGRESS_EVERY = 50
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

    Raises:
        InputError: if more than a tenth of the volumes cannot be used (missing, not CT, unreadable), naming them.
        RegistrationError: if the cache cannot be written, or the labels name too many structures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    structures = _read_structures(folder)
    prepared: list[CachedVolume] = []
    skipped: dict[str, str] = {}
    for index, volume in enumerate(volumes):
        try:
            prepared.append(_prepare_once(volume, folder, spacing, structures))
        except InputError as error:
            skipped[volume.name] = str(error)
        if progress and (index + 1) % PROGRESS_EVERY == 0:
            print(f"prepared {index + 1} of {len(volumes)} volumes", flush=True)
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
    stored = read_image(volume.path, "CT")
    canonical = stored.canonical()
    grid = canonical.grid.resampled(spacing)
    image = canonical.resampled(grid)
    array = image.data.round().clamp(AIR, HIGHEST).to(torch.int16).numpy()
    codes = _body_mask(array).astype(np.uint8)
    landmarks = _add_labels(volume, stored, grid, codes, structures)
    try:
        np.save(folder / f"{volume.name}.npy", array)
        np.save(folder / f"{volume.name}_labels.npy", codes)
    except OSError as error:
        raise RegistrationError(f"{volume.name} cannot be written into the cache {folder}: {error}") from error
    return CachedVolume(volume.name, volume.region, volume.subject, str(folder), spacing, landmarks)


def _add_labels(
    volume: Volume, stored: Image, grid: Grid, codes: np.ndarray, structures: dict[str, int]
) -> dict[str, list[list[float]]]:
    landmarks: dict[str, list[list[float]]] = {}
    for label_file in volume.labels:
        if label_file.scheme.startswith(IGNORED_SCHEME_PREFIX):
            continue
        labels = read_labels(label_file.path, stored).canonical().resampled(grid, Interpolation.NEAREST, default=0)
        array = labels.data.numpy()
        for value in np.unique(array[array > 0]).tolist():
            if value in UNSPECIFIC_LABELS.get(label_file.scheme, ()):
                continue
            name = f"{label_file.scheme}:{int(value)}"
            inside = array == value
            codes[inside] = _code_of(name, structures)
            landmarks[name] = _landmarks(inside, grid.spacing[0])
    return landmarks


def _code_of(name: str, structures: dict[str, int]) -> int:
    code = structures.setdefault(name, FIRST_LABEL + len(structures))
    if code > LAST_LABEL:
        raise RegistrationError(f"the manifest's labels name more than {LAST_LABEL - FIRST_LABEL + 1} structures")
    return code


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
