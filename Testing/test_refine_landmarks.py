"""Landmark pairs: what is refused, which contradict the rest, and how they are met exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import rotation

from SAMRegistrationLib import AffineTransform, Grid, Image, LandmarkPairs
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.refinement.consistency import contradicting, left_out_scores
from SAMRegistrationLib.refinement.correction import exact_correction, wendland
from SAMRegistrationLib.refinement.landmarks import in_air, require_usable
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant

GRID = Grid((50, 50, 50), (4.0,) * 3, (-100.0,) * 3)
T = AffineTransform.about_center(rotation((0.1, 0.0, 0.2)), (0, 0, 0), (6.0, -3.0, 2.0))
POINTS = np.array(
    [[40, 10, 0], [-45, 12, 5], [38, -30, 30], [-40, -28, 33], [5, 20, -40], [20, 35, 45], [-15, 0, -10.0]]
)


def tissue() -> Image:
    """Tissue all over, but for a pocket of air."""
    data = torch.full(GRID.shape, 40.0)
    data[:, :, :8] = -1000
    return Image(data, GRID, "int16", "CT")


def require(fixed: np.ndarray, moving: np.ndarray) -> None:
    require_usable(LandmarkPairs(fixed, moving), T, tissue(), tissue())


def test_pairs_that_fit_are_let_pass() -> None:
    random = np.random.default_rng(0)
    require(POINTS, T.transform_points(POINTS) + random.normal(0, 5, POINTS.shape))


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(InputError, match="7 fixed and 6 moving landmarks; each needs its partner"):
        LandmarkPairs(POINTS, POINTS[:6])
    with pytest.raises(InputError, match="landmark 2 has no moving position"):
        LandmarkPairs.from_json([{"fixed": [0, 0, 0], "moving": [0, 0, 0]}, {"fixed": [1, 1, 1]}])


@pytest.mark.parametrize(
    ("mirror", "sentence"),
    [
        ((-1, -1, 1), "look like RAS coordinates"),
        ((-1, 1, 1), "mirrored, left for right"),
    ],
)
def test_mirrored_landmarks_are_told(mirror: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        require(POINTS, T.transform_points(POINTS) * mirror)


def test_lists_given_to_the_other_volume_are_told() -> None:
    far = AffineTransform.about_center(rotation((0.1, 0.0, 0.2)), (0, 0, 0), (30.0, -15.0, 10.0))
    pairs = LandmarkPairs(far.transform_points(POINTS), POINTS)
    with pytest.raises(InputError, match="the fixed and the moving landmarks look exchanged"):
        require_usable(pairs, far, tissue(), tissue())


def test_two_exchanged_partners_are_told_by_name() -> None:
    moving = T.transform_points(POINTS)
    moving[[0, 1]] = moving[[1, 0]]
    with pytest.raises(InputError, match=r"landmarks 1 and 2 look exchanged \(left for right\): swap them"):
        require(POINTS, moving)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.0, 12.0))
def test_a_result_that_is_merely_wrong_is_not_taken_for_a_mirrored_one(seed: int, error: float) -> None:
    random = np.random.default_rng(seed)
    require(
        POINTS,
        T.transform_points(POINTS) + random.normal(0, 1, (1, 3)) * error + random.normal(0, 2, POINTS.shape),
    )


def test_points_outside_are_refused_and_points_in_air_are_named() -> None:
    far = POINTS.copy()
    far[3] = (500, 0, 0)
    with pytest.raises(InputError, match="the fixed position of landmark 4 lies outside the fixed volume"):
        require(far, T.transform_points(POINTS))
    with pytest.raises(InputError, match="the moving position of landmark 4 lies outside the moving volume"):
        require(POINTS, far)
    pairs = LandmarkPairs([[0, 0, 0], [-95, 0, 0]], [[0, 0, 0], [5, 0, 0]])
    np.testing.assert_array_equal(in_air(pairs, tissue(), tissue()), [False, True])


def test_the_same_fixed_point_twice_is_refused() -> None:
    with pytest.raises(InputError, match="landmarks 1 and 2 are the same"):
        require(POINTS[[0, 0]], T.transform_points(POINTS[:2]))


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (["a point"], UsageError, "must be objects"),
        ([{"fixed": [1, 2], "moving": [1, 2, 3]}], UsageError, "landmark 1 is not as it should be"),
        ([{"fixed": [1, 2, math.nan], "moving": [1, 2, 3]}], InputError, "not a finite number"),
        ([{"fixed": [1, 2, 3], "moving": [1, 2, 3], "weight_mm": -1}], InputError, "positive number of mm"),
    ],
)
def test_landmarks_that_are_none_are_refused(content: list, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        LandmarkPairs.from_json(content)


def test_landmarks_from_json_have_defaults() -> None:
    pairs = LandmarkPairs.from_json(
        [
            {"fixed": [1, 2, 3], "moving": [4, 5, 6]},
            {"fixed": [0] * 3, "moving": [1] * 3, "exact": True, "label": "b"},
        ]
    )
    assert pairs.labels == ("1", "b") and pairs.exact.tolist() == [False, True]
    assert pairs.weights_mm.tolist() == [1.0, 1.0] and pairs.selected(pairs.exact).labels == ("b",)


def smooth_corrections(points: np.ndarray) -> np.ndarray:
    return np.stack([3 + 2 * np.sin(points[:, 1] / 60), points[:, 0] / 40, np.cos(points[:, 2] / 70)], axis=1)


def test_one_wrong_pair_among_many_is_flagged_and_no_other() -> None:
    points = np.random.default_rng(2).uniform(-80, 80, (14, 3))
    corrections = smooth_corrections(points)
    assert not contradicting(points, corrections, np.ones(14)).any()
    for wrong in (0, 7):
        spoiled = corrections.copy()
        spoiled[wrong] += (0.0, 14.0, -9.0)
        assert np.flatnonzero(contradicting(points, spoiled, np.ones(14))).tolist() == [wrong]


def test_a_common_shift_contradicts_nothing() -> None:
    points = np.random.default_rng(3).uniform(-80, 80, (8, 3))
    shifted = smooth_corrections(points) + np.array([40.0, -25.0, 60.0])
    assert not contradicting(points, shifted, np.ones(8)).any()


def test_three_pairs_cannot_outvote_one_another() -> None:
    assert not contradicting(POINTS[:3], np.diag([1.0, 1.0, 80.0]), np.ones(3)).any()


def test_scores_of_left_out_pairs_are_those_of_leaving_them_out() -> None:
    points = np.random.default_rng(4).uniform(-60, 60, (7, 3))
    corrections = smooth_corrections(points) + np.random.default_rng(5).normal(0, 1, (7, 3))
    spread = max(
        1.0, float(np.median(np.linalg.norm(corrections - np.median(corrections, axis=0), axis=1))) / 1.54
    )
    squared = np.square(points[:, None] - points[None]).sum(axis=-1)
    covariance = spread**2 * np.exp(-squared / (2 * 60.0**2)) + (100 * spread) ** 2 + np.eye(7)
    expected = []
    for i in range(7):
        others = np.delete(np.arange(7), i)
        gain = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, i])
        variance = covariance[i, i] - gain @ covariance[others, i]
        expected.append(np.linalg.norm(corrections[i] - gain @ corrections[others]) / np.sqrt(3 * variance))
    np.testing.assert_allclose(left_out_scores(points, corrections, np.ones(7)), expected, rtol=1e-6)


def test_the_radial_function_is_one_at_its_center_and_ends_smoothly_at_its_reach() -> None:
    distance = torch.linspace(0, 1.2, 1201, dtype=torch.float64)
    values = wendland(distance)
    assert float(values[0]) == 1 and float(values[1000:].abs().max()) == 0
    slope = values.diff() / distance.diff()
    assert float(slope.abs().max()) == pytest.approx(2.11, abs=0.01)
    assert float(slope.diff().abs().max()) < 0.03


def test_a_single_landmark_moves_its_surroundings_by_the_radial_function() -> None:
    # In one step: what several short steps do differs only by how they lead around.
    point, step = np.array([[3.0, -4.0, 5.0]]), np.array([[0.2, 0.1, -0.1]])
    field = exact_correction(point, step, reach=30.0, spacing=1.0)
    places = point + np.array([[0, 0, 0], [6, 0, 0], [0, 15, 0], [0, 0, 29.9], [0, 40, 0]])
    expected = wendland(torch.tensor([0, 0.2, 0.5, 29.9 / 30, 2.0])).numpy()[:, None] * step
    np.testing.assert_allclose(field.transform_points(places) - places, expected, atol=0.01)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.0, 8.0))
def test_landmarks_are_met_exactly_without_folding(seed: int, length: float) -> None:
    random = np.random.default_rng(seed)
    points = np.array([[0, 0, 0], [30, 5, 0], [-25, 20, 10], [5, -30, 20.0]]) + random.uniform(-4, 4, (4, 3))
    steps = random.normal(size=(4, 3))
    steps *= length / np.linalg.norm(steps, axis=1, keepdims=True)
    field = exact_correction(points, steps, spacing=3.0)
    assert np.linalg.norm(field.transform_points(points) - points - steps, axis=1).max() < 0.06
    assert float(smallest_corner_determinant(field.to_voxels()).min()) > 0
    faces = [field.data.select(dimension, face) for dimension in (2, 3, 4) for face in (0, -1)]
    assert max(float(face.abs().max()) for face in faces) == 0


def test_landmarks_that_contradict_each_other_are_met_in_part_and_nothing_folds() -> None:
    points = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    field = exact_correction(points, np.array([[6.0, 0, 0], [-6.0, 0, 0]]), spacing=2.0)
    assert float(smallest_corner_determinant(field.to_voxels()).min()) > 0
