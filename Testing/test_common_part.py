"""What two volumes have in common: cut, bent, embedded, matched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_body import FIXED_GRID, TRUTH, EmbeddingsOfTheAligned, embeddings, fixed_body, moving_body, places

from SAMRegistrationLib import AffineTransform, Image
from SAMRegistrationLib.alignment.feature_alignment import FeatureAlignment
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import Fit
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.grid import FloatArray
from SAMRegistrationLib.matching import Consensus, StructuralMatches
from SAMRegistrationLib.methods.common_part import LookedAt, Seen, joined, look
from SAMRegistrationLib.methods.sam_affine import aligned_volume

SHIFT = np.array([9.0, -6.0, 4.0])


def _pair(fixed: Image, moving: Image) -> LookedAt:
    bodies = Regions.of(fixed).body_image, Regions.of(moving).body_image
    return LookedAt(fixed, moving, embeddings(FIXED_GRID, AffineTransform()), *bodies)


def _matches(points: FloatArray, matched: FloatArray) -> StructuralMatches:
    ones = np.ones(len(points))
    return StructuralMatches(points, matched, ones, 0 * ones, ones, ones)


def _spread(count: int = 300) -> FloatArray:
    return np.random.default_rng(4).uniform((-70, -50, -120), (70, 50, 120), (count, 3))


def _seen(matched: FloatArray, points: FloatArray) -> Seen:
    matches = _matches(points, matched)
    residual = np.linalg.norm(TRUTH.transform_points(points) - matched, axis=1)
    fit = Fit(TRUTH, Model.AFFINE, residual < 30, 0.0)
    return Seen(matches, FeatureAlignment(fit, matches, len(matches)), 1.0, True)


def test_matches_through_a_bent_volume_lead_to_where_the_body_really_is() -> None:
    """All of the body is shifted by the bend, so that it lies as under another linear map, which is known."""
    moving = moving_body()
    place = TRUTH.compose(AffineTransform.translation((4.0, 5.0, -3.0)))
    points = _spread()
    shifted = place.compose(AffineTransform.translation(SHIFT))
    extractor = EmbeddingsOfTheAligned(shifted)
    pair = _pair(fixed_body(), moving)
    bend = Consensus(_matches(points, points + SHIFT))
    seen = look(place, pair, extractor, Model.AFFINE, 0, bend)  # type: ignore[arg-type]
    assert seen is not None
    error = np.linalg.norm(seen.matches.matched - TRUTH.transform_points(seen.matches.points), axis=1)
    assert np.median(error) < 1.5
    ends = seen.fit.fit.transform.transform_points(points), TRUTH.transform_points(points)
    assert np.linalg.norm(ends[0] - ends[1], axis=1).mean() < 1.5


def test_what_is_embedded_is_the_bent_volume() -> None:
    moving = moving_body()
    points = _spread()
    shifted = TRUTH.compose(AffineTransform.translation(SHIFT))
    extractor = EmbeddingsOfTheAligned(shifted)
    pair = _pair(fixed_body(), moving)
    look(TRUTH, pair, extractor, Model.AFFINE, 0, Consensus(_matches(points, points + SHIFT)))  # type: ignore[arg-type]
    (shown,) = extractor.shown
    inside = np.abs(places(shown.grid)) < (50, 40, 100)
    expected = aligned_volume(moving, shifted, shown.grid).data
    difference = (shown.data - expected).abs()[torch.from_numpy(inside.all(axis=-1))]
    assert float(difference.max()) < 1.0
    assert float(expected[torch.from_numpy(inside.all(axis=-1))].std()) > 10


def test_bending_is_what_matches_nearby_agree_on_beside_the_map() -> None:
    points = _spread()
    coherent = _seen(TRUTH.transform_points(points + SHIFT), points)
    assert coherent.bending_mm == pytest.approx(np.linalg.norm(SHIFT), rel=0.02)
    directions = np.random.default_rng(5).normal(size=(300, 3))
    scattered = points + np.linalg.norm(SHIFT) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert _seen(TRUTH.transform_points(scattered), points).bending_mm < 0.6 * np.linalg.norm(SHIFT)


def test_matches_that_the_map_gives_up_do_not_bend() -> None:
    points = _spread()
    matched = TRUTH.transform_points(points)
    matched[::3] += (0, 0, 80.0)
    seen = _seen(matched, points)
    assert seen.bending_mm == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(seen.bend.predict(points[:5]), points[:5], atol=1e-6)


def test_joined_matches_are_those_of_both() -> None:
    first, second = _matches(_spread(3), _spread(3) + 1), _matches(_spread(2) + 5, _spread(2))
    both = joined(first, second)
    assert len(both) == 5
    np.testing.assert_array_equal(both.points, np.concatenate([first.points, second.points]))
    np.testing.assert_array_equal(both.matched[3:], second.matched)
    assert both.support.shape == both.residual.shape == both.score.shape == both.cycle_error.shape == (5,)
