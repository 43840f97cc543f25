"""SAM features of both volumes on the grid of a region, from maps of the whole volumes that can be kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import FeatureExtractor
from ..field import displacement_on
from ..grid import Grid
from ..image import Image
from ..pipeline import prepare
from ..sampling import Outside, affine_map, between_grids, sample, voxel_mesh
from ..solvers.projection import project_features
from ..transforms import AffineTransform, CompositeTransform, Transform

CHANNELS = 48
"""What is kept of the features' channels, by principal components of both maps."""

SPACING_MM = 4.0
"""Of features; a finer grid holds no more of them."""

_WORKING_SPACING_MM = 2.0


class RegionFeatures:
    """Features of a pair, extracted as for a registration, so that those of an earlier one can be used again.

    Args:
        extractor: of the features.
        volumes: fixed and moving.
        accepted: from fixed to moving world; its linear end is where the moving volume's features are taken.
        device: where to compute.

    Raises:
        InputError: if the features were not made for such volumes.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        volumes: tuple[Image, Image],
        accepted: Transform,
        device: torch.device,
    ) -> None:
        if not all(extractor.suits(volume) for volume in volumes):
            raise InputError(
                f"{extractor.name} features were not made for volumes of this modality; compare by lncc"
            )
        problem = prepare(extractor, volumes, _WORKING_SPACING_MM, device)
        before, problem.initial = split_linear(accepted)
        fixed, moving = problem.features()
        self._bend = before
        self._grid = fixed.fine.grid
        self._maps = project_features(fixed.fine.data.float(), moving.fine.data.float(), CHANNELS)

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Features (1, C, z, y, x) of the fixed and, under the accepted map, of the moving volume on a grid."""
        fixed, moving = self._maps
        device = fixed.device
        places = voxel_mesh(grid.shape, grid.voxel_to_world, device)
        bent = places if self._bend is None else places + displacement_on(self._bend, grid).to(device).data[0]
        plain = voxel_mesh(grid.shape, between_grids(grid, self._grid), device)
        return (
            sample(fixed, plain, outside=Outside.EDGE),
            sample(moving, affine_map(self._grid.world_to_voxel, bent), outside=Outside.EDGE),
        )


def split_linear(accepted: Transform) -> tuple[Transform | None, AffineTransform]:
    """What a map does before its linear end, and that end (the identity where there is none)."""
    parts = list(accepted.transforms) if isinstance(accepted, CompositeTransform) else [accepted]
    matrix = np.eye(4)
    while parts and isinstance(last := parts[-1], AffineTransform):
        matrix = matrix @ last.matrix
        parts.pop()
    return (CompositeTransform(parts) if parts else None), AffineTransform(matrix)
