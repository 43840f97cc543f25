"""A head-like body of simple shapes, and how far maps of it lie apart."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.transforms import AffineTransform


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """(3, 3), about x, then y, then z as ITK has them."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.deg2rad(degrees).tolist())
    return np.reshape(transform.GetMatrix(), (3, 3))


def cloud(count: int = 200, seed: int = 0) -> np.ndarray:
    """(n, 3) points in a cube of 200 mm."""
    return np.random.default_rng(seed).uniform(-100, 100, (count, 3))


def head_phantom(grid: Grid, to_body: AffineTransform, contrast: bool = False) -> Image:
    """A head-like body with bones and cavities at asymmetric places, as seen on a grid."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    px, py, pz = np.moveaxis(to_body.transform_points(grid.to_world(np.stack([x, y, z], -1))), -1, 0)
    values = np.full(grid.shape, -1000.0)
    inside = (px / 70) ** 2 + (py / 55) ** 2 + ((pz - 10) / 90) ** 2 < 1
    values[inside] = 40.0
    blobs = [
        ((25, 10, 30), 18, 500.0),
        ((-30, -15, -20), 15, 700.0),
        ((0, 30, -45), 12, 600.0),
        ((-15, 15, 45), 16, -900.0),
        ((20, -25, -5), 14, -850.0),
    ]
    for center, radius, value in blobs:
        distance = np.sqrt((px - center[0]) ** 2 + (py - center[1]) ** 2 + (pz - center[2]) ** 2)
        values[(distance < radius) & inside] = value
    if contrast:
        values = np.select([~inside, values > 300, values > 0], [0.0, 60.0, 300.0], 150.0)
    return Image(torch.from_numpy(values).float(), grid, "int16", "MR" if contrast else "CT")


def head_grid(center: tuple[float, float, float] = (0, 0, 0), size: tuple[int, int, int] = (44, 36, 54)) -> Grid:
    """Voxels of 5 mm around a center."""
    spacing = 5.0
    origin = [c - (n - 1) / 2 * spacing for c, n in zip(center, size, strict=True)]
    return Grid(size, (spacing,) * 3, tuple(origin))


def body_error(found: AffineTransform, truth: AffineTransform) -> float:
    """Mean distance in mm of what two maps make of places in the head."""
    points = np.random.default_rng(2).uniform((-50, -40, -60), (50, 40, 70), (100, 3))
    return float(np.linalg.norm(found.transform_points(points) - truth.transform_points(points), axis=1).mean())
