"""Points asked of the query point network and matched jointly, on phantoms; and what is said about each answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from phantoms import PhantomPair, phantom_pair
from strategies import rotation

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.features.base import FeatureExtractor
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.methods.joint_matching import JointPointMatcher, point_matcher
from SAMRegistrationLib.methods.point_matching import AIR, OUTSIDE, EmbeddedVolume, PointMatcher
from SAMRegistrationLib.methods.quiz import (
    QuizAnswers,
    QuizPointMatcher,
    Quizzer,
    agreement,
    depth_inside,
    fit_answers,
    shown_translation,
    shown_trust,
)
from SAMRegistrationLib.methods.quiz_inputs import (
    Cube,
    QuizVolume,
    body_corners,
    cube_embedding,
    cube_image,
    shared_cubes,
)
from SAMRegistrationLib.models.catalogue import ModelEntry, install, verify
from SAMRegistrationLib.models.quiz import QuizModel, build_quiz, load_quiz
from SAMRegistrationLib.networks.quiz import Quiz

NETWORK: dict[str, Any] = {
    "channels": 16,
    "widths": [8, 8, 16, 16],
    "layers": 1,
    "heads": 2,
    "embedding_channels": 128,
    "content_queries": True,
    "pointing": True,
}


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return phantom_pair(3.0)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return get_extractor("sam", "cpu")


@pytest.fixture(scope="module")
def volumes(pair: PhantomPair, extractor: FeatureExtractor) -> list[EmbeddedVolume]:
    return [EmbeddedVolume(image, extractor.extract(image)) for image in (pair.fixed, pair.moving)]


@pytest.fixture(scope="module")
def model() -> QuizModel:
    """A network that was never trained: it points where the embedding does."""
    torch.manual_seed(0)
    return QuizModel("untrained", Quiz(**NETWORK).eval(), 32, 16, "sam")


@pytest.fixture(scope="module")
def embedding_matcher(volumes: list[EmbeddedVolume]) -> PointMatcher:
    return PointMatcher(*volumes)


def test_cube_positions_go_to_the_world_and_back() -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    cube = Cube(np.array([10.0, -20.0, 30.0]), turn, 80.0)
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    np.testing.assert_allclose(cube.to_cube(cube.to_world(points)), points, atol=1e-12)
    corners = np.sort(cube.to_cube(cube.grid(8).corners()), axis=0)
    np.testing.assert_allclose(corners[[0, -1]], [[-1] * 3, [1] * 3], atol=1e-9)
    # Voxel centers are where `align_corners=False` has them.
    np.testing.assert_allclose(cube.to_cube(cube.grid(4).to_world([0, 0, 3])), [-0.75, -0.75, 0.75], atol=1e-9)


def test_both_cubes_have_one_side_and_hold_the_bodies(pair: PhantomPair) -> None:
    first, second = (QuizVolume.of(image) for image in (pair.fixed, pair.moving))
    cubes = shared_cubes(first, second)
    assert cubes[0].side == cubes[1].side
    assert np.abs(cubes[0].to_cube(pair.inside(200))).max() < 1
    assert np.abs(cubes[1].to_cube(pair.truth(pair.inside(200)))).max() < 1


def test_where_a_volume_lies_in_the_world_does_not_matter(pair: PhantomPair) -> None:
    grid = pair.fixed.grid
    far = Grid(grid.size, grid.spacing, tuple(np.add(grid.origin, (200.0, -150.0, 90.0))), grid.direction)
    near_volume, far_volume = QuizVolume.of(pair.fixed), QuizVolume.of(Image(pair.fixed.data, far, "int16", "CT"))
    near, moved = (cube_image(v, shared_cubes(v, v)[0], 16) for v in (near_volume, far_volume))
    torch.testing.assert_close(near, moved, rtol=0, atol=1e-4)


def test_cubes_show_the_volume_and_its_embedding(volumes: list[EmbeddedVolume]) -> None:
    volume = QuizVolume.of(volumes[0].image, volumes[0].features)
    cube = shared_cubes(volume, volume)[0]
    image, embedding = cube_image(volume, cube, 16), cube_embedding(volume, cube, 8)
    assert image.shape == (1, 1, 16, 16, 16) and 0 <= float(image.min()) < float(image.max()) <= 1
    assert embedding.shape == (1, 128, 8, 8, 8) and bool(embedding.any())
    with pytest.raises(ValueError, match="embedding"):
        cube_embedding(QuizVolume.of(volumes[0].image), cube, 8)


def test_the_corners_of_an_empty_body_are_those_of_the_volume() -> None:
    grid = Grid((4, 5, 6), (2.0, 2.0, 2.0))
    np.testing.assert_array_equal(body_corners(torch.zeros(grid.shape), grid), grid.corners())


def test_the_network_finds_points_about_where_they_are(
    pair: PhantomPair, volumes: list[EmbeddedVolume], model: QuizModel
) -> None:
    matcher = QuizPointMatcher(volumes[0], volumes[1], model)
    points = pair.inside(60)
    found = matcher.match(points)
    before = np.linalg.norm(points - pair.truth(points), axis=1)
    errors = np.linalg.norm(found.matched - pair.truth(points), axis=1)
    assert np.median(errors) < 0.7 * np.median(before)
    assert len(found.reason) == 60 and found.support.min() >= 0 and found.support.max() <= 1
    expected = pair.truth(points).mean(axis=0) - points.mean(axis=0)
    assert np.linalg.norm(matcher.translation.matrix[:3, 3] - expected) < 0.5 * np.linalg.norm(expected)


def test_asking_many_points_at_once_is_asking_each(volumes: list[EmbeddedVolume], model: QuizModel) -> None:
    quizzer = Quizzer(model, *(QuizVolume.of(v.image, v.features) for v in volumes))
    points = np.random.default_rng(0).uniform(-30, 30, (1500, 3))
    together = quizzer.ask(points)
    np.testing.assert_allclose(together.matched[1490:], quizzer.ask(points[1490:]).matched, atol=0.01)
    assert (together.sigma_mm > 0).all() and len(quizzer.ask(np.empty((0, 3))).matched) == 0


def test_the_translation_is_that_of_the_points_which_the_moving_volume_shows() -> None:
    points = np.random.default_rng(0).uniform(-100, 100, (400, 3))
    turned = AffineTransform.about_center(rotation((0.0, 0.0, 0.3)), (0, 0, 0), (40.0, -10.0, 25.0))
    places = turned.transform_points(points)
    grid = Grid((60, 60, 25), (4.0, 4.0, 4.0), (-78.0, -128.0, -98.0))
    shown = grid.contains(places)
    found = shown_translation(points, turned, grid).matrix[:3, 3]
    np.testing.assert_allclose(found, (places - points)[shown].mean(axis=0))
    assert np.linalg.norm(found - (places - points).mean(axis=0)) > 1.5


@pytest.mark.parametrize("asked_from", ["fixed", "moving"])
def test_answers_to_what_the_other_volume_does_not_show_are_not_trusted(asked_from: str) -> None:
    points = np.random.default_rng(0).uniform(-100, 100, (400, 3))
    truth = AffineTransform.about_center(rotation((0.0, 0.0, 0.3)), (0, 0, 0), (40.0, -10.0, 25.0))
    places = truth.transform_points(points)
    whole = Grid((200, 200, 200), (4.0, 4.0, 4.0), (-400.0, -400.0, -400.0))
    cropped = Grid((60, 60, 25), (4.0, 4.0, 4.0), (-78.0, -128.0, -98.0))
    # Where it is not shown, a point gets an answer at the edge of what is.
    upper = np.asarray(cropped.to_world([[59.0, 59.0, 24.0]]))[0]
    shown = cropped.contains(places)
    matched = np.where(shown[:, None], places, np.minimum(places, upper))
    answers, grids = QuizAnswers(points, matched, np.full(400, 20.0)), (whole, cropped)
    if asked_from == "moving":
        answers, grids, truth = answers.turned(), (cropped, whole), truth.inverse()
    trust = shown_trust(answers, truth, grids)
    assert (trust[~shown] == 0).all() and (trust[shown] > 0).mean() > 0.95 and trust.max() == 1


def test_points_are_expected_where_the_map_of_the_whole_body_puts_them(
    volumes: list[EmbeddedVolume], model: QuizModel
) -> None:
    quizzer = Quizzer(model, *(QuizVolume.of(v.image, v.features) for v in volumes))
    points = np.random.default_rng(0).uniform(-20, 20, (30, 3))
    free = quizzer.ask(points).matched
    near = AffineTransform.translation((15.0, -10.0, 5.0))
    np.testing.assert_allclose(quizzer.ask(points, near, 1e6).matched, free, atol=0.01)
    drawn = quizzer.ask(points, near, 4.0).matched
    before, after = (np.linalg.norm(each - near.transform_points(points), axis=1) for each in (free, drawn))
    assert np.median(after) < 0.7 * np.median(before)


def test_depth_inside_is_the_distance_to_the_nearest_face() -> None:
    grid = Grid((10, 20, 30), (2.0, 1.0, 3.0), (5.0, 5.0, 5.0))
    points = grid.to_world([[4.5, 9.5, 14.5], [0.0, 9.5, 14.5], [4.5, 20.5, 14.5]])
    np.testing.assert_allclose(depth_inside(grid, points), [10.0, 1.0, -1.0])


def test_answers_without_confidence_do_not_bend_the_fit() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-80, 80, (200, 3))
    truth = AffineTransform.about_center(np.diag([1.1, 0.95, 1.0]), (0, 0, 0), (30, -20, 10))
    matched, sigma = truth.transform_points(points), np.full(200, 4.0)
    matched[:60] += np.array([18.0, 0.0, 0.0])
    sigma[:60] = 40.0
    fit = fit_answers(QuizAnswers(points, matched, sigma))
    np.testing.assert_allclose(fit.transform.transform_points(points), truth.transform_points(points), atol=0.5)


def test_answers_that_agree_on_nothing_are_no_fit() -> None:
    generator = np.random.default_rng(0)
    points, matched = generator.uniform(-200, 200, (2, 40, 3))
    with pytest.raises(InputError):
        fit_answers(QuizAnswers(points, matched, np.ones(40)))


def test_agreement_falls_with_the_distance() -> None:
    values = agreement(np.array([0.0, 20.0, 200.0]))
    assert values[0] == 1 and values[1] == pytest.approx(0.25) and values[2] < 1e-3


def test_points_outside_and_in_air_are_answered_and_said_to_be_so(
    pair: PhantomPair, embedding_matcher: PointMatcher
) -> None:
    air = pair.fixed.grid.corners()[0] * 0.97
    points = np.array([[0.0, 0.0, 0.0], air, [500.0, 0.0, 0.0]])
    found = embedding_matcher.match(points)
    assert found.reason[0] == "" and found.reason[1] == AIR and found.reason[2] == OUTSIDE
    assert found.score[0] > 0.5 and found.score[1] == 0 and found.score[2] == 0
    assert np.isfinite(found.matched).all() and np.isfinite(found.cycle_mm).all()
    expected = embedding_matcher.whole_body.transform_points(points[2:])
    np.testing.assert_allclose(found.matched[2:], expected)


def test_the_whole_body_map_is_close_to_the_truth(pair: PhantomPair, embedding_matcher: PointMatcher) -> None:
    assert embedding_matcher.body_fit is not None
    assert np.median(pair.error(embedding_matcher.whole_body.transform_points)) < 6


def test_the_heat_map_lies_on_the_moving_grid_and_peaks_at_the_partner(
    pair: PhantomPair, embedding_matcher: PointMatcher
) -> None:
    points = pair.inside(5, seed=8)
    distances = []
    for point in points:
        heat = embedding_matcher.heat_map(point)
        assert heat.grid == pair.moving.grid and float(heat.data.abs().max()) <= 1.001
        peak = np.unravel_index(int(heat.data.argmax()), heat.grid.shape)[::-1]
        distances.append(np.linalg.norm(heat.grid.to_world(peak) - pair.truth(point[None])[0]))
    assert np.median(distances) < 10


@pytest.mark.slow
def test_joint_matching_takes_the_better_proposal(
    pair: PhantomPair, volumes: list[EmbeddedVolume], model: QuizModel, extractor: FeatureExtractor
) -> None:
    points = pair.inside(60)
    for wrong in ("by_network", "by_embedding"):
        joint = JointPointMatcher(volumes[0], volumes[1], model, extractor)
        # A map that leads nowhere must not be followed, whoever proposes it.
        getattr(joint, wrong).__dict__["whole_body"] = AffineTransform.about_center(
            np.eye(3), (0, 0, 0), (70, 60, -50)
        )
        if wrong == "by_embedding":
            joint.by_network.__dict__["whole_body"] = PointMatcher(*volumes).whole_body
        errors = np.linalg.norm(joint.match(points).matched - pair.truth(points), axis=1)
        assert np.median(errors) < 4, wrong


def test_every_method_stands_behind_one_call(
    volumes: list[EmbeddedVolume], model: QuizModel, extractor: FeatureExtractor
) -> None:
    kinds = {
        method: type(point_matcher(method, volumes[0], volumes[1], extractor, model)).__name__
        for method in ("sam", "quiz", "joint")
    }
    assert kinds == {"sam": "AlignedPointMatcher", "quiz": "QuizPointMatcher", "joint": "JointPointMatcher"}


def test_a_network_without_weights_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SAMREG_MODELS", str(tmp_path))
    with pytest.raises(UsageError, match="quiz-unknown"):
        load_quiz("quiz-unknown")
    with pytest.raises(InputError, match="no query point network"):
        load_quiz("sam-lite")


def test_weights_are_installed_verified_and_loaded(tmp_path: Any, model: QuizModel) -> None:
    configuration = {"network": NETWORK, "image_size": 32, "embedding_size": 16, "features": "sam"}
    entry = ModelEntry(
        "q", "quiz", "q.safetensors", "", 2.0, "none", "Apache-2.0", "2026-11-22", {}, configuration, tmp_path
    )
    halved = {name: value.half() for name, value in model.network.state_dict().items()}
    entry = install(entry, halved)
    verify(entry)
    loaded = build_quiz(entry)
    assert (loaded.image_size, loaded.embedding_size, loaded.features) == (32, 16, "sam")
    for name, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, halved[name].float())
    other = ModelEntry(**{**vars(entry), "configuration": {**configuration, "network": {**NETWORK, "layers": 2}}})
    with pytest.raises(InputError, match="do not fit"):
        verify(other)
