"""A volume from one grid onto another: axis by axis where the grids are parallel, by positions where not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .grid import Grid
from .sampling import Interpolation, Outside, between_grids, sample_mapped, voxel_mesh

# How far, in voxels, the axes of two grids may drift apart over the whole volume and still count as parallel.
PARALLEL_TOLERANCE = 1e-4
SMALLEST_SIGMA = 0.2


def resample(
    volume: Tensor,
    source: Grid,
    target: Grid,
    interpolation: Interpolation = Interpolation.LINEAR,
    outside: Outside = Outside.CONSTANT,
    fill: float = 0.0,
    antialias: bool = False,
) -> Tensor:
    """Values of a volume at the voxel centers of another grid.

    Args:
        volume: (1, C, z, y, x) on the grid `source`.
        source: where the volume is given.
        target: where its values are wanted.
        interpolation: NEAREST or LINEAR.
        outside: what holds outside the source grid.
        fill: the constant outside, for `Outside.CONSTANT`.
        antialias: smooth first along the axes where the target is coarser (see `antialiasing_sigmas`).

    Returns:
        (1, C, z', y', x') on the grid `target`.
    """
    sigmas = antialiasing_sigmas(source, target) if antialias else (0.0, 0.0, 0.0)
    axes = _parallel_axes(source, target) if interpolation is Interpolation.LINEAR else None
    if axes is None:
        matrix = between_grids(target, source)
        return sample_mapped(
            smooth(volume, sigmas),
            target.shape,
            lambda slab: voxel_mesh(target.shape, matrix, volume.device, slab),
            interpolation,
            outside,
            fill,
        )
    return _resample_parallel(volume, source, target, axes, sigmas, None if outside is Outside.EDGE else fill)


def antialiasing_sigmas(source: Grid, target: Grid) -> tuple[float, float, float]:
    """Gaussian widths, in voxels along x, y, z of `source`, that bring its resolution down to `target`'s.

    With s the ratio of the spacings, 0.4 sqrt(s^2 - 1): the difference of two Gaussian points spread functions
    of 0.4 voxel, about a full width at half maximum of one voxel each. Zero where the target is not coarser.
    """
    along = np.abs(source.axes.T @ target.axes) @ np.asarray(target.spacing)
    ratio = along / np.asarray(source.spacing)
    x, y, z = 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    return float(x), float(y), float(z)


def smooth(volume: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian smoothing of (1, C, z, y, x), widths in voxels along x, y, z; edge values continue outside."""
    for axis, sigma in enumerate(sigmas):
        if sigma > SMALLEST_SIGMA:
            volume = _along(volume, _gaussian_weights(volume.shape[4 - axis], sigma), 4 - axis)
    return volume


def _parallel_axes(source: Grid, target: Grid) -> list[int] | None:
    """For each source axis, the target axis along it; None where the grids are not parallel."""
    matrix = between_grids(target, source)[:3, :3]
    axes = np.abs(matrix * np.asarray(source.spacing)[:, None] / np.asarray(target.spacing)).argmax(axis=1)
    drift = np.abs(matrix) * np.asarray(target.size)
    drift[np.arange(3), axes] = 0
    if sorted(axes) != [0, 1, 2] or drift.max() > PARALLEL_TOLERANCE:
        return None
    return [int(axis) for axis in axes]


def _resample_parallel(
    volume: Tensor, source: Grid, target: Grid, axes: list[int], sigmas: Sequence[float], fill: float | None
) -> Tensor:
    given = volume
    matrix = between_grids(target, source)
    lines = [matrix[own, axes[own]] * np.arange(target.size[axes[own]]) + matrix[own, 3] for own in range(3)]
    # The axis that shrinks most comes first, so that the rest has least to do.
    for own in sorted(range(3), key=lambda own: len(lines[own]) / source.size[own]):
        weights = _linear_weights(lines[own], source.size[own])
        if sigmas[own] > SMALLEST_SIGMA:
            weights = weights @ _gaussian_weights(source.size[own], sigmas[own])
        volume = _along(volume, weights, 4 - own)
    # Tensor dimension of axis a is 4 - a.
    values = volume.permute(0, 1, *(4 - axes.index(axis) for axis in (2, 1, 0))).contiguous()
    if values.data_ptr() == given.data_ptr():
        values = values.clone()  # the same grid: the caller may change what it gets
    if fill is not None:
        for own, line in enumerate(lines):
            beyond = torch.from_numpy(np.flatnonzero((line < -0.5) | (line >= source.size[own] - 0.5)))
            values.index_fill_(4 - axes[own], beyond.to(values.device), fill)
    return values


def _linear_weights(positions: np.ndarray, size: int) -> np.ndarray:
    """Matrix (positions, size) of linear interpolation at positions in voxels; the edge value holds outside."""
    clamped = np.clip(positions, 0, size - 1)
    lower = np.minimum(np.floor(clamped).astype(int), max(size - 2, 0))
    fraction = clamped - lower
    rows = np.arange(len(positions))
    weights = np.zeros((len(positions), size))
    weights[rows, lower] = 1 - fraction
    weights[rows, np.minimum(lower + 1, size - 1)] += fraction
    return weights


def _gaussian_weights(size: int, sigma: float) -> np.ndarray:
    """Matrix (size, size) of Gaussian smoothing, cut at three sigma; the edge value continues outside."""
    radius = max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = np.zeros((size, size))
    for offset, value in zip(offsets, kernel / kernel.sum(), strict=True):
        rows = np.arange(size)
        weights[rows, np.clip(rows + offset, 0, size - 1)] += value
    return weights


def _along(volume: Tensor, weights: np.ndarray, dimension: int) -> Tensor:
    """A matrix (new, old) applied along dimension 2, 3 or 4 of (1, C, z, y, x)."""
    if weights.shape[0] == weights.shape[1] and np.abs(weights - np.eye(len(weights))).max() < 1e-9:
        return volume
    matrix = torch.from_numpy(weights).to(volume)
    with _without_tf32():
        if dimension == 4:
            return volume @ matrix.T
        if dimension == 3:
            return matrix @ volume
        return (matrix @ volume.flatten(3)).unflatten(3, tuple(volume.shape[3:]))


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Matrix products in full float32, as on a CPU, whatever the caller has chosen for networks."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
