"""Take the folds out of a displacement field and leave the rest of it alone."""

from __future__ import annotations

import torch

from SAMRegistrationLib.solvers.filters import box_mean, box_sum, gaussian, smooth
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant

ROUNDS_PER_REACH = 8
LARGEST_REACH = 16
WIDEST_SIGMA_ROUNDS = 12


def folded_fraction(u: torch.Tensor, threshold: float = 0.0) -> float:
    """Fraction of voxels with a corner determinant not above `threshold` (see `smallest_corner_determinant`)."""
    return float((smallest_corner_determinant(u) <= threshold).float().mean())


@torch.no_grad()
def remove_folds(
    u: torch.Tensor, threshold: float = 0.05, target_fraction: float = 0.0, reach: int = 2, rounds: int = 120
) -> torch.Tensor:
    """Smooth a field where it folds, in growing neighborhoods, until it folds no more.

    Where the smallest corner determinant is at or below `threshold`, the field is blended with its smoothed self,
    fully within `reach` voxels and fading out over twice as many more. Each round repeats that with what still
    folds; when the rounds of one reach are used up the neighborhoods double. What is further away keeps its values
    exactly. Should local smoothing not be enough, the whole field is smoothed with a growing Gaussian, which
    always ends: a field smooth enough does not fold.

    Args:
        u: (1, 3, z, y, x) in voxels.
        threshold: smallest accepted determinant; above 0 to leave room for rounding and resampling.
        target_fraction: stop when at most this fraction of the voxels is at or below the threshold.
        reach: voxels around a fold that are smoothed at first.
        rounds: limit of the local part.

    Returns:
        The repaired field; `u` itself if there was nothing to do.
    """
    for index in range(rounds):
        bad = smallest_corner_determinant(u) <= threshold
        if float(bad.float().mean()) <= target_fraction:
            return u
        width = min(LARGEST_REACH, reach * 2 ** (index // ROUNDS_PER_REACH))
        u = _repaired(u, bad, width)
    return _smooth_everywhere(u, threshold, target_fraction)


def _repaired(u: torch.Tensor, bad: torch.Tensor, width: int) -> torch.Tensor:
    """Blend with the smoothed field around the bad voxels, in the box that holds them all."""
    z, y, x = _bounding_box(bad[0, 0], margin=4 * width)
    part = u[:, :, z, y, x]
    blend = _soft_neighborhood(bad[:, :, z, y, x], width)
    result = u.clone()
    result[:, :, z, y, x] = torch.lerp(part, smooth(part, 2 * width), blend)
    return result


def _bounding_box(mask: torch.Tensor, margin: int) -> tuple[slice, ...]:
    slices = []
    for axis, size in enumerate(mask.shape):
        others = tuple(other for other in range(3) if other != axis)
        filled = mask.float().amax(others).nonzero()
        slices.append(slice(max(0, int(filled[0]) - margin), min(size, int(filled[-1]) + margin + 1)))
    return tuple(slices)


def _soft_neighborhood(bad: torch.Tensor, width: int) -> torch.Tensor:
    """1 within `width` voxels of a bad voxel, falling linearly to 0 at three times that."""
    near = (box_sum(bad.float(), 2 * width) > 0.5).float()
    return box_mean(near, width).clamp_(0.0, 1.0)


def _smooth_everywhere(u: torch.Tensor, threshold: float, target_fraction: float) -> torch.Tensor:
    sigma = 1.0
    for _ in range(WIDEST_SIGMA_ROUNDS):
        if folded_fraction(u, threshold) <= target_fraction:
            break
        u = gaussian(u, sigma)
        sigma *= 1.5
    return u
