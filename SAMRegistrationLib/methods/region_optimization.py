"""Region-specific optimization (T. Bai et al., 2022): the loss of this pair, restricted to a box.

The paper fine-tunes the weights of a general network on the pair, first with the loss of the whole image (ISO),
then with that of a box that a clinician has drawn (RSO), because the mean over an image starves a small badly
registered region of gradient. Here the unknowns may also be the displacement itself, and either way what they
stand for is a correction v that is applied before the accepted map T: x -> T(x + v(x)). So the accepted map stays
what it was wherever v is zero, and folds nowhere unless x + v(x) does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..features.mind import mind_ssc
from ..field import DisplacementField
from ..models.deformable import DeformableModel
from ..solvers.bspline import Part, SplineField
from ..solvers.cost_volume import Measure
from ..solvers.region import Deformation, Level, RegionConfig, RegionVolumes, level_of, optimize_region, windowed
from ..solvers.terms import CorrelationTerm, FeatureTerm, SquaredDifferenceTerm, Term
from .region_volumes import RegionPair

Progress = Callable[[float], None]
Watch = Callable[[int, Callable[[], DisplacementField]], None]
"""Told the iteration (from 0) and how to come by the correction found so far."""

CONTROL_VOXELS = (8.0, 4.0)
"""Distance of control points in voxels of the region, first over the coarse level and then over the fine one."""

LEAST_COARSE_VOXELS = 20
"""Along every axis of the box, for a coarse level to be worth it."""

NETWORK_RATE = 3e-4
"""The paper's constant learning rate of Adam."""

_SPLINE_RATE_VOXELS = 0.12
_LATTICE = 2
_CORRELATION_RADIUS = 3


class Similarity(Enum):
    """What is compared inside the box."""

    LNCC = "lncc"
    MSE = "mse"
    MIND = "mind"
    SAM = "sam"


@dataclass(frozen=True)
class RegionSettings:
    """How a region is optimized.

    Attributes:
        similarity: see `Similarity`.
        iterations: over all levels.
        diffusion: weight of the displacement's mean squared gradient, beside a data term of order one.
    """

    similarity: Similarity = Similarity.LNCC
    iterations: int = 400
    diffusion: float = 0.02


@dataclass(frozen=True, eq=False)
class RegionResult:
    """What an optimization found.

    Args:
        correction: v, to be applied before the accepted map; zero at the edge of its grid.
        losses: of the data term, one an iteration.
    """

    correction: DisplacementField
    losses: list[float]


