"""Rigid, similarity and affine maps fitted to matched points of which many may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..grid import FloatArray
from ..transforms import AffineTransform
from .refinement import TYPICAL_STRETCH, Model

LEAST_POINTS = {Model.TRANSLATION: 3, Model.RIGID: 6, Model.SIMILARITY: 10, Model.AFFINE: 24}
"""Inliers that a model needs; with fewer a simpler one is fitted."""

_SIMPLER = {Model.AFFINE: Model.SIMILARITY, Model.SIMILARITY: Model.RIGID, Model.RIGID: Model.TRANSLATION}
_SAMPLE_SIZE = {Model.TRANSLATION: 1, Model.RIGID: 3, Model.SIMILARITY: 3, Model.AFFINE: 3}
_LEAST_SPREAD_MM = 12.0
"""Standard deviation of the inliers along their thinnest direction that an affine fit needs."""

_LARGEST_STRETCH = 1.6
_LARGEST_ANISOTROPY = 1.6
_AFFINE_PRIOR_POINTS = 20.0


@dataclass(frozen=True, eq=False)
class Fit:
    """A map and the matches that agree with it.

    Args:
        transform: from fixed to moving world.
        model: what was fitted in the end.
        inliers: (n,) bool.
        residual: median distance of the inliers in mm.
    """

    transform: AffineTransform
    model: Model
    inliers: NDArray[np.bool_]
    residual: float


def fit_transform(
    fixed_points: FloatArray, moving_points: FloatArray, weights: FloatArray | None, model: Model
) -> AffineTransform:
    """Weighted least squares: a closed form without any robustness.

    Rigid and similarity maps after Umeyama (1991), never a reflection. The affine map is drawn toward the
    similarity as if by a few more matches, so that thin or one-sided point sets cannot shear it at will.

    Args:
        fixed_points: (n, 3).
        moving_points: (n, 3).
        weights: (n,), not negative; None for equal ones.
        model: what is free.
    """
    w = np.ones(len(fixed_points)) if weights is None else np.asarray(weights, dtype=np.float64)
    w = w / max(w.sum(), 1e-12)
    center, target = w @ fixed_points, w @ moving_points
    if model is Model.TRANSLATION:
        return AffineTransform.translation(target - center)
    x, y = fixed_points - center, moving_points - target
    u, s, vt = np.linalg.svd((y * w[:, None]).T @ x)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    linear = (u * signs) @ vt
    if model is not Model.RIGID:
        linear = linear * ((s * signs).sum() / max(float(w @ np.square(x).sum(axis=1)), 1e-12))
    if model is Model.AFFINE:
        second = (x * w[:, None]).T @ x
        prior = np.trace(second) / 3 * _AFFINE_PRIOR_POINTS / (_AFFINE_PRIOR_POINTS + len(x)) * 0.1
        linear = ((y * w[:, None]).T @ x + prior * linear) @ np.linalg.inv(second + prior * np.eye(3))
    return AffineTransform.about_center(linear, center, target - center)


def robust_fit(
    fixed_points: FloatArray,
    moving_points: FloatArray,
    scores: FloatArray,
    model: Model = Model.AFFINE,
    tolerance_mm: float = 15.0,
    hypotheses: int = 3000,
    seed: int = 0,
) -> Fit:
    """The map that most matches agree with.

    Similarities through random triples are judged by a truncated squared residual (MSAC; Torr and Zisserman 2000),
    the best one is improved by reweighted least squares (Geman-McClure) with growing freedom. A model is only as
    free as its inliers support; implausible maps fall back to the simpler model.

    Args:
        fixed_points: (n, 3) in fixed world.
        moving_points: (n, 3) in moving world.
        scores: (n,) confidence of each match, not negative.
        model: the most that may be fitted.
        tolerance_mm: distance at which a match begins to count as wrong.
        hypotheses: number of random triples.
        seed: of their choice.

    Raises:
        InputError: if there are too few matches, or no map that enough of them agree with.
    """
    count = len(fixed_points)
    if count < LEAST_POINTS[Model.RIGID]:
        raise InputError(
            f"only {count} points of the two volumes could be matched; they may show different anatomy"
        )
    start = _best_hypothesis(fixed_points, moving_points, scores, model, tolerance_mm, hypotheses, seed)
    fit = _reweighted(fixed_points, moving_points, scores, start, _rigid_like(model), tolerance_mm)
    chosen = model
    while True:
        candidate = fit
        if chosen is not _rigid_like(model):
            candidate = _reweighted(fixed_points, moving_points, scores, fit.transform, chosen, tolerance_mm)
        if _supported(candidate, fixed_points, chosen):
            return candidate
        if chosen not in _SIMPLER or int(fit.inliers.sum()) < LEAST_POINTS[Model.RIGID]:
            raise InputError(
                f"only {int(fit.inliers.sum())} of {count} matched points agree on a plausible alignment"
            )
        chosen = _SIMPLER[chosen]


def _rigid_like(model: Model) -> Model:
    return Model.RIGID if model is Model.RIGID else Model.SIMILARITY


def _best_hypothesis(
    x: FloatArray, y: FloatArray, scores: FloatArray, model: Model, tolerance: float, hypotheses: int, seed: int
) -> AffineTransform:
    triples = _triples(len(x), hypotheses, seed)
    linear, center, target = _similarities(x[triples], y[triples], _rigid_like(model) is Model.RIGID)
    stretch = np.abs(np.linalg.det(linear)) ** (1 / 3)
    plausible = (stretch > 1 / _LARGEST_STRETCH) & (stretch < _LARGEST_STRETCH)
    gain = np.clip(1 - _squared_residuals(x, y, linear, center, target) / tolerance**2, 0, None) @ scores
    best = int(np.argmax(np.where(plausible, gain, -1.0)))
    return AffineTransform.about_center(linear[best], center[best], target[best] - center[best])


def _triples(count: int, number: int, seed: int) -> NDArray[np.intp]:
    """(number, 3) random indices below `count`, three different ones each."""
    first, second, third = np.random.default_rng(seed).integers(0, [count, count - 1, count - 2], (number, 3)).T
    second = second + (second >= first)
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    third = third + (third >= lower)
    return np.stack([first, second, third + (third >= upper)], axis=1)


def _squared_residuals(
    x: FloatArray, y: FloatArray, linear: FloatArray, center: FloatArray, target: FloatArray
) -> FloatArray:
    """(h, n) squared distances of y (n, 3) from where similarities (h, 3, 3) about centers (h, 3) put x (n, 3).

    Expanded into products of what belongs to a map and what belongs to a match: one matrix product instead of
    three numbers for every pair of them. Around the means nothing large cancels.
    """
    middle, there = x.mean(axis=0), y.mean(axis=0)
    x, y = x - middle, y - there
    offset = target - there - np.einsum("hij,hj->hi", linear, center - middle)
    stretch = np.square(linear).sum(axis=(1, 2)) / 3
    of_map = [
        stretch[:, None],
        2 * np.einsum("hij,hi->hj", linear, offset),
        -2 * linear.reshape(-1, 9),
        -2 * offset,
        np.ones((len(linear), 1)),
        np.square(offset).sum(axis=1, keepdims=True),
    ]
    of_match = [
        np.square(x).sum(axis=1, keepdims=True),
        x,
        (y[:, :, None] * x[:, None]).reshape(-1, 9),
        y,
        np.square(y).sum(axis=1, keepdims=True),
        np.ones((len(x), 1)),
    ]
    return np.asarray(np.concatenate(of_map, axis=1) @ np.concatenate(of_match, axis=1).T)


def _similarities(x: FloatArray, y: FloatArray, rigid: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Least-squares similarities through triples (h, 3, 3): linear parts, fixed and moving centers."""
    center, target = x.mean(axis=1), y.mean(axis=1)
    a, b = x - center[:, None], y - target[:, None]
    u, s, vt = np.linalg.svd(np.einsum("hni,hnj->hij", b, a))
    signs = np.ones_like(s)
    signs[:, 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    linear = (u * signs[:, None, :]) @ vt
    if not rigid:
        stretch = (s * signs).sum(axis=1) / np.maximum(np.square(a).sum(axis=(1, 2)), 1e-9)
        linear = linear * np.maximum(stretch, 1e-3)[:, None, None]
    return linear, center, target


def _reweighted(
    x: FloatArray, y: FloatArray, scores: FloatArray, start: AffineTransform, model: Model, tolerance: float
) -> Fit:
    transform = start
    for scale in tolerance * np.linspace(1.5, 1.0, 12):
        squared = np.square(transform.transform_points(x) - y).sum(axis=1)
        weights = scores / np.square(1 + squared / scale**2)
        transform = fit_transform(x, y, weights, model)
    residuals = np.linalg.norm(transform.transform_points(x) - y, axis=1)
    inliers = residuals < 1.5 * tolerance
    return Fit(transform, model, inliers, float(np.median(residuals[inliers])) if inliers.any() else np.inf)


def _supported(fit: Fit, points: FloatArray, model: Model) -> bool:
    if int(fit.inliers.sum()) < LEAST_POINTS[model]:
        return False
    spread = np.linalg.svd(points[fit.inliers] - points[fit.inliers].mean(axis=0), compute_uv=False)
    spread = spread / np.sqrt(fit.inliers.sum())
    # Three points on a line leave a turn about it free; four in a plane leave the stretch across it free.
    if model is Model.AFFINE and spread[2] < _LEAST_SPREAD_MM:
        return False
    if model is not Model.TRANSLATION and spread[1] < _LEAST_SPREAD_MM / 4:
        return False
    return plausible(fit.transform)


def plausible(transform: AffineTransform) -> bool:
    """Whether a map could lie between two people: no reflection, no extreme stretch or shear."""
    linear = transform.matrix[:3, :3]
    stretches = np.linalg.svd(linear, compute_uv=False)
    return bool(
        np.linalg.det(linear) > 0
        and stretches[0] < _LARGEST_STRETCH
        and stretches[2] > 1 / _LARGEST_STRETCH
        and stretches[0] / stretches[2] < _LARGEST_ANISOTROPY
    )


def unusual_stretch(transform: AffineTransform) -> float:
    """The largest stretch or compression along any direction, in typical deviations between people."""
    stretches = np.linalg.svd(transform.matrix[:3, :3], compute_uv=False)
    return float(np.abs(np.log(stretches)).max() / TYPICAL_STRETCH)
