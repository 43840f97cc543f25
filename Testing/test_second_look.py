"""The second look: what both volumes show, cut where neighbors agree best."""

from __future__ import annotations

import numpy as np
import pytest
from known_body import FIXED_GRID, TRUTH, EmbeddingsOfTheAligned, embeddings, fixed_body, moving_body

from SAMRegistrationLib import AffineTransform
from SAMRegistrationLib.alignment import Alignment
from SAMRegistrationLib.alignment.feature_alignment import FeatureAlignment
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import Fit
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.matching import Consensus, Matches, StructuralMatches
from SAMRegistrationLib.methods import second_look
from SAMRegistrationLib.methods.common_part import Seen, fitted, trust_in
from SAMRegistrationLib.methods.heights import cut, heights
from SAMRegistrationLib.methods.second_look import MOST_STEPS, STEP_MM, look_again


def _found(place: AffineTransform) -> Alignment:
    return Alignment(place, "affine", 50, 0.5, "features", [], True)


def _seen(disagreement: float) -> Seen:
    return Seen(None, None, disagreement, False)  # type: ignore[arg-type]


def test_where_whole_bodies_are_seen_one_more_embedding_is_worth_more_than_the_first_map() -> None:
    place = TRUTH.compose(AffineTransform.translation((6.0, -5.0, 8.0)))
    extractor = EmbeddingsOfTheAligned(place)
    fixed = fixed_body()
    features = embeddings(FIXED_GRID, AffineTransform())
    again = look_again(fixed, moving_body(), extractor, features, _found(place))  # type: ignore[arg-type]
    points = np.random.default_rng(2).uniform((-50, -40, -100), (50, 40, 100), (100, 3))
    ends = place.transform_points(points), TRUTH.transform_points(points)
    expected = 0.15 * ends[0] + 0.85 * ends[1]
    assert np.linalg.norm(again.transform.transform_points(points) - expected, axis=1).mean() < 1.0
    assert again.reliable
    assert len(extractor.shown) == 1


@pytest.mark.parametrize(("off", "left"), [(12.0, 4.0), (60.0, 0.0)])
def test_the_first_map_counts_unless_it_is_far_off(off: float, left: float) -> None:
    points = np.random.default_rng(3).uniform(-80, 80, (100, 3))
    matches = Matches(points, TRUTH.transform_points(points), np.ones(100), np.zeros(100))
    second = FeatureAlignment(Fit(TRUTH, Model.AFFINE, np.ones(100, bool), 0.0), matches, 100)
    both = second_look._between(AffineTransform.translation((off, 0.0, 0.0)).compose(TRUTH), second, 2 / 3)
    np.testing.assert_allclose(both.fit.transform.matrix[:3, 3], TRUTH.matrix[:3, 3] + (left, 0, 0))
    assert both.reliable


def test_between_two_rigid_maps_lies_a_rigid_one() -> None:
    points = np.random.default_rng(3).uniform(-80, 80, (100, 3))
    turn = AffineTransform.about_center([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]], (0, 0, 0))
    matches = Matches(points, turn.transform_points(points), np.ones(100), np.zeros(100))
    second = FeatureAlignment(Fit(turn, Model.RIGID, np.ones(100, bool), 0.0), matches, 100)
    linear = second_look._between(AffineTransform(), second, 0.5).fit.transform.matrix[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)
    assert np.arcsin(linear[1, 0]) == pytest.approx(np.arcsin(0.28) / 2, abs=1e-3)


@pytest.mark.parametrize("model", ["translation", "affine"])
def test_where_nothing_can_be_gained_the_alignment_is_left_alone(model: str) -> None:
    """A translation needs no second look, and volumes 500 mm apart have nothing in common."""
    place = TRUTH if model == "translation" else TRUTH.compose(AffineTransform.translation((0, 0, 500.0)))
    found = _found(place)
    features = embeddings(FIXED_GRID, AffineTransform())
    extractor = EmbeddingsOfTheAligned(place)
    fixed = fixed_body()
    again = look_again(fixed, moving_body(), extractor, features, found, model=model)  # type: ignore[arg-type]
    assert again is found


