"""Instance optimization: Adam on a smoothed field for this one pair (SAMConvex, section 2.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..body import looks_like_ct
from ..errors import InputError
from ..features.base import FeatureMap
from ..features.mind import MindExtractor
from ..memory_reuse import own_pages
from ..solvers.convexadam import average_blocks
from ..solvers.folding import remove_folds
from ..solvers.instance_optimization import OptimizationConfig, OptimizationResult, optimize
from ..solvers.local_contrast import LocalContrastTerm
from ..solvers.ops import upsample
from ..solvers.terms import CorrelationTerm, FeatureTerm, SquaredDifferenceTerm, Term, TrustTerm
from .blending import Compared, blended
from .problem import Problem, TrainedObjective, at_shape
from .voxel_weights import known_under, voxel_weight_of, weight_at, without_made_up

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
    contrast_weight: float = 0.0,
    lattice: int = 2,
    feature_lattice: int | None = None,
    block: int = 1,
    from_rest: bool = False,
    near_bodies: bool = False,
    as_trained: bool = False,
    trust: float = 0.0,
    **settings: Any,
) -> Tensor:
    """Improve the displacement by descending on feature, intensity and smoothness terms.

    Args:
        problem: the pair with the displacement found so far; none means no displacement.
        feature_weight: of the cosine distance of the problem's own fine features.
        mind_weight: of the cosine distance of MIND-SSC, beside the problem's features or where they are MIND.
        correlation_weight: of the local cross-correlation of the volumes at the resolution of the features.
        contrast_weight: of the local contrast at twice the resolution of the features (see `LocalContrastTerm`),
            where both volumes are CT: grey values tell more exactly than features where an edge lies, but those of
            other modalities do not mean the same.
        lattice: every so many voxels along each axis are looked at in an iteration, all of them in turn.
        feature_lattice: the same for the problem's own features beside MIND, whose many channels say little new
            from one voxel to the next; None for as many.
        block: features are averaged over blocks of so many voxels along each axis, which widens the range from
            which they attract; the field gets their resolution.
        from_rest: descend also from no displacement, on blocks of twice the size first, and blend both fields (see
            `blended`): a search that went astray does no harm then. Needs a weight of features.
        near_bodies: look only near the bodies, which half of a usual CT is not. Good for a last descent; one that
            begins far from the truth goes wrong more often without the air that holds it back.
        as_trained: go on with what the network behind the displacement was trained on, its weights and constants,
            instead of the weights given here. Other features have their minimum elsewhere, and a descent on them
            undoes what the network has learned where displacements are small (RWCNet, chapter 4). The field
            keeps its grid.
        trust: weight of staying with the displacement found so far (see `TrustTerm`), where that may know more
            than the volumes tell, as a network does that was trained on labels or known fields.
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
    from_rest = from_rest and problem.displacement is not None and max(feature_weight, mind_weight) > 0
    weights = Weights(feature_weight, mind_weight, correlation_weight, contrast=contrast_weight, trust=trust)
    grid = None
    if as_trained and problem.trained is not None and problem.displacement is not None:
        weights = replace(Weights.trained(problem.trained), trust=trust)
        config = replace(config, diffusion=problem.trained.losses.get("diffusion", config.diffusion))
        grid = tuple(problem.displacement.shape[2:])
    lattices = (lattice, feature_lattice or lattice)
    voxel_weight = voxel_weight_of(problem, near_bodies)
    expected, keeps_features = (3, True) if from_rest else (1, not problem.in_last_stage)
    descent = _Descent(problem, config, weights, lattices, voxel_weight, expected, grid, keeps_features)
    found = descent(problem.displacement, block)
    if not from_rest:
        _note(problem, "found", found)
        return remove_folds(found.u)
    wide = descent(None, _FIRST_BLOCK_FROM_REST * block)
    rest = descent(wide.u, block)
    u, share = descent.blended(found, rest, block)
    mostly_found = float(share.mean()) >= 0.5
    _note(problem, "found" if mostly_found else "rest", found if mostly_found else rest, float(share.mean()))
    return remove_folds(u)


