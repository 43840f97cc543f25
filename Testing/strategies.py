"""Hypothesis strategies and references for geometry: oblique anisotropic grids, smooth fields and volumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from SAMRegistrationLib import DisplacementField, Grid, Image

STORAGES = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
"""The 48 ways (order, flips) to store a volume."""


def rotation(angles: ArrayLike) -> NDArray[np.float64]:
    """3x3 rotation by angles in radians about x, then y, then z, rounded to 1e-6 (ITK fails for 1e-300)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.round(np.asarray(angles, dtype=np.float64), 6)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@st.composite
def grids(
    draw: st.DrawFn, smallest: int = 4, largest: int = 12, turn: float = 3.0, off_center: float = 200.0
) -> Grid:
    """Anisotropic grids turned by up to `turn` radians per axis, some of them left-handed."""
    size = draw(st.tuples(*[st.integers(smallest, largest)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.5, 5.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-off_center, off_center)] * 3))
    direction = rotation(draw(st.tuples(*[st.floats(-turn, turn)] * 3)))
    if draw(st.booleans()):
        direction = direction * (1, 1, -1)
    return Grid(size, spacing, origin, tuple(direction.ravel()))


@st.composite
def overlapping_grids(draw: st.DrawFn) -> tuple[Grid, Grid]:
    """Two unrelated grids whose boxes mostly overlap; a few do not at all."""
    first = draw(grids())
    second = draw(grids())
    reach = np.asarray(first.extent) * draw(st.sampled_from([0.1, 0.1, 0.4, 3.0]))
    center = first.center + first.axes @ (reach * draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    origin = np.asarray(second.origin) + center - second.center
    return first, Grid(second.size, second.spacing, tuple(origin), second.direction)


seeds = st.integers(0, 2**31 - 1)


def world_positions(grid: Grid) -> NDArray[np.float64]:
    """World positions (z, y, x, 3) of all voxel centers."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.to_world(np.stack([x, y, z], axis=-1))


def waves(grid: Grid, seed: int, wavelength: float, channels: int = 1) -> torch.Tensor:
    """Smooth numbers in about [-1, 1], (channels, z, y, x): a few sine waves over the world, float64 inside."""
    random = np.random.default_rng(seed)
    world = world_positions(grid) - grid.center
    values = []
    for _ in range(channels):
        vectors = random.normal(size=(3, 3))
        vectors *= 2 * np.pi / wavelength / np.linalg.norm(vectors, axis=1, keepdims=True)
        values.append(np.sin(world @ vectors.T + random.uniform(0, 2 * np.pi, 3)).mean(axis=-1))
    return torch.from_numpy(np.stack(values)).float()


def smooth_image(grid: Grid, seed: int, wavelength: float | None = None) -> Image:
    """A volume of smooth values in about [-1000, 1000]."""
    return Image(waves(grid, seed, wavelength or 6 * max(grid.spacing))[0] * 1000, grid)


def noise_image(grid: Grid, seed: int) -> Image:
    """A volume of independent values."""
    values = torch.randn(grid.shape, generator=torch.Generator().manual_seed(seed))
    return Image(values * 100, grid)


def smooth_field(grid: Grid, seed: int, amplitude: float, wavelength: float | None = None) -> DisplacementField:
    """A field of at most about `amplitude` mm."""
    length = wavelength or 8 * max(grid.spacing)
    return DisplacementField(waves(grid, seed, length, channels=3)[None] * amplitude, grid)


def affine_field(grid: Grid, matrix: ArrayLike) -> DisplacementField:
    """The field of a 4x4 affine map of the world."""
    world = world_positions(grid)
    matrix = np.asarray(matrix)
    displacement = world @ matrix[:3, :3].T + matrix[:3, 3] - world
    return DisplacementField(torch.from_numpy(displacement.transpose(3, 0, 1, 2).copy()).float()[None], grid)


def points_inside(grid: Grid, count: int, seed: int, margin: float = 1.0) -> NDArray[np.float64]:
    """World positions (count, 3) at least `margin` voxels from the outermost voxel centers."""
    random = np.random.default_rng(seed)
    return grid.to_world(random.uniform(margin, np.asarray(grid.size) - 1 - margin, (count, 3)))


def empty_sitk(grid: Grid) -> sitk.Image:
    """A SimpleITK image of the grid's geometry."""
    image = sitk.Image(grid.size, sitk.sitkFloat32)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def stored(image: Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> Image:
    """The same volume stored in another way, by SimpleITK."""
    permuted = sitk.PermuteAxes(image.to_sitk(), order)
    return Image.from_sitk(sitk.Flip(permuted, flips), image.modality)


def away_from_edges(target: Grid, source: Grid, positions: NDArray[np.float64] | None = None) -> NDArray[np.bool_]:
    """Where (z, y, x) of `target` the source position is not within rounding of a voxel's border, in voxels.

    There a rounded coordinate decides between two values, or between inside and outside.
    """
    voxel = source.to_voxel(world_positions(target) if positions is None else positions) + 0.5
    return np.asarray((np.abs(voxel - np.round(voxel)) > 1e-3).all(axis=-1))


def require_cuda() -> torch.device:
    """The first CUDA device, or a skip that says there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda", 0)
