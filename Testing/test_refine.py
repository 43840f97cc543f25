"""Refining a result in boxes, at landmarks and all over, end to end on phantoms of known truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import Points, centered_grid, phantom_hu
from strategies import rotation, world_positions

from SAMRegistrationLib import (
    AffineTransform,
    DisplacementField,
    Image,
    LandmarkPairs,
    RegionOfInterest,
    RegionRequest,
    read_transform,
    refine,
)
from SAMRegistrationLib.errors import Cancelled, InputError, UsageError
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.models.deformable import DeformableModel, Normalization
from SAMRegistrationLib.networks.deformable import build_deformable_network
from SAMRegistrationLib.pipeline import OUTPUTS
from SAMRegistrationLib.refinement.refine import RefinementResult
from SAMRegistrationLib.refinement.regions import Side

CENTER = np.array([10.0, -6.0, 8.0])
BOX = RegionOfInterest(CENTER, np.full(3, 16.0))
MARGIN_MM = 12.0
ACCEPTED = AffineTransform.about_center(rotation((0.03, -0.02, 0.05)), (0, 0, 0), (6.0, -4.0, 5.0))


def bumped(points: Points, amplitude: float = 4.0) -> Points:
    """A bump of a few mm around the box's center, and nothing elsewhere."""
    share = np.exp(-np.square((points - CENTER) / 11.0).sum(axis=-1, keepdims=True))
    return points + amplitude * share * np.array([0.7, -0.5, 0.5])


def truth(points: Points) -> Points:
    return ACCEPTED.transform_points(bumped(points))


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    """Volumes that ACCEPTED aligns, but for a bump inside the box."""
    grid = centered_grid(3.0, (96.0, 90.0, 96.0))
    fixed = phantom_hu(bumped(world_positions(grid)))
    moving = phantom_hu(ACCEPTED.inverse().transform_points(world_positions(grid)))
    return tuple(Image(torch.from_numpy(values).float(), grid, "int16", "CT") for values in (fixed, moving))  # type: ignore[return-value]


def improve(pair: tuple[Image, Image], **options: object) -> RefinementResult:
    settings = {"iterations": 40, "margin_mm": MARGIN_MM, "device": "cpu", **options}
    return refine(ACCEPTED, *pair, **settings)  # type: ignore[arg-type]


def points_near(count: int = 300, radius: float = 8.0) -> Points:
    return CENTER + np.random.default_rng(1).uniform(-1, 1, (count, 3)) * radius


def mean_error(transform: object, points: Points) -> float:
    return float(np.linalg.norm(transform.transform_points(points) - truth(points), axis=1).mean())  # type: ignore[attr-defined]


@pytest.mark.parametrize("similarity", ["lncc", "mse", "mind"])
def test_a_box_is_mended_and_nothing_else_changes(pair: tuple[Image, Image], similarity: str) -> None:
    result = improve(pair, regions=[BOX], similarity=similarity)
    near = points_near()
    assert mean_error(result.transform, near) < 0.6 * mean_error(ACCEPTED, near)
    (step,) = result.report["details"]["refinement"]["steps"]
    assert step["rmse"]["after"] < 0.65 * step["rmse"]["before"]
    assert len(step["loss"]) == 40 and step["loss"][-1] < step["loss"][0]
    assert step["folded_voxels"]["after"] <= step["folded_voxels"]["before"]
    world = world_positions(pair[0].grid)
    beyond = torch.from_numpy(~BOX.grown(MARGIN_MM + 6.0).contains(world))
    before = displacement_on(ACCEPTED, pair[0].grid).data
    assert bool((result.displacement.data[:, :, beyond] == before[:, :, beyond]).all())


def test_features_of_the_body_mend_a_box_too(pair: tuple[Image, Image]) -> None:
    result = improve(pair, regions=[BOX], similarity="sam", iterations=30)
    near = points_near()
    assert mean_error(result.transform, near) < mean_error(ACCEPTED, near)


def test_a_turned_box_on_the_moving_volume_is_the_same_place(pair: tuple[Image, Image]) -> None:
    drawn = RegionOfInterest(ACCEPTED.transform_points(CENTER), np.full(3, 18.0), rotation((0.4, 0.3, -0.5)))
    result = improve(pair, regions=[RegionRequest(drawn, Side.MOVING)], similarity="mse")
    near = points_near()
    assert mean_error(result.transform, near) < 0.6 * mean_error(ACCEPTED, near)
    (step,) = result.report["details"]["refinement"]["steps"]
    np.testing.assert_allclose(step["center"], CENTER, atol=0.01)


def test_several_boxes_follow_each_other_and_each_is_undone_exactly(pair: tuple[Image, Image]) -> None:
    second = RegionOfInterest(CENTER + np.array([5.0, 8.0, -4.0]), np.full(3, 12.0))
    both = improve(pair, regions=[BOX, second], similarity="mse", iterations=20)
    alone = improve(pair, regions=[BOX], similarity="mse", iterations=20)
    assert len(both.patches) == 2
    points = points_near()
    undone = both.undone().transform_points(points)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(undone, alone.transform.transform_points(points))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(alone.undone().transform_points(points), ACCEPTED.transform_points(points))  # type: ignore[attr-defined]
    assert not np.array_equal(both.transform.transform_points(points), undone)  # type: ignore[attr-defined]


