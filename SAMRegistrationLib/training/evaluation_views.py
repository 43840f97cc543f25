"""Two whole-volume views, strongly changed, whose true correspondence is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..grid import Grid
from ..image import Image
from .cache import BODY
from .config import PhotometricConfig
from .photometric import PhotometricAugmentation
from .views import Placement, Source, positions_of, resample_source, rotation_matrix, sample_map

VIEW_SPACING = 2.0
LARGEST_ROTATION = 20.0
SCALES = (0.8, 1.25)
LARGEST_DISPLACEMENT = 15.0
CONTROL_SHAPE = (1, 3, 5, 5, 5)
BODY_HU = -400.0

PHOTOMETRY = PhotometricConfig(
    noise_probability=1.0,
    contrast_probability=1.0,
    window_probability=1.0,
    cut_probability=0.0,
    slab_probability=0.0,
    erosion_probability=0.0,
    streak_probability=0.2,
)
"""Stronger than in training, but nothing is cut away: a point must be visible to be matched."""


@dataclass(frozen=True)
class ChangedView:
    """A view as an image of 2 mm voxels, the source position (3, z, y, x) in mm of each, and the body mask."""

    image: Image
    positions: Tensor
    body: Tensor

    def source_of(self, voxels: np.ndarray) -> np.ndarray:
        """Source positions (n, 3) in mm of voxel coordinates (n, 3)."""
        return sample_map(self.positions, torch.from_numpy(np.asarray(voxels, dtype=np.float32))).numpy()


def changed_views(image: Image, seed: int) -> tuple[ChangedView, ChangedView]:
    """The volume itself, and it rotated, scaled and bent; both with other grey values."""
    generator = torch.Generator().manual_seed(seed)
    isotropic = image.canonical()
    isotropic = isotropic.resampled(isotropic.grid.resampled(VIEW_SPACING))
    data = isotropic.tensor()
    source = Source(data, torch.full(data.shape, BODY, dtype=torch.uint8), VIEW_SPACING)
    size = torch.tensor(isotropic.grid.size, dtype=torch.float32)
    center = (size - 1) / 2 * VIEW_SPACING
    straight = Placement(center, torch.eye(3) * VIEW_SPACING, torch.zeros(CONTROL_SHAPE))
    shape = isotropic.grid.shape
    return (
        _view(source, straight, shape, generator),
        _view(source, _bent(center, generator), shape, generator),
    )


def _bent(center: Tensor, generator: torch.Generator) -> Placement:
    limit = math.radians(LARGEST_ROTATION)
    angles = (torch.rand(3, generator=generator) * 2 - 1) * limit / math.sqrt(3)
    low, high = (math.log(value) for value in SCALES)
    scale = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
    control = torch.randn(CONTROL_SHAPE, generator=generator)
    control *= LARGEST_DISPLACEMENT / control.norm(dim=1).max()
    return Placement(center, rotation_matrix(angles) * VIEW_SPACING * scale, control)


def _view(
    source: Source, placement: Placement, shape: tuple[int, int, int], generator: torch.Generator
) -> ChangedView:
    positions = positions_of(placement, shape)
    hu = resample_source(source, positions)
    body = hu[0, 0] > BODY_HU
    changed, _ = PhotometricAugmentation(PHOTOMETRY, generator)(hu)
    grid = Grid(shape[::-1], (VIEW_SPACING,) * 3, (0.0,) * 3)
    return ChangedView(Image(changed[0, 0], grid, modality="CT"), positions[0], body)
