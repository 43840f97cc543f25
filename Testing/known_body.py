"""A body whose embedding is known: a cylinder, in which every place has a vector of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.features.base import FeatureMap, Features

FIXED_GRID = Grid((40, 32, 60), (5.0,) * 3, (-97.5, -77.5, -147.5))
MOVING_GRID = Grid((44, 36, 60), (5.0,) * 3, (92.5, -77.5, -207.5))
TRUTH = AffineTransform.about_center(np.diag([1.05, 0.97, 1.06]), (0, 0, 0), (200, 10, -60))
"""Where the places of the fixed body lie in the moving world."""


def places(grid: Grid) -> np.ndarray:
    """World positions (z, y, x, 3) of the voxels."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.to_world(np.stack([x, y, z], -1))


def body(grid: Grid, to_body: AffineTransform) -> Image:
    """A CT of the cylinder, brighter to one side, given the map from the grid's world to the fixed body."""
    x, y, z = np.moveaxis(to_body.transform_points(places(grid)), -1, 0)
    inside = ((x / 80) ** 2 + (y / 60) ** 2 < 1) & (np.abs(z) < 130)
    return Image(torch.from_numpy(np.where(inside, 40.0 + x, -1000.0)).float(), grid, "int16", "CT")


def fixed_body() -> Image:
    """The cylinder as the fixed volume."""
    return body(FIXED_GRID, AffineTransform())


def moving_body() -> Image:
    """The same as the moving volume."""
    return body(MOVING_GRID, TRUTH.inverse())


def embeddings(grid: Grid, to_body: AffineTransform) -> Features:
    """Vectors that say where in the fixed body a voxel is."""
    inside = torch.from_numpy(to_body.transform_points(places(grid)))
    frequencies = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 40
    phase = inside @ frequencies.T
    vectors = torch.cat([phase.cos(), phase.sin()], dim=-1).permute(3, 0, 1, 2)[None].float()
    unit = FeatureMap(functional.normalize(vectors, dim=1), grid)
    return Features(unit, unit)


class EmbeddingsOfTheAligned:
    """An extractor for the moving volume as it lies under a map; keeps what it was shown."""

    name = "aligned"
    spacing = 5.0

    def __init__(self, place: AffineTransform) -> None:
        self.to_body = TRUTH.inverse().compose(place)
        self.shown: list[Image] = []

    def extract(self, image: Image) -> Features:
        self.shown.append(image)
        return embeddings(image.grid, self.to_body)
