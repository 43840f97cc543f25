"""Landmarks as a term of the optimization, and the places around landmarks where it may work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..grid import FloatArray, Grid
from ..roi import RegionOfInterest
from ..sampling import voxel_mesh
from ..solvers.region import Level
from ..solvers.terms import FieldState, sample_field

REACH_MM = 40.0
"""Without a box, a landmark has an effect up to this distance, or further if it is far off."""

_BALL_MM = 10.0
_TRUSTED = 3.0
_COUNTED = 0.5
_REACH_PER_LENGTH = 5.0


@dataclass
class LandmarkTerm:
    """Pulls fixed points to where the accepted map takes to their moving partners.

    A landmark that is off by its own `weights_mm` costs as much as a complete mismatch of all voxels within
    `_BALL_MM` of it. Beyond `_TRUSTED` times that the cost grows only linearly, so that one wrong pair does not
    outweigh the rest.

    Attributes:
        points: (P, 3) positions (x, y, z) in voxels of the level's part.
        targets: (P, 3) in voxels of the level's moving side.
        voxel: (3,) mm.
        weights_mm: (P,).
        share: of the box's volume that a ball has.
        weight: of the term.
    """

    points: Tensor
    targets: Tensor
    voxel: Tensor
    weights_mm: Tensor
    share: float
    weight: float = 1.0

    @classmethod
    def of(
        cls, level: Level, grid: Grid, points: FloatArray, targets: FloatArray, weights_mm: FloatArray
    ) -> LandmarkTerm:
        """The term for a level of a region on `grid`; points and targets are fixed world positions (N, 3)."""
        starts = np.array([part.start for part in level.part[::-1]], dtype=np.float64)
        stride = level.part[0].step or 1
        device = level.fixed.device
        voxel = level.voxel.flatten()
        counted = float(level.weight.sum()) * float(voxel.prod())
        ball = 4 / 3 * math.pi * _BALL_MM**3
        return cls(
            _tensor((grid.to_voxel(points) - starts) / stride, device),
            _tensor(grid.to_voxel(targets) / stride, device),
            voxel,
            _tensor(weights_mm, device),
            min(1.0, ball / max(counted, 1.0)),
        )

    def __call__(self, state: FieldState) -> Tensor:
        reached = self.points + sample_field(state.u, self.points)
        distance = ((reached - self.targets) * self.voxel).square().sum(1).add(1e-12).sqrt() / self.weights_mm
        cost = torch.where(distance < _TRUSTED, 0.5 * distance.square(), _TRUSTED * (distance - 0.5 * _TRUSTED))
        return self.share * cost.sum()


def reach_for(corrections: FloatArray) -> float:
    """How far landmarks must have an effect for their corrections (N, 3) not to fold, in mm."""
    return max(REACH_MM, _REACH_PER_LENGTH * float(np.linalg.norm(corrections, axis=1).max()))


def box_around(points: FloatArray, reach: float) -> RegionOfInterest:
    """The box along the world's axes that holds everything within `reach` mm of the points."""
    return RegionOfInterest.from_corners(points.min(axis=0) - reach, points.max(axis=0) + reach)


def window_around(points: FloatArray, grid: Grid, reach: float) -> tuple[Tensor, Tensor]:
    """Where landmarks without a box have an effect: (z, y, x) bool where the loss counts, and the window, float32.

    The window is 1 within half the reach of a landmark and falls to 0 at the reach without a kink.
    """
    world = voxel_mesh(grid.shape, grid.voxel_to_world)
    missing = torch.ones(grid.shape)
    for point in points.tolist():
        squared = torch.zeros(grid.shape)
        for axis in range(3):
            squared += (world[axis] - point[axis]).square()
        fall = (squared.sqrt_() * (2 / reach) - 1).clamp_(0, 1)
        missing *= 0.5 - 0.5 * torch.cos(torch.pi * fall)
    window = 1 - missing
    return window > _COUNTED, window


def _tensor(values: FloatArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float().to(device)
