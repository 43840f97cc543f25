"""Make the displacements of the two directions of a registration agree."""

from __future__ import annotations

import torch

from SAMRegistrationLib.solvers.ops import warp

ITERATIONS = 15


@torch.no_grad()
def make_inverse_consistent(
    forward: torch.Tensor, backward: torch.Tensor, iterations: int = ITERATIONS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average each field with the negative of the other one at the corresponding place.

    For exact inverses forward(x) = -backward(x + forward(x)); each iteration moves both fields half way there
    (the symmetric constraint of ConvexAdam's discrete stage).

    Args:
        forward: (1, 3, z, y, x) fixed to moving, in voxels.
        backward: (1, 3, z, y, x) moving to fixed, on the same grid.
        iterations: how often.

    Returns:
        Both fields, more consistent and somewhat smoother.
    """
    for _ in range(iterations):
        forward, backward = (
            0.5 * (forward - warp(backward, forward)),
            0.5 * (backward - warp(forward, backward)),
        )
    return forward, backward


def inconsistency(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Distance in voxels from x to where going forth and back ends, (1, 1, z, y, x)."""
    return (forward + warp(backward, forward)).square().sum(1, keepdim=True).sqrt()
