"""Matching in the aligned volume, and the field of trusted matches that helps points whose neighbors cannot."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import phantom_pair

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.matching import Consensus, StructuralMatches, match_structurally
from SAMRegistrationLib.matching.consensus import LEAST_MATCHES
from SAMRegistrationLib.methods.aligned_matching import (
    MARGIN_MM,
    AlignedPointMatcher,
    covering_grid,
    points_in_body,
)
from SAMRegistrationLib.methods.point_matching import EmbeddedVolume

RANDOM = np.random.default_rng(5)
PLACES = RANDOM.uniform(-60, 60, (300, 3))


def _smooth(points: np.ndarray) -> np.ndarray:
    return points + 4.0 * np.sin(points[:, [1, 2, 0]] / 60.0)


def _matches(
    points: np.ndarray, matched: np.ndarray, support: float = 0.6, residual: float = 2.0
) -> StructuralMatches:
    ones = np.ones(len(points))
    return StructuralMatches(points, matched, ones, 0 * ones, support * ones, residual * ones)


def _error(points: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(points - truth, axis=1).mean())


def test_a_common_shift_is_predicted_exactly() -> None:
    shift = np.array([3.0, -2.0, 5.0])
    consensus = Consensus(_matches(PLACES, PLACES + shift))
    asked = RANDOM.uniform(-50, 50, (20, 3))
    np.testing.assert_allclose(consensus.predict(asked), asked + shift, atol=0.05)
    assert consensus.accuracy_mm < 0.05


def test_the_weighted_mean_is_that_of_its_definition() -> None:
    matches = _matches(PLACES[:40], _smooth(PLACES[:40]))
    matches = StructuralMatches(**{**vars(matches), "support": np.linspace(0.1, 0.9, 40)})
    asked = np.array([1.0, 2.0, 3.0])
    weights = np.exp(-np.square(PLACES[:40] - asked).sum(axis=1) / (2 * 25.0**2)) * matches.support**4
    expected = asked + weights @ (matches.matched - matches.points) / (weights.sum() + 1e-3 * 0.9**4)
    np.testing.assert_allclose(Consensus(matches).predict(asked[None])[0], expected, atol=1e-6)


def test_the_field_is_judged_by_matches_that_it_has_not_seen() -> None:
    scattered = PLACES + RANDOM.normal(size=PLACES.shape) * 20
    assert Consensus(_matches(PLACES, scattered)).accuracy_mm > 15
    assert Consensus(_matches(PLACES, _smooth(PLACES))).accuracy_mm < 1.5


def test_points_with_wrong_neighbors_follow_the_field() -> None:
    consensus = Consensus(_matches(PLACES, _smooth(PLACES)))
    asked = RANDOM.uniform(-45, 45, (50, 3))
    wrong = _matches(asked, _smooth(asked) + RANDOM.normal(size=(50, 3)) * 15, residual=12.0)
    improved = consensus.improve(wrong)
    assert _error(improved.matched, _smooth(asked)) < 2.0
    alone = StructuralMatches(**{**vars(wrong), "residual": np.full(50, np.inf)})
    np.testing.assert_array_equal(consensus.improve(alone).matched, consensus.predict(asked))


def test_points_are_left_where_people_differ_more_than_the_field_can_follow() -> None:
    consensus = Consensus(_matches(PLACES, PLACES + RANDOM.normal(size=PLACES.shape) * 10))
    asked = RANDOM.uniform(-45, 45, (50, 3))
    good = _matches(asked, asked + np.array([0.0, 25.0, 0.0]), residual=3.0)
    assert _error(consensus.improve(good).matched, good.matched) < 0.1


def test_a_handful_of_matches_is_no_consensus() -> None:
    few = _matches(PLACES[: LEAST_MATCHES - 1], _smooth(PLACES[: LEAST_MATCHES - 1]))
    asked = _matches(PLACES[200:], PLACES[200:] + 9.0, residual=50.0)
    assert Consensus(few).improve(asked) is asked


def test_the_aligned_volume_covers_what_the_moving_one_shows_near_the_fixed_one() -> None:
    fixed = _box((40, 40, 40), (0.0, 0.0, 0.0))
    near = AffineTransform.about_center(np.diag([1.0, 1.1, 0.9]), (40, 40, 40), (5, 0, -8))
    moving = _box((60, 60, 90), (-20.0, -20.0, -60.0))
    grid = covering_grid(moving, near, fixed)
    assert grid.spacing == (2.0, 2.0, 2.0)
    shown = near.inverse().transform_points(moving.grid.corners())
    lower, upper = grid.corners().min(axis=0), grid.corners().max(axis=0)
    around = fixed.grid.corners()
    assert (lower >= around.min(axis=0) - MARGIN_MM - 1).all()
    assert (np.abs(lower - np.maximum(shown.min(axis=0), around.min(axis=0) - MARGIN_MM)) <= 1.0).all()
    assert (np.abs(upper - np.minimum(shown.max(axis=0), around.max(axis=0) + MARGIN_MM)) <= 1.0).all()


def test_a_volume_that_lies_elsewhere_is_covered_whole() -> None:
    fixed, moving = _box((20, 20, 20), (0.0, 0.0, 0.0)), _box((10, 12, 14), (900.0, 0.0, 0.0))
    assert covering_grid(moving, AffineTransform(), fixed).size == (10, 12, 14)


def test_points_of_the_consensus_lie_in_the_body_and_are_the_same_each_time(phantom: list[EmbeddedVolume]) -> None:
    places = points_in_body(phantom[0], 100, seed=4)
    assert len(places) == 100
    assert phantom[0].in_body(places).all()
    np.testing.assert_array_equal(places, points_in_body(phantom[0], 100, seed=4))


@pytest.fixture(scope="module")
def phantom() -> list[EmbeddedVolume]:
    pair = phantom_pair(angles=(0.05, -0.04, 0.25))
    extractor = get_extractor("sam", "cpu")
    return [EmbeddedVolume(image, extractor.extract(image)) for image in (pair.fixed, pair.moving)]


@pytest.mark.slow
def test_a_turned_body_is_matched_more_closely_once_it_is_aligned(phantom: list[EmbeddedVolume]) -> None:
    pair = phantom_pair(angles=(0.05, -0.04, 0.25))
    points = pair.inside(120)
    truth = pair.truth(points)
    plain = match_structurally(points, phantom[0].index, phantom[1].index)
    aligned = AlignedPointMatcher(*phantom, get_extractor("sam", "cpu")).match(points)
    errors = [np.linalg.norm(found.matched - truth, axis=1) for found in (plain, aligned)]
    assert np.median(errors[1]) < np.median(errors[0])
    assert np.quantile(errors[1], 0.9) < np.quantile(errors[0], 0.9)


def test_what_is_little_support_depends_on_what_is_usual_between_the_two(phantom: list[EmbeddedVolume]) -> None:
    matcher = AlignedPointMatcher(*phantom, get_extractor("sam", "cpu"))
    for support, least in ((0.6, 0.2), (0.3, 0.15), (0.05, 0.1)):
        matcher.consensus = Consensus(_matches(PLACES, PLACES, support))
        assert matcher.least_support == pytest.approx(least)


def _box(size: tuple[int, int, int], origin: tuple[float, float, float]) -> Image:
    import torch

    grid = Grid(size, (2.0, 2.0, 2.0), origin)
    return Image(torch.zeros(grid.shape), grid, modality="CT")
