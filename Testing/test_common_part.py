"""What two volumes have in common: cut, bent, embedded, matched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.alignment.feature_alignment import FeatureAlignment
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import Fit
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.grid import FloatArray
from SAMRegistrationLib.matching import Consensus, StructuralMatches
from SAMRegistrationLib.methods.common_part import LookedAt, Seen, joined, look
from SAMRegistrationLib.methods.sam_affine import aligned_volume

GRID = Grid((40, 32, 60), (5.0,) * 3, (-97.5, -77.5, -147.5))
MOVING_GRID = Grid((44, 36, 60), (5.0,) * 3, (92.5, -77.5, -207.5))
TRUTH = AffineTransform.about_center(np.diag([1.05, 0.97, 1.06]), (0, 0, 0), (200, 10, -60))
SHIFT = np.array([9.0, -6.0, 4.0])

ToBody = Callable[[FloatArray], FloatArray]


def _places(grid: Grid) -> FloatArray:
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.to_world(np.stack([x, y, z], -1))


def _body(grid: Grid, to_body: AffineTransform) -> Image:
    x, y, z = np.moveaxis(to_body.transform_points(_places(grid)), -1, 0)
    inside = ((x / 80) ** 2 + (y / 60) ** 2 < 1) & (np.abs(z) < 130)
    return Image(torch.from_numpy(np.where(inside, 40.0 + x, -1000.0)).float(), grid, "int16", "CT")


def _embeddings(grid: Grid, to_body: ToBody) -> Features:
    body = torch.from_numpy(to_body(_places(grid)))
    frequencies = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 40
    phase = body @ frequencies.T
    vectors = torch.cat([phase.cos(), phase.sin()], dim=-1).permute(3, 0, 1, 2)[None].float()
    unit = FeatureMap(functional.normalize(vectors, dim=1), grid)
    return Features(unit, unit)


class Embeddings:
    """Tells where in the fixed body a voxel of the moving volume is, as that lies; keeps what it was shown."""

    name = "known"
    spacing = 5.0

    def __init__(self, to_body: ToBody) -> None:
        self.to_body = to_body
        self.shown: list[Image] = []

    def extract(self, image: Image) -> Features:
        self.shown.append(image)
        return _embeddings(image.grid, self.to_body)


def _pair(fixed: Image, moving: Image) -> LookedAt:
    bodies = Regions.of(fixed).body_image, Regions.of(moving).body_image
    return LookedAt(fixed, moving, _embeddings(GRID, lambda points: points), *bodies)


def _matches(points: FloatArray, matched: FloatArray) -> StructuralMatches:
    ones = np.ones(len(points))
    return StructuralMatches(points, matched, ones, 0 * ones, ones, ones)


def _spread(count: int = 300) -> FloatArray:
    return np.random.default_rng(4).uniform((-70, -50, -120), (70, 50, 120), (count, 3))


def _seen(matched: FloatArray, points: FloatArray) -> Seen:
    matches = _matches(points, matched)
    residual = np.linalg.norm(TRUTH.transform_points(points) - matched, axis=1)
    fit = Fit(TRUTH, Model.AFFINE, residual < 30, 0.0)
    return Seen(TRUTH, matches, FeatureAlignment(fit, matches, len(matches), TRUTH), 1.0, True)


def test_matches_through_a_bent_volume_lead_to_where_the_body_really_is() -> None:
    """All of the body is shifted by the bend, so that it lies as under another linear map, which is known."""
    moving = _body(MOVING_GRID, TRUTH.inverse())
    place = TRUTH.compose(AffineTransform.translation((4.0, 5.0, -3.0)))
    points = _spread()
    shifted = place.compose(AffineTransform.translation(SHIFT))
    extractor = Embeddings(TRUTH.inverse().compose(shifted).transform_points)
    pair = _pair(_body(GRID, AffineTransform()), moving)
    bend = Consensus(_matches(points, points + SHIFT))
    seen = look(place, pair, extractor, Model.AFFINE, 0, bend)  # type: ignore[arg-type]
    assert seen is not None
    assert seen.place is place
    error = np.linalg.norm(seen.matches.matched - TRUTH.transform_points(seen.matches.points), axis=1)
    assert np.median(error) < 1.5
    ends = seen.fit.fit.transform.transform_points(points), TRUTH.transform_points(points)
    assert np.linalg.norm(ends[0] - ends[1], axis=1).mean() < 1.5


def test_what_is_embedded_is_the_bent_volume() -> None:
    moving = _body(MOVING_GRID, TRUTH.inverse())
    points = _spread()
    shifted = TRUTH.compose(AffineTransform.translation(SHIFT))
    extractor = Embeddings(TRUTH.inverse().compose(shifted).transform_points)
    pair = _pair(_body(GRID, AffineTransform()), moving)
    look(TRUTH, pair, extractor, Model.AFFINE, 0, Consensus(_matches(points, points + SHIFT)))  # type: ignore[arg-type]
    (shown,) = extractor.shown
    inside = np.abs(_places(shown.grid)) < (50, 40, 100)
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