def test_a_result_is_refined_without_naming_its_volumes(pair: tuple[Image, Image]) -> None:
    first = improve(pair, regions=[BOX], similarity="mse", iterations=20)
    again = refine(first, regions=[BOX], similarity="mse", iterations=20, device="cpu", margin_mm=MARGIN_MM)
    assert again.fixed is first.fixed
    near = points_near()
    assert mean_error(again.transform, near) < mean_error(first.transform, near) < mean_error(ACCEPTED, near)


def test_the_whole_image_is_optimized_where_no_box_is_drawn(pair: tuple[Image, Image]) -> None:
    result = improve(pair, image_iterations=60, similarity="mse")
    near = points_near()
    assert mean_error(result.transform, near) < 0.6 * mean_error(ACCEPTED, near)
    assert [patch.kind for patch in result.patches] == ["image"]


def test_masks_say_where_the_loss_counts(pair: tuple[Image, Image]) -> None:
    fixed, moving = pair
    outside = torch.from_numpy(~BOX.grown(-4.0).contains(world_positions(fixed.grid))).float()
    result = improve(pair, regions=[BOX], similarity="mse", fixed_mask=fixed.with_data(outside))
    blind = mean_error(result.transform, points_near(radius=4.0))
    seeing = mean_error(improve(pair, regions=[BOX], similarity="mse").transform, points_near(radius=4.0))
    assert seeing < 0.7 * blind
    with pytest.raises(InputError, match="outside the overlap"):
        improve(pair, regions=[BOX], moving_mask=moving.with_data((moving.data > 5000).float() + corner(moving)))


def corner(image: Image) -> torch.Tensor:
    """A mask of one far voxel."""
    mask = torch.zeros_like(image.data)
    mask[0, 0, 0] = 1
    return mask


def landmark_points() -> Points:
    return CENTER + np.array([[0, 0, 0], [7, 0, 0], [0, -8, 3], [-6, 5, -4], [2, 3, 8.0]])


def test_landmarks_alone_are_met_and_points_between_them_get_better(pair: tuple[Image, Image]) -> None:
    points = landmark_points()
    pairs = LandmarkPairs(points, truth(points))
    result = improve(pair, points=pairs)
    found = result.report["details"]["refinement"]["landmarks"]
    assert found["tre_before_mm"]["mean"] > 1.5 and found["tre_after_mm"]["mean"] < 0.5
    assert found["suspicious"] == []
    near = points_near()
    assert mean_error(result.transform, near) < 0.6 * mean_error(ACCEPTED, near)
    far = CENTER + np.array([[-55.0, 0, 0], [0, -5, -55]])
    np.testing.assert_array_equal(result.transform.transform_points(far), ACCEPTED.transform_points(far))  # type: ignore[attr-defined]


def test_a_landmark_that_is_far_off_is_followed_without_folding(pair: tuple[Image, Image]) -> None:
    away = AffineTransform.translation((0.0, 0.0, 14.0))
    pairs = LandmarkPairs(CENTER[None], ACCEPTED.transform_points(CENTER[None]))
    result = refine(away, *pair, points=pairs, device="cpu", iterations=60)
    assert pairs.errors(away)[0] > 10 > 2.5 > pairs.errors(result.transform)[0]
    (step,) = result.report["details"]["refinement"]["steps"]
    assert step["folded_voxels"]["after"] == 0


def test_exact_landmarks_are_met_whatever_the_volumes_show(pair: tuple[Image, Image]) -> None:
    points = landmark_points()
    wanted = truth(points) + np.array([1.5, -1.0, 1.0])
    result = improve(pair, regions=[BOX], points=LandmarkPairs(points, wanted, exact=True), iterations=20)
    reached = result.transform.transform_points(points)  # type: ignore[attr-defined]
    assert np.linalg.norm(reached - wanted, axis=1).max() < 0.1
    assert [patch.kind for patch in result.patches] == ["region", "exact"]


def test_a_small_weight_pulls_harder_than_a_large_one(pair: tuple[Image, Image]) -> None:
    point, wrong = CENTER[None], truth(CENTER[None]) + np.array([0.0, 6.0, 0.0])
    errors = [
        LandmarkPairs(point, wrong).errors(
            improve(pair, regions=[BOX], points=LandmarkPairs(point, wrong, [weight]), iterations=40).transform
        )[0]
        for weight in (0.3, 30.0)
    ]
    assert errors[0] < 1.0 < errors[1]


