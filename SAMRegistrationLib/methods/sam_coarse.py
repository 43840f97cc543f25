"""SAM-coarse: sparse matches of the aligned volumes as a smooth dense displacement.

SAME (section 2.3) interpolates the matched displacements of a regular grid; SAME++ optimizes a displacement grid
of a sixteenth of the size so that it passes near the matches and stays smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..alignment.feature_alignment import body_grid
from ..body import body_mask
from ..errors import InputError
from ..features.base import FeatureMap, Features
from ..matching import FeatureIndex, match_points
from ..resampling import smooth
from ..solvers.adam import Adam
from .joined_features import with_mind
from .problem import Problem

INTERPOLATED, OPTIMIZED = "interpolated", "optimized"

_MOST_CYCLE_VOXELS = 2.0
_NEIGHBORS = 12
_LEAST_MATCHES = 20


@dataclass(frozen=True, eq=False)
class SparseDisplacement:
    """Displacements at points of the working grid.

    Args:
        position: (n, 3) voxels (x, y, z) of the working grid.
        displacement: (n, 3) in voxels of the working grid.
        weight: (n,) confidence, not negative.
    """

    position: Tensor
    displacement: Tensor
    weight: Tensor


def sam_coarse(
    problem: Problem,
    *,
    variant: str = OPTIMIZED,
    stride: int = 4,
    most_points: int = 3000,
    largest_mm: float = 50.0,
    iterations: int = 100,
    step: float = 0.05,
    diffusion: float = 0.04,
    mind_share: float = 0.0,
) -> Tensor:
    """A smooth displacement through the matches of what is aligned so far.

    Args:
        problem: the pair; a displacement that it already has is kept and added to.
        variant: "optimized" (SAME++) or "interpolated" (SAME).
        stride: distance of the matched points in voxels of the working grid; wider where that makes too many.
        most_points: number of points at most.
        largest_mm: longer displacements are taken for errors, since the volumes are aligned already.
        iterations: Adam steps of the optimized variant.
        step: their length, in voxels of the displacement grid.
        diffusion: weight of the squared differences of neighbors.
        mind_share: share of MIND in the similarity of matches, beside the problem's own features; 0 for none.

    Returns:
        (1, 3, z, y, x) in voxels of its own shape, over the working grid's box.

    Raises:
        InputError: if too few points match.
        ValueError: for an unknown variant.
    """
    if variant not in (INTERPOLATED, OPTIMIZED):
        raise ValueError(f"unknown variant {variant!r}; there are {INTERPOLATED} and {OPTIMIZED}")
    matches = consistent_matches(problem, stride, most_points, largest_mm, mind_share)
    shape = problem.grid.shape
    if variant == INTERPOLATED:
        found = interpolated_field(matches, shape)
    else:
        found = optimized_field(matches, shape, iterations=iterations, step=step, diffusion=diffusion)
    return problem.after_existing(found)


def consistent_matches(
    problem: Problem, stride: int, most: int, largest_mm: float, mind_share: float = 0.0
) -> SparseDisplacement:
    """Matches between the fixed and the aligned moving volume that return and move like their neighbors.

    Raises:
        InputError: if fewer than twenty are left.
    """
    warped = problem.fixed.with_data(problem.warped().values[0, 0])
    bodies = [volume.with_data(body_mask(volume).float()) for volume in (problem.fixed, warped)]
    if problem.fixed_mask is not None:
        bodies[0] = bodies[0].with_data(bodies[0].data * problem.fixed_mask)
    spacing = stride * float(np.mean(problem.grid.spacing))
    points = body_grid(bodies[0], spacing, most)
    first, second = (
        FeatureIndex(_matched_features(problem, volume.tensor(), mind_share), body)
        for volume, body in zip((problem.fixed, warped), bodies, strict=True)
    )
    matches = match_points(points, first, second)
    moved = matches.matched - matches.points
    voxel = float(np.mean(first.grid.spacing))
    keep = (matches.cycle_error < _MOST_CYCLE_VOXELS * voxel) & (np.linalg.norm(moved, axis=1) < largest_mm)
    if keep.sum() < _LEAST_MATCHES:
        raise InputError(f"only {int(keep.sum())} points could be matched for the coarse deformation")
    points, moved, score = matches.points[keep], moved[keep], matches.score[keep]
    weight = score.clip(1e-3) * _agreement(points, moved)
    linear = problem.grid.world_to_voxel[:3, :3]
    device = problem.device
    return SparseDisplacement(
        torch.from_numpy(problem.grid.to_voxel(points)).float().to(device),
        torch.from_numpy(moved @ linear.T).float().to(device),
        torch.from_numpy(weight).float().to(device),
    )


def _matched_features(problem: Problem, volume: Tensor, mind_share: float) -> Features:
    extracted = problem.features_of(volume)
    if mind_share == 0:
        return extracted
    own = extracted.joined()
    return Features(FeatureMap(with_mind(problem, own.data, volume, mind_share), own.grid))


def _agreement(points: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Near 1 where a displacement is like those around it, near 0 where it is not (Geman-McClure)."""
    positions = torch.from_numpy(points)
    count = min(_NEIGHBORS + 1, len(points))
    nearest = torch.cdist(positions, positions).topk(count, largest=False).indices[:, 1:]
    typical = np.median(moved[nearest.numpy()], axis=1)
    deviation = np.linalg.norm(moved - typical, axis=1)
    scale = max(2.0 * float(np.median(deviation)), 2.0)
    return 1 / np.square(1 + np.square(deviation / scale))


