"""Instance optimization: Adam on a smoothed field for this one pair (SAMConvex, section 2.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import FeatureExtractor
from ..features.mind import MindExtractor
from ..solvers.convexadam import average_blocks
from ..solvers.folding import remove_folds
from ..solvers.instance_optimization import OptimizationConfig, OptimizationResult, optimize
from ..solvers.ops import upsample, warp
from ..solvers.terms import CorrelationTerm, FeatureTerm, Term
from .problem import Problem, at_shape

_LOSSES_COMPARED = 8
"""Last iterations whose mean loss says which descent ended lower; one round of the usual lattice."""

_FIRST_BLOCK_FROM_REST = 2
"""How much larger the blocks are with which a descent from no displacement begins."""


def instance_optimization(
    problem: Problem,
    *,
    feature_weight: float = 12.0,
    mind_weight: float = 0.0,
    correlation_weight: float = 0.0,
    lattice: int = 2,
    block: int = 1,
    from_rest: bool = False,
    **settings: Any,
) -> Tensor:
    """Improve the displacement by descending on feature, intensity and smoothness terms.

    Args:
        problem: the pair with the displacement found so far; none means no displacement.
        feature_weight: of the cosine distance of the problem's own fine features.
        mind_weight: of the cosine distance of MIND-SSC, beside the problem's features or where they are MIND.
        correlation_weight: of the local cross-correlation of the volumes at the resolution of the features.
        lattice: every so many voxels along each axis are looked at in an iteration, all of them in turn.
        block: features are averaged over blocks of so many voxels along each axis, which widens the range from
            which they attract; the field gets their resolution.
        from_rest: descend also from no displacement, on blocks of twice the size first, and keep the field that
            ends with the lower loss: a search that went astray does no harm then.
        settings: of `OptimizationConfig`: iterations, learning_rate, diffusion, folding and so on.

    Returns:
        (1, 3, z, y, x) in voxels of its own grid over the working grid's box, without folds.

    Raises:
        InputError: for a setting that there is not.
    """
    try:
        config = OptimizationConfig(**settings)
    except TypeError as error:
        raise InputError(f"instance_optimization has no such setting: {error}") from error
    from_rest = from_rest and problem.displacement is not None
    weights = feature_weight, mind_weight, correlation_weight
    descent = _Descent(problem, config, weights, lattice, expected=3 if from_rest else 1)
    results = {"found": descent(problem.displacement, block)}
    if from_rest:
        wide = descent(None, _FIRST_BLOCK_FROM_REST * block)
        results["rest"] = descent(wide.u, block)
    start, best = min(results.items(), key=lambda item: _final_loss(item[1]))
    problem.details.setdefault("instance_optimization", []).append(
        {
            "start": start,
            "iterations": len(best.losses),
            "loss_before": best.losses[0],
            "loss_after": _final_loss(best),
        }
    )
    return remove_folds(best.u)


def _final_loss(result: OptimizationResult) -> float:
    last = result.losses[-_LOSSES_COMPARED:]
    return sum(last) / len(last)


class _Descent:
    """Descends on one sum of terms, on blocks of any size; `expected` descents make up the whole progress."""

    def __init__(
        self,
        problem: Problem,
        config: OptimizationConfig,
        weights: tuple[float, float, float],
        lattice: int,
        expected: int,
    ) -> None:
        feature_weight, mind_weight, correlation_weight = weights
        self.problem = problem
        self.config = config
        self.correlation_weight = correlation_weight
        self.lattice = lattice
        self.expected = expected
        self.done = 0
        self.weights: list[tuple[FeatureExtractor, float]] = [(problem.extractor, feature_weight)]
        if problem.extractor.name == "mind":
            self.weights = [(problem.extractor, mind_weight or feature_weight)]
        elif mind_weight > 0:
            self.weights.append((MindExtractor(device=problem.device), mind_weight))
        # The same for all descents, so that their losses can be compared.
        self.voxel_weight = _voxel_weight(problem)

    def __call__(self, found: Tensor | None, block: int) -> OptimizationResult:
        features = [self._feature_term(*pair, block) for pair in self.weights if pair[1] > 0]
        shape = features[0].shape if features else tuple(n // (2 * block) for n in self.problem.grid.shape)
        terms: list[Term] = [*features]
        if self.correlation_weight > 0:
            fixed, moving = (at_shape(volume, shape) for volume in self.problem.volumes())
            terms.append(CorrelationTerm(fixed, moving, weight=self.correlation_weight))
        nothing = torch.zeros((1, 3, *shape), device=self.problem.device)
        start = nothing if found is None else upsample(found, shape)
        result = optimize(start, terms, self.config, callback=self._report)
        self.done += 1
        return result

    def _feature_term(self, extractor: FeatureExtractor, weight: float, block: int) -> FeatureTerm:
        fixed, moving = (
            average_blocks(features.fine.data, block) for features in self.problem.features(extractor)
        )
        voxel_weight = self.voxel_weight
        if voxel_weight is not None:
            voxel_weight = at_shape(voxel_weight, tuple(fixed.shape[2:]))
        return FeatureTerm(fixed, moving, weight, voxel_weight=voxel_weight, lattice=self.lattice)

    def _report(self, iteration: int, _: float) -> None:
        share = (iteration + 1) / self.config.iterations
        self.problem.progress((self.done + share) / self.expected)


def _voxel_weight(problem: Problem) -> Tensor | None:
    """1 on the working grid where both volumes have data under the displacement found so far, or None."""
    fixed, moving = problem.masks()
    if moving is not None and problem.displacement is not None:
        moving = warp(moving, upsample(problem.displacement, problem.grid.shape))
    if fixed is None or moving is None:
        return moving if fixed is None else fixed
    return fixed * moving