def optimize_displacement(
    pair: RegionPair,
    settings: RegionSettings,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    extra_terms: Callable[[Level], Sequence[Term]] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> RegionResult:
    """Descend on the displacement itself, a cubic B-spline that gets finer.

    Args:
        pair: the region.
        settings: see `RegionSettings`.
        features: (1, C, z, y, x) of the fixed and the moving volume on the region's grid, for `Similarity.SAM`.
        extra_terms: further terms for a level, such as the pull of landmarks.
        progress: told the finished fraction; may raise to stop.
        watch: told every iteration.
    """
    volumes = _compared(pair, settings.similarity, features)
    strides = _strides(pair)
    shape, spacing = pair.fixed.shape[2:], pair.grid.spacing
    step = sum(spacing) / 3
    losses: list[float] = []
    spline: _Spline | None = None
    for number, stride in enumerate(strides):
        share = settings.iterations // len(strides) + (settings.iterations % len(strides) if stride == 1 else 0)
        control = CONTROL_VOXELS[number + len(CONTROL_VOXELS) - len(strides)] * step
        finer = _Spline(SplineField(shape, spacing, control, pair.fixed.device))
        if spline is not None:
            finer.field.fit(spline.field.whole().detach())
        spline = finer
        level = level_of(volumes, stride)
        terms = [*_terms(level, settings.similarity), *(extra_terms(level) if extra_terms else ())]
        config = RegionConfig(
            iterations=share, learning_rate=_SPLINE_RATE_VOXELS * step * stride, diffusion=settings.diffusion
        )
        report = _reporter(
            progress, watch, len(losses), settings.iterations, partial(_found, pair, spline, volumes)
        )
        losses += optimize_region(spline, volumes, level, terms, config, report).data_losses
    assert spline is not None
    return RegionResult(_found(pair, spline, volumes), losses)


def optimize_network(
    pair: RegionPair,
    model: DeformableModel,
    settings: RegionSettings,
    *,
    extra_terms: Callable[[Level], Sequence[Term]] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> RegionResult:
    """Descend on the weights of a general network, as published, though from the accepted map.

    The correction is by how much the network's prediction for the region changes while its weights do, so that it
    begins at nothing. The model given here is not changed.

    Args:
        pair: the region.
        model: predicts displacements, without embeddings.
        settings: see `RegionSettings`; SAM has no place here.
        extra_terms, progress, watch: as of `optimize_displacement`.
    """
    volumes = _compared(pair, settings.similarity, None)
    weights = _Weights(model, pair)
    level = level_of(volumes, 1)
    terms = [*_terms(level, settings.similarity), *(extra_terms(level) if extra_terms else ())]
    config = RegionConfig(settings.iterations, NETWORK_RATE, 1.0, settings.diffusion)
    report = _reporter(progress, watch, 0, settings.iterations, partial(_found, pair, weights, volumes))
    losses = optimize_region(weights, volumes, level, terms, config, report).data_losses
    return RegionResult(_found(pair, weights, volumes), losses)


class _Spline:
    """Control points as unknowns."""

    def __init__(self, field: SplineField) -> None:
        self.field = field

    def parameters(self) -> Sequence[Tensor]:
        return [self.field.control]

    def prepare(self) -> None:
        """Nothing is shared between the parts that are wanted in an iteration."""

    def at(self, part: Part) -> Tensor:
        return self.field.at(part)

    def roughness(self) -> Tensor:
        return self.field.roughness()


class _Weights:
    """A network's weights as unknowns; the displacement is by how much its prediction has changed."""

    def __init__(self, model: DeformableModel, pair: RegionPair) -> None:
        self._network = copy.deepcopy(model.network).to(pair.fixed.device).eval()
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        self._fixed, self._moving = (model.normalization(volume) for volume in (pair.fixed, pair.moving))
        self._voxel = torch.tensor(pair.grid.spacing, device=pair.fixed.device).view(1, 3, 1, 1, 1)
        with torch.no_grad():
            self._initial = self._predicted()
        self._current = torch.zeros_like(self._initial)

    def parameters(self) -> Sequence[Tensor]:
        return list(self._network.parameters())

    def prepare(self) -> None:
        """Predict once for all parts that are wanted in an iteration."""
        self._current = self._predicted() - self._initial

    def at(self, part: Part) -> Tensor:
        z, y, x = part
        return self._current[:, :, z, y, x]

    def roughness(self) -> Tensor:
        total = self._current.new_zeros(())
        for axis, step in zip((4, 3, 2), self._voxel.flatten().tolist(), strict=True):
            total = total + (self._current.diff(dim=axis) / step).square().sum(1).mean()
        return total

    def _predicted(self) -> Tensor:
        return self._network(self._fixed, self._moving)[-1] * self._voxel


def _compared(pair: RegionPair, similarity: Similarity, features: tuple[Tensor, Tensor] | None) -> RegionVolumes:
    """What the similarity compares, on the region's grid."""
    fixed, moving = pair.fixed, pair.moving
    if similarity is Similarity.SAM:
        if features is None:
            raise ValueError("a comparison of features needs features")
        fixed, moving = features
    elif similarity is Similarity.MIND:
        fixed, moving = (functional.normalize(mind_ssc(volume), dim=1) for volume in (fixed, moving))
    else:
        inside = fixed[pair.weight > 0]
        mean, spread = inside.mean(), inside.std(unbiased=False).clamp(min=1e-6)
        fixed, moving = (fixed - mean) / spread, (moving - mean) / spread
    return RegionVolumes(fixed, moving, pair.weight, pair.window, pair.grid.spacing)


def _strides(pair: RegionPair) -> tuple[int, ...]:
    box = pair.weight[0, 0] > 0
    extents = (box.any(dim=2).any(dim=1), box.any(dim=2).any(dim=0), box.any(dim=1).any(dim=0))
    return (2, 1) if min(int(extent.sum()) for extent in extents) >= LEAST_COARSE_VOXELS else (1,)


def _terms(level: Level, similarity: Similarity) -> list[Term]:
    """The data term of a level: a mean over the voxels of the box."""
    share = level.weight.mean()
    weight = level.weight / share
    if similarity is Similarity.LNCC:
        return [CorrelationTerm(level.fixed, level.moving, radius=_CORRELATION_RADIUS, voxel_weight=weight)]
    if similarity is Similarity.MSE:
        return [SquaredDifferenceTerm(level.fixed, level.moving, voxel_weight=weight)]
    return [FeatureTerm(level.fixed, level.moving, voxel_weight=weight, lattice=_LATTICE, measure=Measure.COSINE)]


def _found(pair: RegionPair, deformation: Deformation, volumes: RegionVolumes) -> DisplacementField:
    return pair.patch(windowed(deformation, volumes))


def _reporter(
    progress: Progress | None, watch: Watch | None, done: int, total: int, found: Callable[[], DisplacementField]
) -> Callable[[int, float], None]:
    def report(iteration: int, _: float) -> None:
        if progress is not None:
            progress((done + iteration + 1) / total)
        if watch is not None:
            watch(done + iteration, found)

    return report