def test_a_pair_that_contradicts_the_rest_is_named(pair: tuple[Image, Image]) -> None:
    points = landmark_points()
    moving = truth(points)
    moving[3] += (12.0, -9.0, 9.0)
    result = improve(pair, points=LandmarkPairs(points, moving), iterations=5)
    assert result.report["details"]["refinement"]["landmarks"]["suspicious"] == [3]
    assert any("landmark 4 contradicts the others" in warning for warning in result.report["warnings"])


def model() -> DeformableModel:
    torch.manual_seed(3)
    network = build_deformable_network("residual-u-net", {"channels": [8, 8]})
    return DeformableModel("tiny", network, 3.0, Normalization((-1000, 1000)), None)


def test_the_weights_of_a_network_are_unknowns_as_published(pair: tuple[Image, Image]) -> None:
    general = model()
    before = [parameter.detach().clone() for parameter in general.network.parameters()]
    result = improve(pair, regions=[BOX], similarity="mse", iterations=80, network=general)
    near = points_near()
    assert mean_error(result.transform, near) < 0.9 * mean_error(ACCEPTED, near)
    (step,) = result.report["details"]["refinement"]["steps"]
    assert step["loss"][-1] < 0.7 * step["loss"][0]
    assert result.report["settings"]["network"] == "tiny"
    for parameter, value in zip(general.network.parameters(), before, strict=True):
        assert bool((parameter == value).all()), "the general model serves the next patient"


def test_the_same_call_gives_the_same_result(pair: tuple[Image, Image]) -> None:
    first, second = (improve(pair, regions=[BOX], iterations=8) for _ in range(2))
    assert bool((first.patches[0].correction.data == second.patches[0].correction.data).all())


def test_saving_writes_the_four_files_of_a_registration(pair: tuple[Image, Image], tmp_path: Path) -> None:
    result = improve(pair, regions=[BOX], iterations=8)
    result.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
    points = points_near()
    written = read_transform(tmp_path / "out" / "transform.h5")
    np.testing.assert_allclose(
        written.transform_points(points),  # type: ignore[attr-defined]
        result.transform.transform_points(points),  # type: ignore[attr-defined]
        atol=1e-4,
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["preset"] == "refine" and report["details"]["refinement"]["steps"][0]["kind"] == "region"
    assert report["similarity"]["after"]["overlap"] > 0.5


def test_it_can_be_stopped_between_iterations(pair: tuple[Image, Image]) -> None:
    told: list[tuple[str, float]] = []

    def stop(stage: str, fraction: float) -> None:
        told.append((stage, fraction))
        if len(told) == 7:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        improve(pair, regions=[BOX], progress=stop)
    assert len(told) == 7 and told[-1][0] == "region 1"
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({}, UsageError, "nothing to refine"),
        ({"regions": [BOX], "similarity": "best"}, UsageError, 'unknown similarity "best"'),
        ({"regions": [BOX], "iterations": 0}, UsageError, "at least one iteration"),
        ({"regions": [BOX], "margin_mm": 0.0}, UsageError, "margin"),
        ({"regions": [RegionOfInterest(np.full(3, 400.0), np.ones(3))]}, InputError, "outside the fixed volume"),
        ({"regions": [RegionOfInterest(CENTER, np.full(3, 1.0))]}, InputError, "too small"),
        ({"regions": [RegionOfInterest(np.full(3, 45.0), np.full(3, 5.0))]}, InputError, "nothing but one value"),
        (
            {"regions": [RegionRequest(RegionOfInterest(np.full(3, 900.0), np.ones(3)), Side.MOVING)]},
            InputError,
            "lies outside the moving volume",
        ),
        ({"points": LandmarkPairs([[400, 0, 0]], [[0, 0, 0]])}, InputError, "lies outside the fixed volume"),
    ],
)
def test_what_cannot_be_refined_is_refused_in_one_sentence(
    pair: tuple[Image, Image], options: dict, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        improve(pair, **options)


def test_a_box_without_partner_lies_outside_the_overlap(pair: tuple[Image, Image]) -> None:
    away = AffineTransform.translation((80.0, 0.0, 0.0))
    box = RegionOfInterest(np.array([30.0, 0, 0]), np.full(3, 10.0))
    with pytest.raises(InputError, match="outside the overlap"):
        refine(away, *pair, regions=[box], device="cpu")


def test_a_refinement_before_any_registration_is_told(pair: tuple[Image, Image]) -> None:
    with pytest.raises(UsageError, match="no registration to refine yet: register the volumes first"):
        refine(None, *pair, regions=[BOX])
    with pytest.raises(UsageError, match="needs the fixed and the moving volume"):
        refine(ACCEPTED, regions=[BOX])


def test_an_accepted_field_is_refined_as_well_as_a_linear_map(pair: tuple[Image, Image]) -> None:
    field = displacement_on(ACCEPTED, pair[0].grid.resampled(8.0).padded(1))
    assert isinstance(field, DisplacementField)
    result = refine(
        field, *pair, regions=[BOX], similarity="mse", iterations=40, device="cpu", margin_mm=MARGIN_MM
    )
    near = points_near()
    assert mean_error(result.transform, near) < 0.6 * mean_error(ACCEPTED, near)
