"""Volumes resampled once to the working spacing and kept as memory-mapped arrays."""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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


def build_cache(
    volumes: list[Volume], folder: Path, spacing: float, *, processes: int = 1, progress: bool = False
) -> VolumeCache:
    """Prepare every volume that is not in the cache folder yet, on so many processes.

    Raises:
        InputError: if more than a tenth of the volumes cannot be used (missing, not CT, unreadable), naming them.
        RegistrationError: if the cache cannot be written, or the labels name too many structures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    structures = _read_structures(folder)
    prepared = {volume.name: _stored(volume, folder, spacing) for volume in volumes}
    missing = [volume for volume in volumes if prepared[volume.name] is None]
    skipped: dict[str, str] = {}
    for index, (volume, outcome) in enumerate(_prepare_all(missing, folder, spacing, processes)):
        if isinstance(outcome, InputError):
            skipped[volume.name] = str(outcome)
        else:
            prepared[volume.name] = _finish(volume, outcome, structures)
        if progress and (index + 1) % PROGRESS_EVERY == 0:
            print(f"prepared {index + 1} of {len(missing)} volumes", flush=True)
    _refuse_if_too_few(volumes, skipped)
    return VolumeCache([volume for volume in prepared.values() if volume], structures, skipped)


def _stored(volume: Volume, folder: Path, spacing: float) -> CachedVolume | None:
    """What an earlier run prepared, if it was from the same file and for the same spacing."""
    description = folder / f"{volume.name}.json"
    if not description.is_file():
        return None
    stored = json.loads(description.read_text())
    identity = _identity(volume, spacing)
    return CachedVolume(**stored["volume"]) if all(stored.get(key) == identity[key] for key in identity) else None


def _identity(volume: Volume, spacing: float) -> dict[str, Any]:
    return {"source": str(volume.path), "spacing": spacing}


def _prepare_all(
    volumes: list[Volume], folder: Path, spacing: float, processes: int
) -> Iterator[tuple[Volume, CachedVolume | InputError]]:
    """Each volume with what became of it, in their order."""
    prepare = functools.partial(_prepare_or_refuse, folder=folder, spacing=spacing)
    if min(processes, len(volumes)) <= 1:
        yield from zip(volumes, map(prepare, volumes), strict=True)
        return
    # A fork would take over torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(volumes)), context, _use_one_thread) as pool:
        yield from zip(volumes, pool.map(prepare, volumes), strict=True)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _prepare_or_refuse(volume: Volume, folder: Path, spacing: float) -> CachedVolume | InputError:
    try:
        return _prepare(volume, folder, spacing)
    except InputError as error:
        return error


def _prepare(volume: Volume, folder: Path, spacing: float) -> CachedVolume:
    """Write the arrays; the codes of the label map count this volume's own structures until `_finish`."""
    if volume.modality not in USABLE_MODALITIES:
        raise InputError(f"{volume.name} is {volume.modality}, not CT")
    stored = read_image(volume.path, "CT")
    canonical = stored.canonical()
    grid = canonical.grid.resampled(spacing)
    image = canonical.resampled(grid)
    array = image.data.round().clamp(AIR, HIGHEST).to(torch.int16).numpy()
    codes = _body_mask(array).astype(np.uint8)
    landmarks = _add_labels(volume, stored, grid, codes)
    _save(folder / f"{volume.name}.npy", array)
    _save(folder / f"{volume.name}_labels.npy", codes)
    return CachedVolume(volume.name, volume.region, volume.subject, str(folder), spacing, landmarks)


def _finish(volume: Volume, cached: CachedVolume, structures: dict[str, int]) -> CachedVolume:
    """Give the volume's structures the codes that all volumes share, and mark it as prepared."""
    folder = Path(cached.folder)
    table = np.arange(LAST_LABEL + 1, dtype=np.uint8)
    for own, name in enumerate(cached.landmarks, FIRST_LABEL):
        table[own] = _code_of(name, structures)
    _save(folder / f"{volume.name}_labels.npy", table[cached.labels()])
    _write_json(folder / "structures.json", structures)
    _write_json(folder / f"{volume.name}.json", {**_identity(volume, cached.spacing), "volume": asdict(cached)})
    return cached


def _save(path: Path, array: np.ndarray) -> None:
    try:
        np.save(path, array)
    except OSError as error:
        raise RegistrationError(f"{path.stem} cannot be written into the cache {path.parent}: {error}") from error


def _add_labels(volume: Volume, stored: Image, grid: Grid, codes: np.ndarray) -> dict[str, list[list[float]]]:
    """Enter the volume's structures into `codes`, numbered in the order of the result."""
    landmarks: dict[str, list[list[float]]] = {}
    own: dict[str, int] = {}
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
            codes[inside] = _code_of(name, own)
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