def optimized_field(
    matches: SparseDisplacement,
    shape: tuple[int, int, int],
    *,
    reduction: int = 16,
    iterations: int = 100,
    step: float = 0.05,
    diffusion: float = 0.04,
) -> Tensor:
    """The displacement grid that minimizes the weighted squared point residuals plus the diffusion (SAME++).

    Args:
        matches: in voxels of the working grid.
        shape: (z, y, x) of the working grid.
        reduction: of the displacement grid in relation to it.
        iterations: Adam steps.
        step: their length in voxels of the displacement grid.
        diffusion: weight of the mean squared forward differences.

    Returns:
        (1, 3, z', y', x') in voxels of the displacement grid.
    """
    small = tuple(max(2, round(n / reduction)) for n in shape)
    ratio = matches.position.new_tensor([s / n for s, n in zip(small[::-1], shape[::-1], strict=True)])
    size = matches.position.new_tensor(shape[::-1])
    cube = ((matches.position * 2 + 1) / size - 1)[None, None, None]
    target = matches.displacement * ratio
    weight = matches.weight / matches.weight.sum().clamp(min=1e-9)
    with torch.enable_grad():
        field = torch.zeros(1, 3, *small, device=cube.device, requires_grad=True)
        descent = Adam(field)
        for _ in range(iterations):
            at_points = functional.grid_sample(field, cube, padding_mode="border", align_corners=False)
            residual = (at_points[0, :, 0, 0].T - target).square().sum(dim=1)
            loss = (weight * residual).sum() + diffusion * _diffusion(field)
            (gradient,) = torch.autograd.grad(loss, field)
            descent.step(gradient, step)
    return field.detach()


def _diffusion(field: Tensor) -> Tensor:
    return torch.stack([field.diff(dim=d).square().mean() for d in (2, 3, 4)]).sum()


def interpolated_field(
    matches: SparseDisplacement, shape: tuple[int, int, int], *, reduction: int = 4, width: float = 2.0
) -> Tensor:
    """The matched displacements spread by normalized Gaussians, wider ones where there are no matches (SAME).

    Args:
        matches: in voxels of the working grid.
        shape: (z, y, x) of the working grid.
        reduction: of the displacement grid in relation to it.
        width: standard deviation of the narrowest Gaussian in voxels of the displacement grid.

    Returns:
        (1, 3, z', y', x') in voxels of the displacement grid.
    """
    small = tuple(max(1, round(n / reduction)) for n in shape)
    ratio = matches.position.new_tensor([s / n for s, n in zip(small[::-1], shape[::-1], strict=True)])
    limit = matches.position.new_tensor(small[::-1]) - 1
    x, y, z = torch.minimum(((matches.position + 0.5) * ratio - 0.5).round().clamp(min=0), limit).long().unbind(1)
    flat = (z * small[1] + y) * small[2] + x
    values = torch.cat([matches.displacement * ratio, torch.ones_like(matches.weight)[:, None]], dim=1)
    sums = values.new_zeros(4, small[0] * small[1] * small[2]).index_add_(
        1, flat, (values * matches.weight[:, None]).T
    )
    total = sums.view(1, 4, *small)
    spread = torch.zeros_like(total)
    # Each wider Gaussian counts a thousandth: it only fills what the narrower ones left open.
    for scale in range(4):
        sigma = width * 2**scale
        spread += 1e-3**scale * torch.cat([smooth(total[:, c : c + 1], (sigma,) * 3) for c in range(4)], dim=1)
    return spread[:, :3] / spread[:, 3:].clamp(min=1e-20)
