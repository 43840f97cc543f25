"""Alignment by intensities alone: every translation under several rotations, then the best ones refined.

The search needs no start, no common field of view and no features; correlation serves two CTs, mutual information
everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..grid import FloatArray
from ..transforms import AffineTransform
from .likeness import PairLikeness
from .refinement import Model, refine
from .search import Candidate, search_translations
from .volumes import CoarseVolume, PreparedImage, world_points

SEARCH_SPACING_MM = 8.0
FINE_SPACING_MM = 4.0
TILT_DEGREES = 20.0

_SEARCHED = 16
_CANDIDATES = 10
_FINALISTS = 3
_COARSE_POINTS = 4000
_FINE_POINTS = 8000
_DISTINCT_MM = 30.0


@dataclass(frozen=True, eq=False)
class IntensityAlignment:
    """A map found by intensities.

    Args:
        transform: from fixed to moving world.
        score: how alike the volumes are under it, weighed by their overlap.
        similarity: how alike they are where they overlap.
        overlap: common part of the smaller body.
        runner_up: score of the best map that is really another one; -1 where there is none.
    """

    transform: AffineTransform
    score: float
    similarity: float
    overlap: float
    runner_up: float


class IntensityAligner:
    """A pair of prepared images at the spacings of the alignment.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        seed: of the choice of sample points.
    """

    def __init__(self, fixed: PreparedImage, moving: PreparedImage, seed: int = 0) -> None:
        self._images = fixed, moving
        self._seed = seed
        self.coarse = fixed.at(SEARCH_SPACING_MM), moving.at(SEARCH_SPACING_MM)
        self._center = world_points(self.coarse[0], self.coarse[0].body, _COARSE_POINTS, seed).mean(axis=0)
        self.likeness = PairLikeness(*self.coarse, _COARSE_POINTS, seed)

    def align(self, model: Model, starts: Sequence[AffineTransform] = ()) -> IntensityAlignment:
        """The best map, searched everywhere and from given starts."""
        found = [candidate.transform for candidate in self._searched()]
        return self.improve([*starts, *_world_starts(*self.coarse), *found], model)

    def improve(self, starts: Sequence[AffineTransform], model: Model) -> IntensityAlignment:
        """The best map that can be reached from the starts."""
        rigid = Model.TRANSLATION if model is Model.TRANSLATION else Model.RIGID
        promising = self._most_promising(starts)
        moved, quality = refine(self.likeness, promising, self._center, rigid, 25, 5.0)
        order = np.argsort(-quality.score.numpy(), kind="stable")
        finalists = _distinct([moved[i] for i in order], self._center, _FINALISTS)
        freer, quality = refine(self.likeness, finalists, self._center, model, 30, 3.0)
        scores = quality.score.numpy()
        best = int(np.argmax(scores))
        others = [s for t, s in zip(freer, scores, strict=True) if _apart(t, freer[best], self._center)]
        fine = self._fine_likeness()
        final, _ = refine(fine, [freer[best]], self._center, model, 25, 1.5)
        return self.judged(final[0], float(max(others, default=-1.0)))

    def _fine_likeness(self) -> PairLikeness:
        fixed, moving = (image.at(FINE_SPACING_MM) for image in self._images)
        return PairLikeness(fixed, moving, _FINE_POINTS, self._seed)

    def judged(self, transform: AffineTransform, runner_up: float = -1.0) -> IntensityAlignment:
        """How good a map is, whoever found it."""
        with torch.no_grad():
            quality = self.likeness(torch.from_numpy(transform.matrix)[None])
        score, similarity, overlap = (float(v[0]) for v in (quality.score, quality.similarity, quality.overlap))
        return IntensityAlignment(transform, score, similarity, overlap, runner_up)

    def _most_promising(self, starts: Sequence[AffineTransform]) -> list[AffineTransform]:
        with torch.no_grad():
            score = self.likeness(torch.from_numpy(np.stack([start.matrix for start in starts]))).score
        order = np.argsort(-score.numpy(), kind="stable")
        return _distinct([starts[i] for i in order], self._center, _CANDIDATES)

    def _searched(self) -> list[Candidate]:
        """The best of both searches, with and without the outline of the bodies."""
        fixed, moving = self.coarse
        whole = search_translations(fixed, moving, _rotations())
        interior = search_translations(fixed.interior, moving.interior, _rotations())
        return [*whole[:_SEARCHED], *interior[:_SEARCHED]]


def _rotations() -> list[FloatArray]:
    """Upright, tilted about each axis, and turned in the axial plane."""
    tilted = [_rotation(axis, sign * TILT_DEGREES) for axis in range(3) for sign in (-1, 1)]
    turned = [_rotation(2, angle) for angle in (-135, -90, -45, 45, 90, 135, 180)]
    return [np.eye(3), *tilted, *turned]


def _rotation(axis: int, degrees: float) -> FloatArray:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def _world_starts(fixed: CoarseVolume, moving: CoarseVolume) -> list[AffineTransform]:
    """The frames as they are, and the bodies' centers on each other, upright and tilted."""
    centers = [world_points(v, v.body, 100_000, 0).mean(axis=0) for v in (fixed, moving)]
    return [AffineTransform()] + [
        AffineTransform.about_center(rotation, centers[0], centers[1] - centers[0])
        for rotation in _rotations()[:7]
    ]


def _distinct(transforms: Sequence[AffineTransform], center: FloatArray, most: int) -> list[AffineTransform]:
    kept: list[AffineTransform] = []
    for transform in transforms:
        if all(_apart(transform, other, center, _DISTINCT_MM / 3) for other in kept):
            kept.append(transform)
    return kept[:most]


def _apart(
    first: AffineTransform, second: AffineTransform, center: FloatArray, distance: float = _DISTINCT_MM
) -> bool:
    """Whether two maps put the surroundings of the center at different places."""
    around = center + 80.0 * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    difference = first.transform_points(around) - second.transform_points(around)
    return bool(np.linalg.norm(difference, axis=1).mean() > distance)
