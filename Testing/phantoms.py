"""Small CT-like bodies in closed form, so that a volume and its exact deformation can be sampled on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from strategies import rotation, world_positions

from SAMRegistrationLib import AffineTransform, Grid, Image

Points = NDArray[np.float64]

BODY_RADII = (50.0, 42.0, 62.0)
EXTENT = (120.0, 105.0, 144.0)
"""Box in mm that holds the body and some air."""

_BLOBS = (
    # center, radii in mm, HU: two lungs, a spine, a rib-like rod and three organs, nowhere symmetric
    ((22.0, -4.0, 24.0), (15.0, 18.0, 24.0), -850.0),
    ((-24.0, 2.0, 28.0), (13.0, 17.0, 20.0), -820.0),
    ((3.0, 28.0, 0.0), (8.0, 7.0, 70.0), 600.0),
    ((-34.0, -8.0, -18.0), (5.0, 5.0, 16.0), 500.0),
    ((18.0, -6.0, -22.0), (20.0, 16.0, 15.0), 130.0),
    ((-14.0, -14.0, -34.0), (12.0, 12.0, 12.0), -60.0),
    ((6.0, -22.0, 4.0), (9.0, 8.0, 11.0), 260.0),
)
_SOFTNESS_MM = 2.5
"""Borders are this soft, so that grids of some millimeters sample them without aliasing."""


@dataclass(frozen=True)
class PhantomPair:
    """A fixed volume, a moving one and the exact map from fixed to moving world."""

    fixed: Image
    moving: Image
    truth: Callable[[Points], Points]

    def inside(self, count: int = 2000, seed: int = 3) -> Points:
        """World positions (count, 3) within the fixed body."""
        random = np.random.default_rng(seed)
        points = random.uniform(-1, 1, (20 * count, 3)) * np.array(BODY_RADII)
        return points[_ellipsoid(deformed(points), (0, 0, 0), BODY_RADII) < 0.9][:count]

    def error(self, transform: Callable[[Points], Points]) -> NDArray[np.float64]:
        """Distances in mm from the truth inside the body."""
        points = self.inside()
        return np.linalg.norm(transform(points) - self.truth(points), axis=1)


def phantom_hu(points: ArrayLike) -> NDArray[np.float64]:
    """Hounsfield units (...) of the undeformed body at its own positions (..., 3) in mm."""
    points = np.asarray(points, dtype=np.float64)
    values = np.full(points.shape[:-1], 40.0)
    for center, radii, value in _BLOBS:
        share = _soft(_ellipsoid(points, center, radii), min(radii))
        values += share * (value - values)
    values += _texture(points)
    body = _soft(_ellipsoid(points, (0, 0, 0), BODY_RADII), min(BODY_RADII))
    return np.round(body * values - (1 - body) * 1000.0)


def deformed(points: Points, amplitude: float = 3.0) -> Points:
    """The smooth deformation of the fixed body: up to about `amplitude` mm, free of folds."""
    x, y, z = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0) * (2 * np.pi / 110)
    waves = (np.sin(z + 0.4) * np.cos(0.6 * y), np.sin(x - 0.8) * np.cos(0.5 * z), np.sin(0.8 * y + 0.7 * x))
    return points + amplitude * np.stack(waves, axis=-1)


def centered_grid(
    spacing: ArrayLike = 2.5,
    extent: ArrayLike = EXTENT,
    center: ArrayLike = (0.0, 0.0, 0.0),
    angles: ArrayLike = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid over a box of `extent` mm about `center`, turned by `angles` (radians)."""
    steps = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    size = np.round(np.asarray(extent) / steps).astype(int)
    axes = rotation(angles)
    origin = np.asarray(center) - axes @ ((size - 1) / 2 * steps)
    return Grid(tuple(size.tolist()), tuple(steps.tolist()), tuple(origin), tuple(axes.ravel()))


def phantom_pair(
    spacing: float = 2.5,
    offset: tuple[float, float, float] = (14.0, -9.0, 20.0),
    angles: tuple[float, float, float] = (0.06, -0.04, 0.09),
    fixed_grid: Grid | None = None,
    moving_grid: Grid | None = None,
    amplitude: float = 3.0,
) -> PhantomPair:
    """A deformed body and the undeformed one turned by `angles` (radians) and moved by `offset` mm.

    With f(x) = b(G(x)) and m(y) = b(R y), fixed x lies at R^-1 G(x): exact without inverting the deformation.
    """
    rigid = AffineTransform.about_center(rotation(angles), (0.0, 0.0, 0.0), offset)
    fixed_grid = fixed_grid or centered_grid(spacing)
    moving_grid = moving_grid or centered_grid(spacing, center=offset)

    def truth(points: Points) -> Points:
        return rigid.transform_points(deformed(points, amplitude))

    fixed = _image(phantom_hu(deformed(world_positions(fixed_grid), amplitude)), fixed_grid)
    moving = _image(phantom_hu(rigid.inverse().transform_points(world_positions(moving_grid))), moving_grid)
    return PhantomPair(fixed, moving, truth)


def _image(values: NDArray[np.float64], grid: Grid) -> Image:
    return Image(torch.from_numpy(values).float(), grid, "int16", "CT")


def _ellipsoid(points: Points, center: ArrayLike, radii: ArrayLike) -> NDArray[np.float64]:
    """1 on the surface of an ellipsoid, less inside."""
    return np.linalg.norm((points - np.asarray(center)) / np.asarray(radii), axis=-1)


def _soft(level: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """1 inside, 0 outside, with a border of about `_SOFTNESS_MM`."""
    return 1 / (1 + np.exp(np.clip((level - 1) * radius / (_SOFTNESS_MM / 2), -50, 50)))


def _texture(points: Points) -> NDArray[np.float64]:
    """Vessel-like texture of some ten HU: waves of 9 to 24 mm in all directions."""
    random = np.random.default_rng(11)
    total = np.zeros(points.shape[:-1])
    for _ in range(24):
        direction = random.normal(size=3)
        direction *= 2 * np.pi / random.uniform(9, 24) / np.linalg.norm(direction)
        total += np.sin(points @ direction + random.uniform(0, 2 * np.pi))
    return total * 14
