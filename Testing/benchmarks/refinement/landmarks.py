"""Ten landmark pairs on a map that is right but for a smooth error: what they mend, at them and elsewhere."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from SAMRegistrationLib import CompositeTransform, LandmarkPairs, refine
from SAMRegistrationLib.body import body_mask
from SAMRegistrationLib.grid import FloatArray
from SAMRegistrationLib.synthetic import elastic
from SAMRegistrationLib.transforms import Transform

from .cases import Case

LANDMARKS, LANDMARK_ERROR_MM, HELD_OUT = 10, 5.0, 300
TOLERANCE_MM = 0.25
ERROR_MM, ERROR_SCALE_MM = 9.0, 30.0
ITERATIONS = 200
APART_MM = 25.0
_CANDIDATES = 20_000


def landmark_rows(case: Case, seed: int) -> list[dict[str, Any]]:
    """Soft and exact landmarks."""
    wrong = elastic(case.fixed, seed, ERROR_MM, ERROR_SCALE_MM)
    accepted = CompositeTransform([wrong.displacement(case.fixed.grid), case.truth.displacement(case.fixed.grid)])
    body = case.fixed.grid.to_world(torch.nonzero(body_mask(case.fixed)).flip(1).numpy().astype(np.float64))
    random = np.random.default_rng(seed)
    body = body[random.permutation(len(body))[:_CANDIDATES]]
    true = case.truth.transform_points(body)
    error = np.linalg.norm(accepted.transform_points(body) - true, axis=1)
    near = spread_out(body, np.flatnonzero(np.abs(error - LANDMARK_ERROR_MM) < TOLERANCE_MM), LANDMARKS)
    held = np.setdiff1d(np.arange(len(body)), near)[:HELD_OUT]
    return [
        _row(case, accepted, (body[near], true[near]), (body[held], true[held]), exact) for exact in (False, True)
    ]


def _row(
    case: Case,
    accepted: Transform,
    landmarks: tuple[FloatArray, FloatArray],
    held_out: tuple[FloatArray, FloatArray],
    exact: bool,
) -> dict[str, Any]:
    pairs = LandmarkPairs(*landmarks, exact=[exact] * len(landmarks[0]))
    began = time.process_time()
    result = refine(accepted, case.fixed, case.moving, points=pairs, iterations=ITERATIONS, device="cpu")
    seconds = time.process_time() - began
    steps = result.report["details"]["refinement"]["steps"]
    maps = accepted, result.transform
    return {
        "name": case.name,
        "exact": exact,
        "landmarks_mm": [mean_error(each, *landmarks) for each in maps],
        "landmarks_worst_mm": float(pairs.errors(result.transform).max()),
        "held_out_mm": [mean_error(each, *held_out) for each in maps],
        "new_folds": max(step["folded_voxels"]["after"] - step["folded_voxels"]["before"] for step in steps),
        "cpu_seconds": seconds,
    }


def mean_error(transform: Transform, points: FloatArray, truth: FloatArray) -> float:
    """Mean distance in mm of mapped points from where they belong, (n, 3) each."""
    return float(np.linalg.norm(transform.transform_points(points) - truth, axis=1).mean())


def spread_out(points: FloatArray, candidates: Any, count: int) -> Any:
    """The first candidates that lie far from one another."""
    chosen: list[int] = []
    for index in candidates:
        if all(np.linalg.norm(points[index] - points[other]) > APART_MM for other in chosen):
            chosen.append(int(index))
        if len(chosen) == count:
            break
    return np.array(chosen)