def _note(problem: Problem, start: str, result: OptimizationResult, share: float = 1.0) -> None:
    """Say in the report from where a descent started, mostly, and how it went.

    Args:
        problem: whose details are told.
        start: "found" or "rest".
        result: of the descent from there.
        share: how much of the field came from what had been found.
    """
    problem.details.setdefault("instance_optimization", []).append(
        {
            "start": start,
            "share_of_found": share,
            "iterations": len(result.losses),
            "loss_before": result.losses[0],
            "loss_after": _final_loss(result),
        }
    )


@dataclass(frozen=True)
class Weights:
    """The weights of the terms, and their constants.

    Args:
        features: of the cosine distance of the problem's own fine features.
        mind: of that of MIND-SSC, beside the problem's features or where they are MIND.
        correlation: of the local correlation of the intensities.
        contrast: of their local contrast at twice the resolution.
        coarse: of the cosine distance of the problem's coarse features.
        squares: of the squared difference of the intensities.
        trust: of staying with the initial displacement.
        radius: half width of the windows of the correlation.
        normalization: of the intensities for `correlation` and `squares`, or None for values as they are.
    """

    features: float = 0.0
    mind: float = 0.0
    correlation: float = 0.0
    contrast: float = 0.0
    coarse: float = 0.0
    squares: float = 0.0
    trust: float = 0.0
    radius: int = 3
    normalization: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def trained(cls, objective: TrainedObjective) -> Weights:
        """Those of a network's training."""
        losses = objective.losses
        share = losses.get("coarse_share", 0.0)
        return cls(
            features=losses.get("sam", 0.0) * (1 - share),
            mind=losses.get("mind", 0.0),
            correlation=losses.get("lncc", 0.0) + losses.get("ncc", 0.0),
            coarse=losses.get("sam", 0.0) * share,
            squares=losses.get("mse", 0.0),
            radius=int(losses.get("radius", cls.radius)),
            normalization=objective.normalization,
        )


def _final_loss(result: OptimizationResult) -> float:
    last = result.losses[-_LOSSES_COMPARED:]
    return sum(last) / len(last)


