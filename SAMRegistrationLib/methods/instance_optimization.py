"""Instance optimization: Adam on a smoothed field for this one pair (SAMConvex, section 2.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import FeatureExtractor
from ..features.mind import MindExtractor
from ..solvers.folding import remove_folds
from ..solvers.instance_optimization import OptimizationConfig, optimize
from ..solvers.ops import upsample, warp
from ..solvers.terms import CorrelationTerm, FeatureTerm, Term
from .problem import Problem, at_shape


def instance_optimization(
    problem: Problem,
    *,
    feature_weight: float = 12.0,
    mind_weight: float = 0.0,
    correlation_weight: float = 0.0,
    lattice: int = 2,
    **settings: Any,
) -> Tensor:
    """Improve the displacement by descending on feature, intensity and smoothness terms.

    Args:
        problem: the pair with the displacement found so far; none means no displacement.
        feature_weight: of the cosine distance of the problem's own fine features.
        mind_weight: of the cosine distance of MIND-SSC, beside the problem's features or where they are MIND.
        correlation_weight: of the local cross-correlation of the volumes at the resolution of the features.
        lattice: every so many voxels along each axis are looked at in an iteration, all of them in turn.
        settings: of `OptimizationConfig`: iterations, learning_rate, diffusion, folding and so on.

    Returns:
        (1, 3, z, y, x) in voxels of the fine features, without folds.
    """
    weights: list[tuple[FeatureExtractor, float]] = [(problem.extractor, feature_weight)]
    if problem.extractor.name == "mind":
        weights = [(problem.extractor, mind_weight or feature_weight)]
    elif mind_weight > 0:
        weights.append((MindExtractor(device=problem.device), mind_weight))
    voxel_weight = _voxel_weight(problem)
    terms: list[Term] = [
        _feature_term(problem, extractor, weight, voxel_weight, lattice)
        for extractor, weight in weights
        if weight > 0
    ]
    shape = getattr(terms[0], "shape", None) or tuple(n // 2 for n in problem.grid.shape)
    if correlation_weight > 0:
        fixed, moving = (at_shape(volume, shape) for volume in problem.volumes())
        terms.append(CorrelationTerm(fixed, moving, weight=correlation_weight))
    try:
        config = OptimizationConfig(**settings)
    except TypeError as error:
        raise InputError(f"instance_optimization has no such setting: {error}") from error
    found = problem.displacement
    start = torch.zeros((1, 3, *shape), device=problem.device) if found is None else upsample(found, shape)
    result = optimize(
        start, terms, config, callback=lambda iteration, _: problem.progress((iteration + 1) / config.iterations)
    )
    problem.details["instance_optimization"] = {
        "iterations": len(result.losses),
        "loss_before": result.losses[0],
        "loss_after": result.losses[-1],
    }
    return remove_folds(result.u)


def _voxel_weight(problem: Problem) -> Tensor | None:
    """1 on the working grid where both volumes have data under the displacement found so far, or None."""
    fixed, moving = problem.masks()
    if moving is not None and problem.displacement is not None:
        moving = warp(moving, upsample(problem.displacement, problem.grid.shape))
    if fixed is None or moving is None:
        return moving if fixed is None else fixed
    return fixed * moving


def _feature_term(
    problem: Problem,
    extractor: FeatureExtractor,
    weight: float,
    voxel_weight: Tensor | None,
    lattice: int,
) -> FeatureTerm:
    fixed, moving = (features.fine.data for features in problem.features(extractor))
    if voxel_weight is not None:
        voxel_weight = at_shape(voxel_weight, tuple(fixed.shape[2:]))
    return FeatureTerm(fixed, moving, weight, voxel_weight=voxel_weight, lattice=lattice)
