"""What a rigid map leaves between two aligned volumes: bending that they share, or only the noise of matches.

Small patches of MIND, which compares any two contrasts, are matched around where the alignment puts them. After
the best rigid map has been taken out of these matches, their displacements are smoothed over neighborhoods, once
from either half of the matches. What both halves say alike is deformation; where they differ is noise. So a body
that has only moved is told from one that has bent, however noisy single matches are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..alignment.feature_alignment import body_grid
from ..alignment.refinement import Model
from ..alignment.robust_fit import fit_transform
from ..body import Regions
from ..features.mind import MindExtractor
from ..grid import FloatArray
from ..matching.peak import peak_offset
from ..methods.problem import Problem, at_shape
from ..transforms import AffineTransform

PATCH_RADIUS, SEARCH_RADIUS = 2, 4
"""In voxels of MIND's map, usually of 4 mm."""

MOST_POINTS = 600
POINT_DISTANCE_MM = 12.0
LEAST_POINTS = 40
"""Fewer matches say nothing."""

SMOOTHING_MM = 20.0
LARGEST_RESIDUAL_MM = 12.0
LEAST_DISTINCTNESS = 3.0
"""Standard deviations by which a match stands out from the places around it."""

FIT_ROUNDS = 8
LEAST_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Residual:
    """What is left after a rigid map, lengths in mm.

    Args:
        matches: number of patches that could be matched.
        bent_mm: root mean square of the displacement that both halves of the matches agree on.
        noise_mm: the same of what they do not agree on.
        reach_mm: 95th percentile of the smoothed displacement that the alignment itself leaves.
    """

    matches: int
    bent_mm: float
    noise_mm: float
    reach_mm: float


def residual_of(problem: Problem, regions: Regions) -> Residual | None:
    """Measure a pair whose initial map is found; None where too few patches match or it is not linear.

    Args:
        problem: the pair.
        regions: of its fixed volume.
    """
    if not isinstance(problem.initial, AffineTransform):
        return None
    points, found = _matched(problem, regions)
    if len(points) < LEAST_POINTS:
        return None
    moved = problem.initial.transform_points(found)
    rigid = _rigid_fit(points, moved)
    left = _clipped(rigid.inverse().transform_points(moved) - points)
    order = np.random.default_rng(problem.seed).permutation(len(points))
    halves = [_smoothed(points, points[part], left[part]) for part in (order[::2], order[1::2])]
    bent = max(0.0, float((halves[0] * halves[1]).sum(axis=1).mean()))
    noise = float(np.square(halves[0] - halves[1]).sum(axis=1).mean()) / 4
    reach = np.linalg.norm(_smoothed(points, points, _clipped(found - points)), axis=1)
    return Residual(len(points), bent**0.5, noise**0.5, float(np.quantile(reach, 0.95)))


def _matched(problem: Problem, regions: Regions) -> tuple[FloatArray, FloatArray]:
    """Points of the fixed body, and where the patches around them lie in the aligned moving volume (LPS mm)."""
    extractor = MindExtractor(device=problem.device)
    fixed, moving = (features.fine for features in problem.features(extractor))
    points = body_grid(regions.body_image, POINT_DISTANCE_MM, MOST_POINTS)
    center = np.rint(fixed.grid.to_voxel(points)).astype(int)
    margin = PATCH_RADIUS + SEARCH_RADIUS
    inside = np.all((center >= margin) & (center < np.asarray(fixed.grid.size) - margin), axis=1)
    center = center[inside]
    if len(center) == 0:
        return np.empty((0, 3)), np.empty((0, 3))
    shown = _cubes(_valid(problem, tuple(moving.data.shape[2:])), center, margin).flatten(1).mean(dim=1) > 0.99
    center = center[shown.cpu().numpy()]
    if len(center) == 0:
        return np.empty((0, 3)), np.empty((0, 3))
    shift, distinct = _best_shifts(fixed.data, moving.data, center)
    start = fixed.grid.to_world(center[distinct])
    return start, fixed.grid.to_world(center[distinct] + shift[distinct])


def _valid(problem: Problem, shape: tuple[int, ...]) -> Tensor:
    """1 where both volumes have data, (1, 1, z, y, x)."""
    valid = torch.ones((1, 1, *shape), device=problem.device)
    for mask in problem.masks():
        if mask is not None:
            valid = valid * at_shape(mask, shape)
    return valid


def _best_shifts(fixed: Tensor, moving: Tensor, center: np.ndarray) -> tuple[FloatArray, np.ndarray]:
    """By how many voxels (n, 3) patches lie elsewhere in the moving map, and which of them stand out."""
    patches = _cubes(fixed.float(), center, PATCH_RADIUS)
    windows = _cubes(moving.float(), center, PATCH_RADIUS + SEARCH_RADIUS)
    count = len(patches)
    alike = functional.conv3d(windows.flatten(0, 1)[None], patches, groups=count)[0]
    flat = alike.flatten(1)
    best = flat.argmax(dim=1)
    side = 2 * SEARCH_RADIUS + 1
    place = torch.stack((best % side, best // side % side, best // side**2), dim=1)
    distinct = (flat.amax(dim=1) - flat.mean(dim=1)) > LEAST_DISTINCTNESS * flat.std(dim=1)
    distinct &= ((place > 0) & (place < side - 1)).all(dim=1)
    rows = torch.arange(count, device=alike.device)
    offsets = []
    for axis in range(3):
        beside = []
        for step in (-1, 0, 1):
            x, y, z = ((place[:, a] + step * (a == axis)).clamp(0, side - 1) for a in range(3))
            beside.append(alike[rows, z, y, x])
        offsets.append(peak_offset(*beside))
    shift = place + torch.stack(offsets, dim=1) - SEARCH_RADIUS
    return shift.double().cpu().numpy(), distinct.cpu().numpy()


def _cubes(volume: Tensor, center: np.ndarray, radius: int) -> Tensor:
    """The surroundings (n, C, w, w, w) of voxels (n, 3) as (x, y, z), all within the volume (1, C, z, y, x)."""
    steps = torch.arange(-radius, radius + 1, device=volume.device)
    x, y, z = (torch.from_numpy(center[:, axis]).to(volume.device)[:, None] + steps for axis in range(3))
    found = volume[0, :, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
    return found.movedim(0, 1)


def _rigid_fit(points: FloatArray, moved: FloatArray) -> AffineTransform:
    """Least squares with weights that fall with the residual (Geman and McClure), from all matches alike."""
    fit = fit_transform(points, moved, None, Model.RIGID)
    for _ in range(FIT_ROUNDS):
        distance = np.linalg.norm(fit.transform_points(points) - moved, axis=1)
        scale = max(LEAST_TOLERANCE_MM, 1.5 * float(np.median(distance)))
        fit = fit_transform(points, moved, (1 + (distance / scale) ** 2) ** -2, Model.RIGID)
    return fit


def _clipped(vectors: FloatArray) -> FloatArray:
    """Vectors (n, 3) of at most `LARGEST_RESIDUAL_MM`: one wrong match shall not make a neighborhood bend."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * np.minimum(1.0, LARGEST_RESIDUAL_MM / np.maximum(length, 1e-9))


def _smoothed(at: FloatArray, points: FloatArray, vectors: FloatArray) -> FloatArray:
    """Means (n, 3) of the vectors around places, weighed by a Gaussian of the distance."""
    squares = np.square(at[:, None] - points[None]).sum(axis=2)
    weights = np.exp(-squares / (2 * SMOOTHING_MM**2)) + 1e-9
    return weights @ vectors / weights.sum(axis=1, keepdims=True)
