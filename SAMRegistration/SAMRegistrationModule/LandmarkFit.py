"""A linear start from pairs of landmarks: as free as their number allows, and not misled by a wrong pair."""

from dataclasses import dataclass

from .Geometry import InputProblem
from .Lazy import numpy as np

RIGID, SIMILARITY, AFFINE = "rigid", "similarity", "affine"
LEAST_PAIRS = {RIGID: 3, SIMILARITY: 4, AFFINE: 6}
"""A freer map needs a pair or two more than would determine it, so that errors show."""

LEAST_PAIRS_WITHOUT_ONE = 5
"""Fewer pairs cannot say which of them is wrong."""

_LEAST_SPREAD_MM = 1.0
_LEAST_THICKNESS_MM = 8.0
_WORTH_FREEDOM = 0.9
_TYPICAL_ERROR_MM = 2.0
_WRONG_MM = 8.0
"""Errors of careful users stay below."""

_ITERATIONS = 30


@dataclass(frozen=True, eq=False)
class LandmarkFit:
    """A linear map between worlds.

    Args:
        matrix: 4x4 from the fixed to the moving world.
        model: "rigid", "similarity" or "affine".
        errors: distances (n,) in mm that remain.
        outliers: indices of pairs that contradict the others.
    """

    matrix: object
    model: str
    errors: object
    outliers: tuple

    def sentence(self, labels) -> str:
        """What was done, for the user."""
        used = [error for index, error in enumerate(self.errors) if index not in self.outliers]
        text = f"Started from {len(used)} pairs of landmarks by {_ARTICLES[self.model]} map"
        text += f", which leaves {np.mean(used):.1f} mm on average"
        if self.outliers:
            names = ", ".join(f'"{labels[index]}"' for index in self.outliers)
            text += f"; left out because the others contradict it: {names}"
        return text + "."


_ARTICLES = {RIGID: "a rigid", SIMILARITY: "a similarity", AFFINE: "an affine"}


def fitLandmarks(fixedPoints, movingPoints, freest: str = AFFINE) -> LandmarkFit:
    """The linear map that fits pairs of points (n, 3) best.

    The freest map is taken that predicts left out pairs clearly better than a simpler one. Pairs that contradict the
    rest lose their weight (Geman-McClure).

    Args:
        fixedPoints, movingPoints: world positions.
        freest: "rigid", "similarity" or "affine": no freer map is taken.

    Raises:
        InputProblem: for fewer than three pairs, or points on one line.
    """
    fixed, moving = np.asarray(fixedPoints, dtype=float), np.asarray(movingPoints, dtype=float)
    if len(fixed) < LEAST_PAIRS[RIGID]:
        raise InputProblem("Three or more pairs of landmarks are needed for a start.")
    spread = np.linalg.svd(fixed - fixed.mean(axis=0), compute_uv=False) / np.sqrt(len(fixed))
    if spread[1] < _LEAST_SPREAD_MM:
        raise InputProblem("The landmarks lie on one line; add one beside it.")
    best = None
    for model, least in LEAST_PAIRS.items():
        if len(fixed) < least or (model == AFFINE and spread[2] < _LEAST_THICKNESS_MM):
            break
        error = _predictionError(fixed, moving, model)
        if best is None or error < _WORTH_FREEDOM * best[0]:
            best = error, model
        if model == freest:
            break
    model = best[1]
    matrix = _robust(fixed, moving, model)
    errors = _errors(matrix, fixed, moving)
    wrong = errors > max(4 * float(np.median(errors)), _WRONG_MM)
    outliers = () if len(fixed) < LEAST_PAIRS_WITHOUT_ONE else tuple(np.flatnonzero(wrong).tolist())
    return LandmarkFit(matrix, model, errors, outliers)


def _predictionError(fixed, moving, model: str) -> float:
    """How far off pairs are, typically, that did not take part in the fit."""
    if len(fixed) <= LEAST_PAIRS[model]:
        return float(np.median(_errors(_robust(fixed, moving, model), fixed, moving))) + _TYPICAL_ERROR_MM
    errors = []
    for index in range(len(fixed)):
        others = np.arange(len(fixed)) != index
        matrix = _robust(fixed[others], moving[others], model)
        errors.append(_errors(matrix, fixed[~others], moving[~others])[0])
    return float(np.median(errors))


def _robust(fixed, moving, model: str):
    """The 4x4 map that most pairs agree with."""
    weights = np.ones(len(fixed))
    matrix = _fitted(fixed, moving, weights, model)
    if len(fixed) < LEAST_PAIRS_WITHOUT_ONE:
        return matrix
    for _ in range(_ITERATIONS):
        errors = _errors(matrix, fixed, moving)
        scale = max(1.5 * float(np.median(errors)), _TYPICAL_ERROR_MM)
        weights = 1 / (1 + (errors / scale) ** 2) ** 2
        matrix = _fitted(fixed, moving, weights, model)
    return matrix


def _fitted(fixed, moving, weights, model: str):
    """Weighted least squares, never a reflection (Umeyama 1991)."""
    shares = weights / weights.sum()
    center, target = shares @ fixed, shares @ moving
    x, y = fixed - center, moving - target
    u, s, vt = np.linalg.svd((y * shares[:, None]).T @ x)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    linear = (u * signs) @ vt
    if model != RIGID:
        linear = linear * ((s * signs).sum() / (shares @ (x**2).sum(axis=1)))
    if model == AFFINE:
        linear = (y * shares[:, None]).T @ x @ np.linalg.inv((x * shares[:, None]).T @ x)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, target - linear @ center
    return matrix


def _errors(matrix, fixed, moving):
    return np.linalg.norm(fixed @ matrix[:3, :3].T + matrix[:3, 3] - moving, axis=1)
