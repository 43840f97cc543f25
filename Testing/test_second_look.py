"""The second look: what both volumes show, cut where neighbors agree best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.alignment import Alignment
from SAMRegistrationLib.alignment.feature_alignment import FeatureAlignment
from SAMRegistrationLib.alignment.refinement import Model
from SAMRegistrationLib.alignment.robust_fit import Fit
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.features.base import FeatureMap, Features
from SAMRegistrationLib.matching import Matches
from SAMRegistrationLib.methods import second_look
from SAMRegistrationLib.methods.common_part import Seen
from SAMRegistrationLib.methods.heights import cut, heights
from SAMRegistrationLib.methods.second_look import MOST_STEPS, STEP_MM, look_again

GRID = Grid((40, 32, 60), (5.0,) * 3, (-97.5, -77.5, -147.5))
TRUTH = AffineTransform.about_center(np.diag([1.05, 0.97, 1.06]), (0, 0, 0), (200, 10, -60))


def _places(grid: Grid) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.to_world(np.stack([x, y, z], -1))


def _body(grid: Grid, to_body: AffineTransform) -> Image:
    x, y, z = np.moveaxis(to_body.transform_points(_places(grid)), -1, 0)
    inside = ((x / 80) ** 2 + (y / 60) ** 2 < 1) & (np.abs(z) < 130)
    return Image(torch.from_numpy(np.where(inside, 40.0, -1000.0)).float(), grid, "int16", "CT")


def _embeddings(grid: Grid, to_body: AffineTransform) -> Features:
    body = torch.from_numpy(to_body.transform_points(_places(grid)))
    frequencies = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 40
    phase = body @ frequencies.T
    vectors = torch.cat([phase.cos(), phase.sin()], dim=-1).permute(3, 0, 1, 2)[None].float()
    unit = FeatureMap(functional.normalize(vectors, dim=1), grid)
    return Features(unit, unit)


class EmbeddingsOfTheAligned:
    """Tells where in the fixed body a voxel of the moving volume is, as that lies under a map."""

    name = "aligned"
    spacing = 5.0

    def __init__(self, place: AffineTransform) -> None:
        self.to_body = TRUTH.inverse().compose(place)
        self.heights: list[float] = []

    def extract(self, image: Image) -> Features:
        self.heights.append(image.grid.extent[2])
        return _embeddings(image.grid, self.to_body)


def _found(place: AffineTransform) -> Alignment:
    return Alignment(place, "affine", 50, 0.5, "features", [], True)


def _seen(disagreement: float) -> Seen:
    return Seen(None, None, None, disagreement, False)  # type: ignore[arg-type]


def _moving() -> Image:
    return _body(Grid((44, 36, 60), (5.0,) * 3, (92.5, -77.5, -207.5)), TRUTH.inverse())


def test_where_whole_bodies_are_seen_one_more_embedding_is_worth_more_than_the_first_map() -> None:
    place = TRUTH.compose(AffineTransform.translation((6.0, -5.0, 8.0)))
    extractor = EmbeddingsOfTheAligned(place)
    fixed = _body(GRID, AffineTransform())
    features = _embeddings(GRID, AffineTransform())
    again = look_again(fixed, _moving(), extractor, features, _found(place))  # type: ignore[arg-type]
    points = np.random.default_rng(2).uniform((-50, -40, -100), (50, 40, 100), (100, 3))
    ends = place.transform_points(points), TRUTH.transform_points(points)
    expected = 0.15 * ends[0] + 0.85 * ends[1]
    assert np.linalg.norm(again.transform.transform_points(points) - expected, axis=1).mean() < 1.0
    assert again.reliable
    assert len(extractor.heights) == 1


@pytest.mark.parametrize(("off", "left"), [(12.0, 4.0), (60.0, 0.0)])
def test_the_first_map_counts_unless_it_is_far_off(off: float, left: float) -> None:
    points = np.random.default_rng(3).uniform(-80, 80, (100, 3))
    matches = Matches(points, TRUTH.transform_points(points), np.ones(100), np.zeros(100))
    second = FeatureAlignment(Fit(TRUTH, Model.AFFINE, np.ones(100, bool), 0.0), matches, 100, TRUTH)
    both = second_look._between(AffineTransform.translation((off, 0.0, 0.0)).compose(TRUTH), second, 2 / 3)
    np.testing.assert_allclose(both.fit.transform.matrix[:3, 3], TRUTH.matrix[:3, 3] + (left, 0, 0))
    assert both.reliable


def test_between_two_rigid_maps_lies_a_rigid_one() -> None:
    points = np.random.default_rng(3).uniform(-80, 80, (100, 3))
    turn = AffineTransform.about_center([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]], (0, 0, 0))
    matches = Matches(points, turn.transform_points(points), np.ones(100), np.zeros(100))
    second = FeatureAlignment(Fit(turn, Model.RIGID, np.ones(100, bool), 0.0), matches, 100, turn)
    linear = second_look._between(AffineTransform(), second, 0.5).fit.transform.matrix[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)
    assert np.arcsin(linear[1, 0]) == pytest.approx(np.arcsin(0.28) / 2, abs=1e-3)


@pytest.mark.parametrize("model", ["translation", "affine"])
def test_where_nothing_can_be_gained_the_alignment_is_left_alone(model: str) -> None:
    """A translation needs no second look, and volumes 500 mm apart have nothing in common."""
    place = TRUTH if model == "translation" else TRUTH.compose(AffineTransform.translation((0, 0, 500.0)))
    found = _found(place)
    features = _embeddings(GRID, AffineTransform())
    extractor = EmbeddingsOfTheAligned(place)
    fixed = _body(GRID, AffineTransform())
    again = look_again(fixed, _moving(), extractor, features, found, model=model)  # type: ignore[arg-type]
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
    fixed = _body(GRID, AffineTransform())
    lower, upper = heights(Regions.of(fixed).body_image)
    assert (lower, upper) == pytest.approx((-130, 130), abs=5)
    part = cut(fixed, (-40.0, 60.0))
    assert part.grid.size[2] == 20
    assert part.grid.to_world((0, 0, 0))[2] == pytest.approx(-37.5)
    np.testing.assert_array_equal(part.data, fixed.data[22:42])
