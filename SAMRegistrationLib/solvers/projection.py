"""Fewer feature channels with nearly the same dot products."""

from __future__ import annotations

import torch

SAMPLES = 20_000


@torch.no_grad()
def project_features(
    fixed: torch.Tensor, moving: torch.Tensor, channels: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Project both feature maps on the `channels` directions that carry most of their dot products.

    The directions are the leading eigenvectors of the second moment of both maps together, not centered, from a
    seeded sample of voxels: among all orthogonal projections these lose the least squared length on average, and
    f.m is changed by at most the product of the lengths lost.

    Args:
        fixed: (1, C, z, y, x) features.
        moving: (1, C, z', y', x') features.
        channels: number to keep; with C or more the inputs come back unchanged.
        seed: for the choice of voxels.

    Returns:
        Both maps with `channels` channels, in their types. Vectors become shorter, not longer; they are not
        normalized again, so that dot products stay comparable.
    """
    if channels >= fixed.shape[1]:
        return fixed, moving
    generator = torch.Generator().manual_seed(seed)
    samples = torch.cat([_sample(features, generator) for features in (fixed, moving)])
    moment = samples.t() @ samples
    directions = torch.linalg.eigh(moment).eigenvectors[:, -channels:].flip(1)
    return _project(fixed, directions), _project(moving, directions)


def _sample(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    flat = features[0].flatten(1)
    chosen = torch.randint(flat.shape[1], (min(SAMPLES, flat.shape[1]),), generator=generator)
    return flat[:, chosen.to(flat.device)].double().t()


def _project(features: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    matrix = directions.t().to(features.dtype)
    return (matrix @ features[0].flatten(1)).view(1, -1, *features.shape[2:])
