"""Linear maps fitted to matches together with what is known about people: how much they differ in size and shape.

Least squares stretches and shears as noise demands, which does harm wherever the map is carried beyond the
matches. Here the linear part is drawn toward a rigid motion by as much as people differ, and matches count for no
more than they are worth: those next to each other err alike, because the deformation between two people is smooth,
and where only a part of the body is matched, what fits there exactly holds the less elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..grid import FloatArray
from ..transforms import AffineTransform
from .refinement import Model
from .robust_fit import Fit, fit_transform, robust_fit

LEAST_MATCHES = 30

COMMON_STRETCH = 0.06
"""Standard deviation of the logarithm of how much one person is larger than another."""

UNEQUAL_STRETCH = 0.09
"""Standard deviation of each of the five ways to stretch and shear at the same volume."""

WORTH_IN_A_PART = 1 / 15
"""Of a match where only a part of the body is matched: what fits that exactly need not hold elsewhere."""

_TURN = 0.5
"""In radians; patients are turned by what they are turned."""

_FORBIDDEN = 1e-4
_FIRST_TOLERANCE_MM = 20.0
_INLIER_MM = 1.5 * _FIRST_TOLERANCE_MM
_RESIDUALS_TOLERATED = 4.0
"""Generous: the matches of a head bent back are right, and a map that gives them up misses its organs by 3 cm."""

_LEAST_TOLERANCE_MM = 4.0
_LEAST_VARIANCE_MM2 = 16.0
"""In a small part a smooth deformation looks linear and is met exactly; that does not make it hold elsewhere."""

_COARSE_ROUNDS, _ROUNDS = 10, 30


def fit_with_prior(
    fixed_points: FloatArray,
    moving_points: FloatArray,
    weights: FloatArray,
    model: Model,
    seed: int = 0,
    worth: float = 1.0,
) -> Fit:
    """The most probable map, given matches of which many may be wrong.

    It begins with the rigid motion that most matches agree with. Weights of Geman and McClure are then recomputed
    around the most probable map, with a tolerance that shrinks to four times the median residual.

    Args:
        fixed_points: (n, 3) in fixed world.
        moving_points: (n, 3) in moving world.
        weights: (n,) confidence of each match, positive.
        model: what is free; for "translation" use `robust_fit`.
        seed: of the choice of hypotheses.
        worth: independent errors per match, at most 1.

    Returns:
        The map; its inliers are the matches within 30 mm.

    Raises:
        InputError: if there are too few matches, or no rigid motion that enough of them agree with.
        ValueError: for the model "translation".
    """
    if model is Model.TRANSLATION:
        raise ValueError("a translation has no linear part to be drawn toward anything")
    if len(fixed_points) < LEAST_MATCHES:
        raise InputError(f"only {len(fixed_points)} matched points, too few to look again")
    start = robust_fit(fixed_points, moving_points, weights, Model.RIGID, _FIRST_TOLERANCE_MM, seed=seed)
    transform = start.transform
    for iteration in range(_ROUNDS):
        residuals = _residuals(transform, fixed_points, moving_points)
        tolerance = max(_RESIDUALS_TOLERATED * _weighted_median(residuals, weights), _LEAST_TOLERANCE_MM)
        if iteration < _COARSE_ROUNDS:
            tolerance = max(tolerance, _FIRST_TOLERANCE_MM * (1.5 - iteration / _COARSE_ROUNDS))
        trusted = weights / np.square(1 + np.square(residuals / tolerance))
        transform = _most_probable(fixed_points, moving_points, trusted, residuals, model, worth)
    return fit_of(transform, model, fixed_points, moving_points)


def fit_of(transform: AffineTransform, model: Model, fixed_points: FloatArray, moving_points: FloatArray) -> Fit:
    """What a map makes of matches (n, 3): its inliers are those within 30 mm."""
    residuals = _residuals(transform, fixed_points, moving_points)
    inliers = residuals < _INLIER_MM
    return Fit(transform, model, inliers, float(np.median(residuals[inliers])) if inliers.any() else np.inf)


def _most_probable(
    fixed_points: FloatArray,
    moving_points: FloatArray,
    weights: FloatArray,
    residuals: FloatArray,
    model: Model,
    worth: float,
) -> AffineTransform:
    """Ridge regression of what the closest rigid motion leaves, in units of how much people differ."""
    rigid = fit_transform(fixed_points, moving_points, weights, Model.RIGID)
    left = rigid.inverse().transform_points(moving_points) - fixed_points
    share = weights / weights.sum()
    center, shift = share @ fixed_points, share @ left
    variance = max(float(share @ np.square(residuals)) / 3, _LEAST_VARIANCE_MM2)
    precision = worth * weights / weights.max() / variance
    design = np.einsum("kij,nj->nik", _GENERATORS, fixed_points - center)
    normal = np.einsum("nik,n,nil->kl", design, precision, design) + np.diag(1 / np.square(_deviations(model)))
    amounts = np.linalg.solve(normal, np.einsum("nik,n,ni->k", design, precision, left - shift))
    linear = np.eye(3) + np.einsum("k,kij->ij", amounts, _GENERATORS)
    return rigid.compose(AffineTransform.about_center(linear, center, shift))


def _deviations(model: Model) -> FloatArray:
    common = _FORBIDDEN if model is Model.RIGID else COMMON_STRETCH
    unequal = UNEQUAL_STRETCH if model is Model.AFFINE else _FORBIDDEN
    return np.array([_TURN] * 3 + [common] + [unequal] * 5)


def _generators() -> NDArray[np.float64]:
    """(9, 3, 3): three turns, the common stretch, and five orthonormal ways to change the shape only."""
    units = np.eye(3)
    turns, shears = [], []
    for first, second in ((1, 2), (2, 0), (0, 1)):
        corner = np.outer(units[first], units[second])
        turns.append(corner.T - corner)
        shears.append((corner + corner.T) / np.sqrt(2))
    unequal = [np.diag([1, -1, 0]) / np.sqrt(2), np.diag([-1, -1, 2]) / np.sqrt(6)]
    return np.stack([*turns, np.eye(3), *unequal, *shears])


_GENERATORS = _generators()


def _residuals(transform: AffineTransform, fixed_points: FloatArray, moving_points: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(transform.transform_points(fixed_points) - moving_points, axis=1))


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][min(np.searchsorted(total, total[-1] / 2), len(values) - 1)])