class _Descent:
    """Descends on one sum of terms, on blocks of any size; `expected` descents make up the whole progress.

    The field lies on `grid` (z, y, x), by default on that of the finest features. `lattices` are those of MIND and
    grey values and of the problem's own features beside them. Where nobody asks for the features again, they need
    not be kept: terms hold what they look at.
    """

    def __init__(
        self,
        problem: Problem,
        config: OptimizationConfig,
        weights: Weights,
        lattices: tuple[int, int],
        voxel_weight: Tensor | None,
        expected: int,
        grid: tuple[int, ...] | None = None,
        keeps_features: bool = True,
    ) -> None:
        self.problem = problem
        self.config = config
        self.weights = weights
        self.lattice, self.feature_lattice = lattices
        self.expected = expected
        self.grid = grid
        self.done = 0
        self._features: dict[int, list[tuple[Compared, FeatureTerm]]] = {}
        # The same for all descents, so that their losses can be compared.
        self.voxel_weight = voxel_weight
        self.keeps_features = keeps_features

    def __call__(self, found: Tensor | None, block: int) -> OptimizationResult:
        features = [term for _, term in (self._features_on if self.keeps_features else self._average)(block)]
        if not self.keeps_features:
            self.problem.forget_features()
        shape = self.grid or (
            features[0].shape if features else tuple(n // (2 * block) for n in self.problem.grid.shape)
        )
        nothing = torch.zeros((1, 3, *shape), device=self.problem.device)
        start = nothing if found is None else upsample(found, shape)
        terms: list[Term] = [*features, *self._intensity_terms(shape), *self._contrast_terms(shape)]
        if self.weights.trust > 0 and found is not None:
            terms.append(TrustTerm(self.weights.trust))
        result = optimize(start, terms, self.config, callback=self._report)
        self.done += 1
        return result

    def blended(self, found: OptimizationResult, rest: OptimizationResult, block: int) -> tuple[Tensor, Tensor]:
        """The field of both descents on `block`, and how much of it is the first one."""
        return blended(
            found.u,
            rest.u,
            [compared for compared, _ in self._features_on(block)],
            known_under(self.problem, (found.u, rest.u)),
            first_is_better=_final_loss(found) <= _final_loss(rest),
        )

    def _features_on(self, block: int) -> list[tuple[Compared, FeatureTerm]]:
        """What is compared on blocks, and its term; made once for all descents."""
        if block not in self._features:
            self._features[block] = list(self._average(block))
        return self._features[block]

    def _average(self, block: int) -> Iterator[tuple[Compared, FeatureTerm]]:
        """The finest first, whose grid the field gets."""
        weights, own = self.weights, self.problem.extractor
        weight = (weights.mind or weights.features) if own.name == "mind" else weights.features
        if weight > 0:
            lattice = self.lattice if own.name == "mind" else self.feature_lattice
            maps = [features.fine for features in self.problem.features()]
            yield self._averaged(maps, weight, lattice, block, embedded=own.name != "mind")
        if weights.mind > 0 and own.name != "mind":
            mind = self.problem.features(MindExtractor(device=self.problem.device))
            yield self._averaged([features.fine for features in mind], weights.mind, self.lattice, block)
        coarse = [features.coarse for features in self.problem.features()] if weights.coarse > 0 else []
        maps = [features for features in coarse if features is not None]
        if maps:
            yield self._averaged(maps, weights.coarse, self.feature_lattice, 1, embedded=True)

    def _averaged(
        self, maps: list[FeatureMap], weight: float, lattice: int, block: int, *, embedded: bool = False
    ) -> tuple[Compared, FeatureTerm]:
        fixed, moving = (average_blocks(features.data, block) for features in maps)
        if embedded:
            fixed = without_made_up(fixed, self.problem)
        voxel_weight = weight_at(self.voxel_weight, tuple(fixed.shape[2:]))
        sparse = not self.keeps_features
        term = FeatureTerm(fixed, moving, weight, voxel_weight=voxel_weight, lattice=lattice, sparse=sparse)
        return Compared(fixed, moving, weight), term

    def _contrast_terms(self, shape: tuple[int, ...]) -> Iterator[Term]:
        problem, weight = self.problem, self.weights.contrast
        if weight <= 0 or not (looks_like_ct(problem.fixed) and looks_like_ct(problem.moving)):
            return
        fixed, moving = (at_shape(volume, tuple(2 * n for n in shape)) for volume in problem.volumes())
        voxel_weight = weight_at(self.voxel_weight, shape)
        with own_pages(8 * moving.nbytes):
            term = LocalContrastTerm(fixed, moving, weight, voxel_weight=voxel_weight, lattice=self.lattice)
        yield term

    def _intensity_terms(self, shape: tuple[int, ...]) -> Iterator[Term]:
        weights = self.weights
        if weights.correlation <= 0 and weights.squares <= 0:
            return
        fixed, moving = (at_shape(volume, shape) for volume in self.problem.volumes())
        if weights.normalization is not None:
            fixed, moving = weights.normalization(fixed), weights.normalization(moving)
        if weights.correlation > 0:
            yield CorrelationTerm(fixed, moving, weight=weights.correlation, radius=weights.radius)
        if weights.squares > 0:
            yield SquaredDifferenceTerm(fixed, moving, weight=weights.squares)

    def _report(self, iteration: int, _: float) -> None:
        share = (iteration + 1) / self.config.iterations
        self.problem.progress((self.done + share) / self.expected)