def test_the_cut_follows_the_neighbors_agreement_to_its_best() -> None:
    """Seven millimeters of disagreement at the start, least at two steps down."""
    asked: list[float] = []

    def looked(up: float) -> Seen:
        asked.append(up)
        return _seen(abs(up + 2.2 * STEP_MM) / 4 + 0.4)

    best = second_look._best_cut(looked(0.0), looked)
    assert best.disagreement == min(abs(step * STEP_MM + 2.2 * STEP_MM) / 4 + 0.4 for step in range(-3, 2))
    assert asked == [0.0, STEP_MM, -STEP_MM, -2 * STEP_MM, -3 * STEP_MM]


def test_the_search_for_the_cut_ends() -> None:
    asked: list[float] = []

    def looked(up: float) -> Seen:
        asked.append(up)
        return _seen(1.0 / (1.0 + up))

    second_look._best_cut(looked(0.0), looked)
    assert len(asked) == 1 + MOST_STEPS


def test_a_step_that_hardly_lessens_the_disagreement_is_not_taken() -> None:
    def looked(up: float) -> Seen:
        return _seen(7.0 * (1 + 0.02 * up / STEP_MM))

    first = looked(0.0)
    assert second_look._best_cut(first, looked) is first


def test_a_volume_is_cut_to_whole_slices_and_its_body_measured() -> None:
    fixed = fixed_body()
    lower, upper = heights(Regions.of(fixed).body_image)
    assert (lower, upper) == pytest.approx((-130, 130), abs=5)
    part = cut(fixed, (-40.0, 60.0))
    assert part.grid.size[2] == 20
    assert part.grid.to_world((0, 0, 0))[2] == pytest.approx(-37.5)
    np.testing.assert_array_equal(part.data, fixed.data[22:42])


def _spread(count: int = 200) -> np.ndarray:
    return np.random.default_rng(6).uniform((-60, -45, -110), (60, 45, 110), (count, 3))


def _look_of(points: np.ndarray, matched: np.ndarray, mostly_common: bool = True) -> Seen:
    ones = np.ones(len(points))
    matches = StructuralMatches(points, matched, ones, 0 * ones, ones, ones)
    fit = fitted(matches, trust_in(mostly_common), Model.AFFINE, 0)
    assert fit is not None
    return Seen(matches, fit, 5.0, mostly_common)


@pytest.mark.parametrize(
    ("bent_by", "mostly_common", "looks"), [(3.0, True, 1), (14.0, True, 2), (14.0, False, 1)]
)
def test_a_bent_body_is_looked_at_as_it_was_bent_and_both_looks_decide(
    monkeypatch: pytest.MonkeyPatch, bent_by: float, mostly_common: bool, looks: int
) -> None:
    """The second look sees a wave along the body that no linear map can follow, the third sees more of it.

    A cut body is not bent: there it gained next to nothing.
    """
    place = TRUTH.compose(AffineTransform.translation((6.0, -5.0, 8.0)))
    points = _spread()
    wave = np.zeros_like(points)
    wave[:, 1] = np.cos(points[:, 2] / 25)
    seen = [
        _look_of(points, TRUTH.transform_points(points + much * bent_by * wave), mostly_common)
        for much in (1, 1.5)
    ]
    asked: list[tuple[AffineTransform, Consensus | None]] = []

    def look(place: AffineTransform, *others: object) -> Seen:
        asked.append((place, others[4] if len(others) > 4 else None))  # type: ignore[arg-type]
        return seen[len(asked) - 1]

    monkeypatch.setattr(second_look, "look", look)
    monkeypatch.setattr(second_look, "_best_cut", lambda first, _: first)
    fixed, features = fixed_body(), embeddings(FIXED_GRID, AffineTransform())
    extractor = EmbeddingsOfTheAligned(place)
    again = look_again(fixed, moving_body(), extractor, features, _found(place))  # type: ignore[arg-type]
    assert len(asked) == looks
    if looks == 1:
        weight = 0.85 if mostly_common else 0.5
        expected = AffineTransform((1 - weight) * place.matrix + weight * seen[0].fit.fit.transform.matrix)
    else:
        assert asked[1][0] is seen[0].fit.fit.transform
        assert asked[1][1] is seen[0].bend
        mean = TRUTH.transform_points(points + 1.25 * bent_by * wave)
        expected = _look_of(points, mean).fit.fit.transform
    ends = again.transform.transform_points(points), expected.transform_points(points)
    assert np.linalg.norm(ends[0] - ends[1], axis=1).max() < 0.5
