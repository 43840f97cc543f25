"""The inside of the rib cage and of the abdominal wall, found in a CT: the surface along which organs slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..body import Regions
from ..image import Image

LUNG_HU = -400.0
SPINE_HU = 180.0
RIB_HU = 300.0
SMALLEST_LUNG_ML = 50.0

_WORKING_SPACING_MM = 3.0
_ANGLES = 144
_SMALLEST_RADIUS_MM = 25.0
_RADIAL_STEP_MM = 1.5
_SPINE_SECTOR = np.deg2rad(35.0)
_SPINE_FROM, _RIBS_FROM, _PLEURA_FROM = 0.15, 0.75, 0.6
"""As fractions of the way from the center to the skin; a lung that ends before ends at the heart or the liver."""
_WALL_WITHOUT_SIGNS = 0.85
_CERTAINTY = {"lung": 1.0, "spine": 1.0, "rib": 0.3, "skin": 0.02}
_SMOOTHING_MM, _SMOOTHING_ANGLE = 15.0, np.deg2rad(4.0)


@dataclass(frozen=True, eq=False)
class ChestWall:
    """A surface around a vertical line: its radius by direction and height.

    Args:
        center: (x, y) of the line in LPS mm.
        bottom: z in mm of the first row.
        step: distance in mm of the rows.
        radii: (rows, angles) in mm; angles from 0 at the patient's left over posterior.
        apex, base: z in mm of the lungs' top and of about the diaphragm.
    """

    center: tuple[float, float]
    bottom: float
    step: float
    radii: Tensor
    apex: float
    base: float

    def radius(self, angle: Tensor, z: Tensor) -> Tensor:
        """The distance (...) of the surface from the line at angles in radians and heights in mm, interpolated.

        The first and last rows hold beyond them.
        """
        rows, angles = self.radii.shape
        row = ((z - self.bottom) / self.step).clamp(0, rows - 1)
        column = torch.remainder(angle / (2 * torch.pi) * angles, angles)
        low_row, low_column = row.floor().long().clamp(max=max(rows - 2, 0)), column.floor().long() % angles
        high_row, high_column = (low_row + 1).clamp(max=rows - 1), (low_column + 1) % angles
        up, on = row - low_row, column - column.floor()
        flat = self.radii.to(z.dtype).flatten()
        below = torch.lerp(flat[low_row * angles + low_column], flat[low_row * angles + high_column], on)
        above = torch.lerp(flat[high_row * angles + low_column], flat[high_row * angles + high_column], on)
        return torch.lerp(below, above, up)


def find_chest_wall(image: Image) -> ChestWall:
    """The chest wall of a CT that shows lungs, with world z along the body.

    Seen from the middle of the body, in every direction and height the surface lies where the lung ends; before
    the spine and within the ribs where there is no lung; else somewhat below the skin. What is known is spread to
    where nothing is, and smoothed by some millimeters.

    Raises:
        ValueError: if the volume shows no lungs.
    """
    regions = Regions.of(image, _WORKING_SPACING_MM)
    coarse, body = regions.image, regions.body
    lungs = _lungs(coarse, body)
    heights = coarse.grid.to_world(_along(2, coarse.grid.size[2]))[:, 2]
    lung_per_slice = lungs.sum(dim=(1, 2)).numpy()
    with_lung = np.flatnonzero(lung_per_slice)
    middle = torch.nonzero(body[with_lung[0] : with_lung[-1] + 1]).double().mean(dim=0).flip(0).numpy()
    x, y, _ = coarse.grid.to_world(middle)
    radii = _radii(coarse, body, lungs, (float(x), float(y)))
    return ChestWall(
        (float(x), float(y)),
        float(heights[0]),
        coarse.grid.spacing[2],
        torch.from_numpy(radii),
        apex=float(heights[with_lung[-1]]),
        base=float(np.interp(0.12, np.cumsum(lung_per_slice) / lung_per_slice.sum(), heights)),
    )


def _lungs(coarse: Image, body: Tensor) -> Tensor:
    """The large pieces of air within the body, (z, y, x) bool."""
    air = sitk.GetImageFromArray((body & (coarse.data < LUNG_HU)).numpy().astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(air, [1, 1, 1])
    pieces = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(opened)))
    volumes = np.bincount(pieces.ravel())[1:] * coarse.grid.voxel_volume / 1000
    if not len(volumes) or volumes[0] < SMALLEST_LUNG_ML:
        raise ValueError("the volume shows no lungs, so there is no breathing to generate")
    lungs = np.flatnonzero(volumes > max(SMALLEST_LUNG_ML, 0.15 * volumes[0])) + 1
    return torch.from_numpy(np.isin(pieces, lungs))


def _radii(coarse: Image, body: Tensor, lungs: Tensor, center: tuple[float, float]) -> NDArray[np.float64]:
    """(z, angles) in mm."""
    steps = np.arange(0, max(coarse.grid.extent[:2]), _RADIAL_STEP_MM)
    angle = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    positions = np.stack([np.cos(angle)[:, None] * steps, np.sin(angle)[:, None] * steps], axis=-1) + center
    read = _PolarReader(coarse, positions)
    skin = _last(read(body.float()) > 0.5) * _RADIAL_STEP_MM
    relative = steps / np.maximum(skin, 1.0)[:, :, None]
    hu = read(coarse.data)
    backward = np.abs(angle - np.pi / 2) < _SPINE_SECTOR
    signs = {
        "lung": _last((read(lungs.float()) > 0.5) & (relative > _PLEURA_FROM)),
        "spine": _first((hu > SPINE_HU) & (relative > _SPINE_FROM) & backward[:, None]),
        "rib": _first((hu > RIB_HU) & (relative > _RIBS_FROM)),
    }
    weight = np.full(skin.shape, _CERTAINTY["skin"])
    radius = _WALL_WITHOUT_SIGNS * skin
    for name in ("rib", "spine", "lung"):
        found = signs[name] > 0
        radius = np.where(found, signs[name] * _RADIAL_STEP_MM, radius)
        weight = np.where(found, _CERTAINTY[name], weight)
    radius = np.maximum(radius, _SMALLEST_RADIUS_MM)
    return _spread(radius, weight, coarse.grid.spacing[2])


class _PolarReader:
    """Reads the nearest voxels of volumes along rays of axial slices, zero outside: (z, angles, steps)."""

    def __init__(self, coarse: Image, positions: NDArray[np.float64]) -> None:
        x = (positions[..., 0] - coarse.grid.origin[0]) / coarse.grid.spacing[0]
        y = (positions[..., 1] - coarse.grid.origin[1]) / coarse.grid.spacing[1]
        width, height, _ = coarse.grid.size
        cube = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], axis=-1)
        self._cube = torch.from_numpy(cube).float()[None]

    def __call__(self, volume: Tensor) -> NDArray[np.float32]:
        read = functional.grid_sample(volume[None], self._cube, mode="nearest", align_corners=False)
        return read[0].numpy()


def _first(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the first true value along the last axis, 0 without one."""
    return found.argmax(axis=-1)


def _last(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the last true value along the last axis, 0 without one."""
    last = found.shape[-1] - 1 - found[..., ::-1].argmax(axis=-1)
    return np.where(found.any(axis=-1), last, 0)


def _spread(radius: NDArray[np.float64], weight: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Weighted Gaussian mean over heights and, around the circle, angles."""
    sums = []
    for values in (radius * weight, weight):
        rows = _gaussian(values, _SMOOTHING_MM / step, axis=0, mode="edge")
        sums.append(_gaussian(rows, _SMOOTHING_ANGLE / (2 * np.pi / _ANGLES), axis=1, mode="wrap"))
    return sums[0] / sums[1]


def _gaussian(values: NDArray[np.float64], sigma: float, axis: int, mode: str) -> NDArray[np.float64]:
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padding = [(reach, reach) if own == axis else (0, 0) for own in range(2)]
    padded = np.pad(values, padding, mode=mode)  # type: ignore[call-overload]
    return np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), "valid")


def _along(axis: int, count: int) -> NDArray[np.float64]:
    """Voxel positions (count, 3) along one axis from the first voxel."""
    points = np.zeros((count, 3))
    points[:, axis] = np.arange(count)
    return points
