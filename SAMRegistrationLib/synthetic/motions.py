"""Smooth elastic deformations and rotations of a whole volume."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..resampling import smooth
from ..transforms import AffineTransform
from .deformation import Deformation, ElasticMotion, LinearMotion

FIELD_SPACING_MM = 4.0
SMALLEST_DETERMINANT = 0.05
_MAGNITUDE_ROUNDS = 4


def elastic(image: Image, seed: int, magnitude_mm: float = 10.0, scale_mm: float = 30.0) -> Deformation:
    """A random smooth deformation without folds.

    A Gaussian random velocity, integrated over unit time and brought to the wanted magnitude; it fades to nothing
    outside the volume.

    Args:
        image: the fixed volume.
        seed: the same seed gives the same deformation of volumes of the same geometry.
        magnitude_mm: the largest displacement within the volume.
        scale_mm: standard deviation of the Gaussian that the random velocity is smoothed with.

    Raises:
        ValueError: if so large a magnitude at so small a scale folds space.
    """
    grid = _surrounding_grid(image.grid, margin_mm=2 * scale_mm + magnitude_mm)
    velocity = _random_velocity(grid, image.grid, np.random.default_rng(seed), scale_mm)
    factor = 1.0
    for _ in range(_MAGNITUDE_ROUNDS):
        field = DisplacementField(velocity * factor, grid).integrated()
        reached = float(field.resampled(_every(image.grid, FIELD_SPACING_MM)).data[0].norm(dim=0).max())
        factor *= magnitude_mm / reached
    field = DisplacementField(field.data * (magnitude_mm / reached), grid)
    smallest = float(field.jacobian_determinant().min())
    if smallest < SMALLEST_DETERMINANT:
        raise ValueError(f"{magnitude_mm} mm at a scale of {scale_mm} mm folds (determinant {smallest:.2f})")
    return Deformation((ElasticMotion(field),))


def rotation(image: Image, seed: int, degrees: float = 15.0, shift_mm: float = 10.0) -> Deformation:
    """A rotation by `degrees` about a random axis through the middle, and a shift in a random direction.

    Args:
        image: the fixed volume.
        seed: decides the axis and the direction.
        degrees: the angle.
        shift_mm: the length of the shift.
    """
    random = np.random.default_rng(seed)
    axis, direction = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
    linear = _rotation_matrix(axis, np.deg2rad(degrees))
    transform = AffineTransform.about_center(linear, image.grid.center, direction * shift_mm)
    return Deformation((LinearMotion(transform),))


def _surrounding_grid(grid: Grid, margin_mm: float) -> Grid:
    coarse = grid.resampled([max(FIELD_SPACING_MM, own) for own in grid.spacing])
    return coarse.padded([int(np.ceil(margin_mm / own)) for own in coarse.spacing])


def _every(grid: Grid, spacing_mm: float) -> Grid:
    return grid.resampled([max(spacing_mm, own) for own in grid.spacing])


def _random_velocity(grid: Grid, inner: Grid, random: np.random.Generator, scale_mm: float) -> Tensor:
    """A smooth random vector field (1, 3, z, y, x) that is zero at the border of its grid."""
    white = torch.from_numpy(random.standard_normal((1, 3, *grid.shape))).float()
    field = smooth(white, [scale_mm / own for own in grid.spacing])
    for axis in range(3):
        # Squared sine ramps in the margin: no kink where the volume ends.
        margin = (grid.extent[axis] - inner.extent[axis]) / 2 / grid.spacing[axis]
        steps = np.arange(grid.size[axis])
        depth = np.minimum(steps, steps[::-1]) / max(margin, 1)
        ramp = torch.from_numpy(np.sin(np.clip(depth, 0, 1) * np.pi / 2) ** 2).float()
        field = field * ramp.view([-1 if dimension == 4 - axis else 1 for dimension in range(5)])
    return field / field[0].norm(dim=0).max()


def _rotation_matrix(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
