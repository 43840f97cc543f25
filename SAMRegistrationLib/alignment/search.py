"""Every translation at once: masked normalized cross-correlation by Fourier transforms, for a set of rotations.

Padfield, "Masked object registration in the Fourier domain", IEEE Trans. Image Processing 21 (2012), equation 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..grid import FloatArray, Grid
from ..sampling import sample, voxel_mesh
from ..transforms import AffineTransform
from .volumes import CoarseVolume

SMALLEST_OVERLAP = 0.1
"""Of the smaller body; less says nothing."""

_PEAKS_PER_ROTATION = 3
_PEAK_DISTANCE_VOXELS = 4


@dataclass(frozen=True, eq=False)
class Candidate:
    """A place to start from.

    Args:
        transform: from fixed to moving world.
        score: how promising it looks, the more the better.
        overlap: common voxels near the body, as a fraction of the smaller volume's.
    """

    transform: AffineTransform
    score: float
    overlap: float


def search_translations(
    fixed: CoarseVolume, moving: CoarseVolume, rotations: Sequence[FloatArray]
) -> list[Candidate]:
    """The most promising translations under each rotation, best first.

    The score is the correlation within the common masks, weighed by the square root of the overlap, so that a
    chance likeness of two small corners does not win against two whole bodies.

    Args:
        fixed: at a coarse spacing.
        moving: at the same spacing.
        rotations: 3x3 linear maps from fixed to moving world.
    """
    fixed, moving = fixed.cropped(), moving.cropped()
    device = moving.values.device
    smaller = min(float(fixed.near.sum()), float(moving.near.sum()))
    spectrum: _Spectrum | None = None
    candidates: list[Candidate] = []
    for rotation in rotations:
        grid, to_moving = _turned_grid(fixed.grid, moving.grid, rotation)
        to_voxel = moving.grid.world_to_voxel @ to_moving.matrix @ grid.voxel_to_world
        mesh = voxel_mesh(grid.shape, to_voxel, device)
        values = sample(moving.values[None, None], mesh)[0, 0]
        mask = sample(moving.near[None, None].float(), mesh)[0, 0] > 0.5
        shape = _fourier_shape(fixed.grid.shape, grid.shape)
        if spectrum is None or spectrum.shape != shape:
            spectrum = _Spectrum.of(fixed.values, fixed.near, shape)
        correlation, common = _masked_correlation(spectrum, _Spectrum.of(values, mask, shape))
        overlap = common / max(smaller, 1.0)
        score = torch.where(overlap > SMALLEST_OVERLAP, correlation * overlap.clamp(0, 1).sqrt(), -1.0)
        for index, value in _peaks(score):
            shift = _signed(index, shape)
            offset = grid.to_world(np.asarray(shift)) - fixed.grid.to_world((0, 0, 0))
            transform = to_moving.compose(AffineTransform.translation(offset))
            candidates.append(Candidate(transform, value, float(overlap[index])))
    return sorted(candidates, key=lambda candidate: -candidate.score)


def _turned_grid(fixed: Grid, moving: Grid, rotation: FloatArray) -> tuple[Grid, AffineTransform]:
    """A grid with the fixed axes around the whole turned moving volume, and the map from it to moving world."""
    to_moving = AffineTransform.about_center(rotation, fixed.center, moving.center - fixed.center)
    corners = fixed.to_voxel(to_moving.inverse().transform_points(moving.corners()))
    lower, upper = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int) + 1
    return fixed.cropped(lower.tolist(), upper.tolist()), to_moving


def _fourier_shape(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    return tuple(_good_size(a + b - 1) for a, b in zip(first, second, strict=True))


def _good_size(size: int) -> int:
    """The next size whose only prime factors are 2, 3 and 5, for a fast transform."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Fourier transforms of a mask, of the values in it and of their squares."""

    mask: Tensor
    values: Tensor
    squares: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, values: Tensor, mask: Tensor, shape: tuple[int, ...]) -> _Spectrum:
        inside = mask.float()
        centered = (values - (values * inside).sum() / inside.sum().clamp(min=1)) * inside
        stack = torch.stack([inside, centered, centered.square()])
        transformed, first, second = torch.fft.rfftn(stack, s=shape, dim=(1, 2, 3)).unbind(0)
        return cls(transformed, first, second, shape)


def _masked_correlation(fixed: _Spectrum, moving: _Spectrum) -> tuple[Tensor, Tensor]:
    """Correlation coefficient and number of common voxels for every shift (z, y, x), negative ones wrapped."""
    products = torch.stack(
        [
            fixed.mask.conj() * moving.mask,
            fixed.values.conj() * moving.mask,
            fixed.squares.conj() * moving.mask,
            fixed.mask.conj() * moving.values,
            fixed.mask.conj() * moving.squares,
            fixed.values.conj() * moving.values,
        ]
    )
    common, f, ff, m, mm, fm = torch.fft.irfftn(products, s=fixed.shape, dim=(1, 2, 3))
    count = common.clamp(min=1)
    covariance = fm - f * m / count
    variance = (ff - f.square() / count).clamp(min=0) * (mm - m.square() / count).clamp(min=0)
    # A flat region has no correlation; rounding must not give it one.
    floor = (1e-5 * variance.max()).clamp(min=1e-12)
    return covariance / torch.maximum(variance, floor).sqrt(), common


def _peaks(score: Tensor) -> list[tuple[tuple[int, int, int], float]]:
    """The highest values and their indices, each a few voxels away from the others."""
    peaks: list[tuple[tuple[int, int, int], float]] = []
    remaining = score.clone()
    reach = _PEAK_DISTANCE_VOXELS
    for _ in range(_PEAKS_PER_ROTATION):
        flat = int(remaining.argmax())
        z, y, x = np.unravel_index(flat, remaining.shape)
        value = float(remaining[z, y, x])
        if value <= 0:
            break
        peaks.append(((int(z), int(y), int(x)), value))
        near = [
            torch.arange(int(c) - reach, int(c) + reach + 1, device=score.device) % n
            for c, n in zip((z, y, x), score.shape, strict=True)
        ]
        remaining[near[0][:, None, None], near[1][None, :, None], near[2][None, None, :]] = -1.0
    return peaks


def _signed(index: tuple[int, int, int], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shift (x, y, z) of an index (z, y, x) of a wrapped array."""
    z, y, x = (i if i < n // 2 + n % 2 else i - n for i, n in zip(index, shape, strict=True))
    return x, y, z
