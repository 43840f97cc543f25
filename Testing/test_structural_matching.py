"""Matching with neighbors, on features that encode positions under known maps; the fit against a loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.matching import FeatureIndex, match_points, match_structurally
from SAMRegistrationLib.matching.chunks import AtOnce
from SAMRegistrationLib.matching.local_affine import fit_local_affines
from SAMRegistrationLib.matching.structural import LEAST_NEIGHBORS, WIDE

VOXEL = 4.0
GRID = Grid((30, 28, 26), (VOXEL,) * 3, (-30.0, 10.0, 5.0))
TURN = np.array([[1.06, 0.10, 0.0], [-0.12, 0.95, 0.05], [0.04, -0.03, 1.02]])
SHIFT = np.array([3.0, -2.0, 4.0])
INNER_POINTS = GRID.to_world(
    [[9, 9, 8], [20, 9, 9], [9, 19, 8], [20, 19, 9], [9, 10, 17], [20, 10, 18], [14, 19, 17.4]]
)

Map = Callable[[np.ndarray], np.ndarray]


def _affine(points: np.ndarray) -> np.ndarray:
    return (points - GRID.center) @ TURN.T + GRID.center + SHIFT


def _affine_back(points: np.ndarray) -> np.ndarray:
    return (points - GRID.center - SHIFT) @ np.linalg.inv(TURN).T + GRID.center


def _bend(points: np.ndarray) -> np.ndarray:
    return 3.0 * np.sin(points[..., [1, 2, 0]] / 25.0)


def _elastic_back(points: np.ndarray) -> np.ndarray:
    return points - _bend(points)


def _elastic(points: np.ndarray) -> np.ndarray:
    moved = points
    for _ in range(50):
        moved = points + _bend(moved)
    return moved


def _features(position_of: Map = lambda world: world, grid: Grid = GRID) -> Features:
    """Unit vectors that say which position a voxel shows, different for every position."""
    frequencies = np.random.default_rng(3).normal(size=(32, 3)) / 20
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    phase = position_of(grid.to_world(np.stack([x, y, z], -1))) @ frequencies.T
    vectors = torch.from_numpy(np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)).permute(3, 0, 1, 2)[None]
    return Features(FeatureMap(functional.normalize(vectors, dim=1).float(), grid))


def _with_decoys(features: Features, points: np.ndarray) -> Features:
    """The vectors of the 5x5x5 voxels around every point replaced by those of a far corner."""
    data = features.fine.data.clone()
    for x, y, z in np.rint(features.fine.grid.to_voxel(points)).astype(int):
        data[:, :, z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = data[:, :, -6:-1, -6:-1, -6:-1]
    return Features(FeatureMap(data, features.fine.grid))


def _mask(lower: tuple[int, int, int], upper: tuple[int, int, int]) -> Image:
    """1 from voxel `lower` to before voxel `upper` (x, y, z)."""
    data = torch.zeros(GRID.shape)
    data[lower[2] : upper[2], lower[1] : upper[1], lower[0] : upper[0]] = 1
    return Image(data, GRID)


@pytest.mark.parametrize(("there", "back"), [(_affine, _affine_back), (_elastic, _elastic_back)])
def test_neighbors_find_points_whose_own_vectors_mislead(there: Map, back: Map) -> None:
    fixed, moving = _with_decoys(_features(), INNER_POINTS), _features(back)
    truth = there(INNER_POINTS)
    alone = np.linalg.norm(match_points(INNER_POINTS, fixed, moving).matched - truth, axis=1)
    together = match_structurally(INNER_POINTS, fixed, moving)
    errors = np.linalg.norm(together.matched - truth, axis=1)
    assert alone.min() > 5 * VOXEL
    assert errors.max() < VOXEL
    assert np.median(errors) < VOXEL / 2


def test_undisturbed_points_are_found_to_a_fraction_of_a_voxel_and_well_supported() -> None:
    matches = match_structurally(INNER_POINTS, _features(), _features(_affine_back))
    errors = np.linalg.norm(matches.matched - _affine(INNER_POINTS), axis=1)
    assert errors.max() < VOXEL / 4
    assert matches.support.min() > 0.8
    assert matches.residual.max() < VOXEL / 2
    assert matches.score.min() > 0.95
    assert matches.cycle_error.max() < VOXEL


def test_neighbors_that_disagree_support_little() -> None:
    noise = functional.normalize(
        torch.randn(1, 64, *GRID.shape, generator=torch.Generator().manual_seed(1)), dim=1
    )
    matches = match_structurally(INNER_POINTS, _features(), Features(FeatureMap(noise, GRID)))
    assert matches.support.max() < 0.5
    assert matches.residual.min() > VOXEL


def test_points_at_the_border_are_matched_with_the_neighbors_they_have() -> None:
    corner = GRID.to_world([[0.0, 0.0, 0.0], [-0.4, 14.0, 13.0], [29.0, 27.0, 25.0]])
    matches = match_structurally(corner, _features(), _features())
    assert np.linalg.norm(matches.matched - corner, axis=1).max() < VOXEL
    assert matches.support.min() > 0.5


def test_points_with_too_few_neighbors_in_the_mask_are_matched_alone() -> None:
    mask = _mask((8, 8, 7), (11, 11, 10))
    fixed, moving = _features(), _features(_affine_back)
    expected = match_points(INNER_POINTS[:2], fixed, moving, mask)
    matches = match_structurally(INNER_POINTS[:2], fixed, moving, mask)
    assert len(WIDE.offsets()) > LEAST_NEIGHBORS
    np.testing.assert_array_equal(matches.matched, expected.matched)
    np.testing.assert_array_equal(matches.cycle_error, expected.cycle_error)
    np.testing.assert_array_equal(matches.support, 0)
    assert np.isinf(matches.residual).all()


def test_neighbors_outside_the_mask_of_the_fixed_volume_have_no_say() -> None:
    points = INNER_POINTS[:1]
    disturbed = _features()
    disturbed.fine.data[..., 11:] = disturbed.fine.data[..., 28:29]
    mask = _mask((0, 0, 0), (11, 28, 26))
    with_mask = match_structurally(points, disturbed, _features(_affine_back), mask)
    without = match_structurally(points, disturbed, _features(_affine_back))
    assert np.linalg.norm(with_mask.matched - _affine(points)) < VOXEL / 2
    assert with_mask.support[0] > without.support[0] + 0.1


def test_partners_lie_in_the_mask_of_the_moving_volume() -> None:
    mask = _mask((4, 4, 4), (16, 16, 16))
    matches = match_structurally(INNER_POINTS, _features(), _features(_affine_back), None, mask)
    voxel = GRID.to_voxel(matches.matched)
    assert voxel.min() >= 3.5 and voxel.max() <= 15.5


def test_no_points_give_no_matches() -> None:
    matches = match_structurally(np.empty((0, 3)), _features(), _features())
    assert len(matches) == len(matches.support) == len(matches.residual) == 0


def test_a_point_is_matched_the_same_whatever_points_come_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("SAMRegistrationLib.matching.structural._POINTS_AT_ONCE", AtOnce(5, 5))
    points = GRID.to_world(np.random.default_rng(2).uniform(1, 24, (12, 3)))
    order = np.random.default_rng(5).permutation(len(points))
    fixed, moving = FeatureIndex(_features()), FeatureIndex(_features(_affine_back))
    straight, shuffled = (match_structurally(chosen, fixed, moving) for chosen in (points, points[order]))
    np.testing.assert_allclose(straight.matched[order], shuffled.matched, atol=1e-3)
    chosen = straight.select(order)
    np.testing.assert_allclose(chosen.support, shuffled.support, atol=1e-3)
    np.testing.assert_allclose(chosen.residual, shuffled.residual, atol=1e-3)


def test_half_precision_finds_the_same_places() -> None:
    fixed, moving = _features(), _features(_affine_back)
    halves = (Features(features.fine.to(dtype=torch.float16)) for features in (fixed, moving))
    full = match_structurally(INNER_POINTS, fixed, moving)
    np.testing.assert_allclose(match_structurally(INNER_POINTS, *halves).matched, full.matched, atol=0.5)


def test_a_search_of_blocks_finds_what_a_search_of_all_cells_finds() -> None:
    grid = Grid((21, 15, 13), (VOXEL,) * 3)
    index = FeatureIndex(_features(grid=grid))
    voxels = np.stack(np.meshgrid(*[np.arange(0, n, 3) for n in grid.size]), -1).reshape(-1, 3)
    queries = index.vectors_at(grid.to_world(voxels))
    np.testing.assert_array_equal(index.nearest(queries, thorough=False)[0], index.nearest(queries)[0])


def test_the_batched_fit_is_that_of_a_loop_of_least_squares() -> None:
    generator = np.random.default_rng(0)
    offsets = WIDE.offsets()
    points = generator.uniform(-50, 50, (6, 3))
    neighbors = points[:, None] + offsets
    matched = _affine(neighbors) + generator.normal(0, 1, neighbors.shape)
    outliers = generator.random(matched.shape[:2]) < 0.25
    matched[outliers] += generator.uniform(30, 60, (outliers.sum(), 3))
    usable = generator.random(matched.shape[:2]) < 0.8
    found = fit_local_affines(
        *(torch.from_numpy(array) for array in (points, offsets, matched, usable)), 15.0, 5.0
    )
    for row in range(len(points)):
        expected = _fitted_alone(offsets[usable[row]], (matched - neighbors)[row, usable[row]])
        np.testing.assert_allclose(found.mapped[row].numpy() - points[row], expected[0], atol=1e-7)
        np.testing.assert_allclose(found.matrix[row].numpy() - np.eye(3), expected[1:].T / 20, atol=1e-7)
    assert np.abs(found.mapped.numpy() - _affine(points)).max() < 1.5


def _fitted_alone(offsets: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Coefficients (4, 3) of the same fit for one point: rows of a ridge below those of the neighbors."""
    design = np.column_stack([np.ones(len(offsets)), offsets / 20])
    ridge = np.diag(np.sqrt([3e-4, 0.3, 0.3, 0.3]))
    predicted = np.sort(moved, axis=0)[(len(moved) - 1) // 2][None]
    coefficients = np.zeros((4, 3))
    for iteration in range(6):
        scale = max(5.0, 15.0 * 0.7**iteration)
        weight = 1 / (1 + ((moved - predicted) ** 2).sum(axis=1) / scale**2) ** 2
        rows = np.vstack([design * np.sqrt(weight)[:, None], ridge])
        values = np.vstack([moved * np.sqrt(weight)[:, None], np.zeros((4, 3))])
        coefficients = np.linalg.lstsq(rows, values, rcond=None)[0]
        predicted = design @ coefficients
    return coefficients


def test_neighbors_in_a_plane_are_moved_without_shear_out_of_it() -> None:
    offsets = torch.from_numpy(WIDE.offsets())
    flat = (offsets[:, 2] == 0)[None]
    fit = fit_local_affines(torch.zeros(1, 3), offsets, offsets[None] + 7.0, flat, 15.0, 5.0)
    np.testing.assert_allclose(fit.mapped[0].numpy(), 7.0, atol=1e-2)
    np.testing.assert_allclose(fit.matrix[0].numpy(), np.eye(3), atol=1e-3)
