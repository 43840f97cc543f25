"""Affine maps fitted robustly to the few correspondences around each of many points, all at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LENGTH_MM = 20.0
_RIDGE = 0.3
_TRANSLATION_RIDGE = 3e-4
_ITERATIONS = 6
_SCALE_DECAY = 0.7


@dataclass(frozen=True, eq=False)
class LocalAffines:
    """For each of n points the affine map around it.

    Args:
        mapped: (n, 3) where the points themselves go.
        matrix: (n, 3, 3) what it does to distances from the point.
        support: (n,) mean weight of the correspondences, from 0, all rejected, to 1, all exactly met.
        residual: (n,) median distance in mm between where they are and where the map puts them.
    """

    mapped: Tensor
    matrix: Tensor
    support: Tensor
    residual: Tensor

    def transform(self, offsets: Tensor) -> Tensor:
        """Where neighbors at `offsets` (k, 3) of every point go: (n, k, 3)."""
        return self.mapped[:, None] + torch.einsum("nij,kj->nki", self.matrix, offsets)


def fit_local_affines(
    points: Tensor, offsets: Tensor, matched: Tensor, usable: Tensor, first_scale: float, last_scale: float
) -> LocalAffines:
    """Fit by iteratively reweighted least squares with weights that vanish for outliers (Geman-McClure).

    It begins at the median displacement. A ridge draws the map toward a translation where neighbors are few or lie
    in a plane. Everything is computed in double precision.

    Args:
        points: (n, 3) in mm.
        offsets: (k, 3) of their neighbors, in mm; the same for all points.
        matched: (n, k, 3) partners of the neighbors.
        usable: (n, k) bool; a point without any is mapped to itself with no support.
        first_scale: distance in mm at which a correspondence loses three quarters of its weight, at the beginning.
        last_scale: the same at the end.
    """
    points, offsets, matched = points.double(), offsets.double(), matched.double()
    moved = matched - points[:, None] - offsets
    design = torch.cat([torch.ones_like(offsets[:, :1]), offsets / _LENGTH_MM], dim=1)
    ridge = torch.diag(design.new_tensor([_TRANSLATION_RIDGE, _RIDGE, _RIDGE, _RIDGE]))
    unknown = design.new_tensor(float("nan"))
    predicted = torch.where(usable[..., None], moved, unknown).nanmedian(dim=1, keepdim=True).values.nan_to_num()
    moved = torch.where(usable[..., None], moved, 0.0)
    coefficients = design.new_zeros(len(points), 4, 3)
    for iteration in range(_ITERATIONS):
        scale = max(last_scale, first_scale * _SCALE_DECAY**iteration)
        weights = _weights(moved - predicted, scale) * usable
        weighted = design.T * weights[:, None]
        coefficients = torch.linalg.solve(weighted @ design + ridge, weighted @ moved)
        predicted = design @ coefficients
    residual = moved - predicted
    support = (_weights(residual, last_scale) * usable).sum(dim=1) / usable.sum(dim=1).clamp(min=1)
    distance = torch.where(usable, residual.norm(dim=-1), unknown).nanmedian(dim=1).values
    gradient = coefficients[:, 1:].transpose(1, 2) / _LENGTH_MM
    identity = torch.eye(3, dtype=torch.float64, device=points.device)
    return LocalAffines(points + coefficients[:, 0], identity + gradient, support, distance.nan_to_num())


def _weights(residual: Tensor, scale: float) -> Tensor:
    return 1 / (1 + residual.square().sum(dim=-1) / scale**2) ** 2
