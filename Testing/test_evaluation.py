"""Transforms measured on pairs with labels and landmarks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from SAMRegistrationLib.errors import InputError, RegistrationWarning, UsageError
from SAMRegistrationLib.evaluation import evaluate, evaluate_files
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, read_labels, write_image
from SAMRegistrationLib.points import PointSet, write_points
from SAMRegistrationLib.sampling import Interpolation
from SAMRegistrationLib.tables import evaluation_text
from SAMRegistrationLib.transform_io import write_transform
from SAMRegistrationLib.transforms import AffineTransform

FIXED = Grid((24, 22, 20), (2.0, 2.0, 2.5), (-20.0, 10.0, 5.0))
SHIFT = (6.0, -4.0, 5.0)


def boxes(grid: Grid, offset: tuple[float, ...] = (0, 0, 0), skip: tuple[int, ...] = ()) -> Image:
    """Three boxes with labels 1 to 3, given in world space and moved by an offset."""
    z, y, x = np.indices(grid.shape)
    world = grid.to_world(np.stack([x, y, z], axis=-1)) - offset
    centers = {1: (-5.0, 25.0, 25.0), 2: (10.0, 30.0, 25.0), 3: (0.0, 40.0, 38.0)}
    labels = np.zeros(grid.shape, dtype=np.float32)
    for label, center in centers.items():
        if label not in skip:
            labels[np.all(np.abs(world - center) < (5.5, 4.5, 6.0), axis=-1)] = label
    return Image(torch.from_numpy(labels), grid, "uint8")


def gray(labels: Image) -> Image:
    noise = torch.randn(labels.data.shape, generator=torch.Generator().manual_seed(0))
    return Image(labels.data * 100 + noise, labels.grid)


def shifted_pair() -> tuple[Image, Image, AffineTransform]:
    moving_grid = Grid((26, 24, 22), FIXED.spacing, tuple(np.add(FIXED.origin, SHIFT)))
    return boxes(FIXED), boxes(moving_grid, SHIFT), AffineTransform.translation(SHIFT)


def test_the_true_transform_brings_every_label_and_landmark_home() -> None:
    fixed, moving, transform = shifted_pair()
    fixed_points = PointSet([[-5, 25, 25], [10, 30, 25]], ("liver", "spleen"))
    moving_points = fixed_points.mapped(transform.transform_points)
    result = evaluate(
        transform,
        gray(fixed),
        gray(moving),
        fixed_labels=fixed,
        moving_labels=moving,
        fixed_points=fixed_points,
        moving_points=moving_points,
    )
    after = result["labels"]["mean"]["after"]
    assert after["dice"] == after["in_view"] == 1
    assert after["hd95_mm"] == after["hd95_voxels"] == after["center_distance_mm"] == 0
    assert result["labels"]["mean"]["before"]["dice"] < 0.6
    assert result["landmarks"]["mean"]["before"]["mean_mm"] == pytest.approx(np.linalg.norm(SHIFT))
    assert result["landmarks"]["mean"]["after"]["max_mm"] == pytest.approx(0, abs=1e-3)
    similarity = result["similarity"]
    for measure in ("normalized_cross_correlation", "mutual_information"):
        assert similarity["after"][measure] > similarity["before"][measure]
    assert similarity["after"]["overlap"] == 1
    assert result["field"]["folded_percent"] == 0


def test_distances_are_given_in_voxels_and_in_mm() -> None:
    fixed, moving, _ = shifted_pair()
    off_by_two_slices = AffineTransform.translation(np.add(SHIFT, (0, 0, 5.0)))
    entry = evaluate(off_by_two_slices, FIXED, fixed_labels=fixed, moving_labels=moving)["labels"]["per_label"][0]
    assert entry["after"]["hd95_voxels"] == pytest.approx(2)
    assert entry["after"]["hd95_mm"] == pytest.approx(5)
    assert entry["after"]["center_distance_mm"] == pytest.approx(5)


def test_labels_that_only_one_map_holds_are_listed_as_absent_and_not_averaged() -> None:
    _, _, transform = shifted_pair()
    fixed, moving = boxes(FIXED, skip=(3,)), boxes(FIXED, SHIFT, skip=(1,))
    labels = evaluate(transform, FIXED, fixed_labels=fixed, moving_labels=moving)["labels"]
    assert labels["counted"] == [2]
    assert labels["only_fixed"] == [1]
    assert labels["only_moving"] == [3]
    assert labels["mean"]["after"]["dice"] == labels["per_label"][0]["after"]["dice"]


def test_a_label_moved_out_of_the_volume_counts_as_zero_and_is_called_lost() -> None:
    fixed, moving, _ = shifted_pair()
    far_away = AffineTransform.translation((500.0, 0, 0))
    result = evaluate(far_away, gray(fixed), gray(moving), fixed_labels=fixed, moving_labels=moving)
    labels = result["labels"]
    assert labels["lost"] == [1, 2, 3]
    assert labels["mean"]["after"]["dice"] == labels["mean"]["after"]["in_view"] == 0
    assert labels["mean"]["after"]["hd95_mm"] is None
    assert result["similarity"]["after"]["normalized_cross_correlation"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_lies_outside_the_moving_volume_is_told_apart_from_disagreement() -> None:
    fixed, moving, transform = shifted_pair()
    # The moving volume ends in the middle of label 3.
    cut = moving.grid.cropped((0, 0, 0), (26, 24, 13))
    cut_labels = Image(moving.data[:13], cut, "uint8")
    entry = evaluate(transform, FIXED, fixed_labels=fixed, moving_labels=cut_labels)["labels"]["per_label"][2]
    assert entry["label"] == 3
    assert 0 < entry["after"]["in_view"] < 1
    assert entry["after"]["dice"] < 1
    assert entry["after"]["dice_in_view"] == 1


def test_groups_and_names_of_labels_reach_the_result() -> None:
    fixed, moving, transform = shifted_pair()
    labels = evaluate(
        transform,
        FIXED,
        fixed_labels=fixed,
        moving_labels=moving,
        label_names={1: "liver"},
        label_groups={"upper": (1, 2), "none": (9,)},
    )["labels"]
    assert [entry["name"] for entry in labels["per_label"]] == ["liver", "2", "3"]
    single = {entry["label"]: entry["before"]["dice"] for entry in labels["per_label"]}
    assert labels["group_mean"]["before"]["dice"]["upper"] == pytest.approx((single[1] + single[2]) / 2)
    assert labels["group_mean"]["before"]["dice"]["none"] is None


def test_only_the_labels_that_are_asked_for_are_looked_at() -> None:
    _, _, transform = shifted_pair()
    fixed, moving = boxes(FIXED, skip=(3,)), boxes(FIXED, SHIFT)
    labels = evaluate(transform, FIXED, fixed_labels=fixed, moving_labels=moving, labels=(1,))["labels"]
    assert labels["counted"] == [1]
    assert labels["only_fixed"] == labels["only_moving"] == []


def test_a_mask_restricts_labels_landmarks_and_field() -> None:
    fixed, moving, transform = shifted_pair()
    mask = Image((fixed.data == 2).float(), FIXED)
    points = PointSet([[10, 30, 25], [-5, 25, 25]], ("inside", "outside"))
    result = evaluate(
        transform,
        FIXED,
        fixed_labels=fixed,
        moving_labels=moving,
        fixed_points=points,
        moving_points=points,
        mask=mask,
    )
    assert result["labels"]["counted"] == [2]
    assert result["labels"]["only_moving"] == [1, 3]
    assert [point["name"] for point in result["landmarks"]["per_landmark"]] == ["inside"]


def test_labels_on_another_grid_are_read_in_world_space_with_a_warning() -> None:
    fixed, moving, transform = shifted_pair()
    fine = Grid((60, 55, 52), (0.8, 0.8, 1.0), FIXED.origin)
    with pytest.warns(RegistrationWarning, match="another grid"):
        result = evaluate(transform, FIXED, fixed_labels=boxes(fine), moving_labels=moving)
    expected = evaluate(transform, FIXED, fixed_labels=fixed, moving_labels=moving)
    assert result["labels"]["mean"]["after"] == pytest.approx(expected["labels"]["mean"]["after"], abs=0.1)


def test_storing_the_moving_labels_flipped_and_permuted_changes_nothing() -> None:
    fixed, moving, transform = shifted_pair()
    flipped = Image.from_sitk(sitk.Flip(sitk.PermuteAxes(moving.to_sitk(), (2, 0, 1)), (True, False, True)))
    results = [
        evaluate(transform, FIXED, fixed_labels=fixed, moving_labels=m)["labels"] for m in (moving, flipped)
    ]
    assert results[0] == results[1]


def test_a_field_and_the_affine_map_it_stands_for_measure_the_same() -> None:
    fixed, moving, transform = shifted_pair()
    points = PointSet([[-5, 25, 25], [10, 30, 25]])
    truth = {"fixed_labels": fixed, "moving_labels": moving, "fixed_points": points, "moving_points": points}
    field = displacement_on(transform, FIXED)
    assert evaluate(field, FIXED, **truth)["labels"] == evaluate(transform, FIXED, **truth)["labels"]
    single = [evaluate(t, FIXED, **truth)["landmarks"]["mean"]["after"] for t in (field, transform)]
    assert single[0] == pytest.approx(single[1], abs=1e-3)


def test_incomplete_or_unrelated_ground_truth_is_refused() -> None:
    fixed, moving, transform = shifted_pair()
    with pytest.raises(UsageError, match="moving labels are missing"):
        evaluate(transform, FIXED, fixed_labels=fixed)
    far = Image(fixed.data, Grid(FIXED.size, FIXED.spacing, (1000.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="does not overlap"):
        evaluate(transform, FIXED, fixed_labels=far, moving_labels=moving)
    with pytest.raises(InputError, match="1 fixed and 2 moving landmarks"):
        evaluate(transform, FIXED, fixed_points=PointSet([[0, 0, 0]]), moving_points=PointSet(np.zeros((2, 3))))


def test_files_are_measured_like_their_contents_and_told_by_checksums(tmp_path: Path) -> None:
    fixed, moving, transform = shifted_pair()
    points = PointSet([[-5, 25, 25]], ("liver",))
    write_image(gray(fixed), tmp_path / "fixed.nii.gz")
    write_image(gray(moving), tmp_path / "moving.mha")
    write_image(fixed, tmp_path / "fixed_labels.nii.gz")
    write_image(moving, tmp_path / "moving_labels.nrrd")
    write_points(points, tmp_path / "fixed.mrk.json")
    write_points(points.mapped(transform.transform_points), tmp_path / "moving.csv")
    write_transform(transform, tmp_path / "transform.h5")
    result = evaluate_files(
        tmp_path / "transform.h5",
        tmp_path / "fixed.nii.gz",
        tmp_path / "moving.mha",
        fixed_labels=tmp_path / "fixed_labels.nii.gz",
        moving_labels=tmp_path / "moving_labels.nrrd",
        fixed_points=tmp_path / "fixed.mrk.json",
        moving_points=tmp_path / "moving.csv",
    )
    assert result["labels"]["mean"]["after"]["dice"] == 1
    assert result["landmarks"]["mean"]["after"]["mean_mm"] == pytest.approx(0, abs=1e-3)
    assert set(result["inputs"]) == {
        "transform",
        "fixed",
        "moving",
        "fixed_labels",
        "moving_labels",
        "fixed_points",
        "moving_points",
    }
    assert all(len(entry["sha256"]) == 64 for entry in result["inputs"].values())
    assert result["inputs"]["fixed"]["size"] == list(FIXED.size)
    text = evaluation_text(result)
    assert "mean of 3" in text
    assert "liver" in text
    with pytest.raises(UsageError, match="fixed points are missing"):
        evaluate_files(
            tmp_path / "transform.h5",
            tmp_path / "fixed.nii.gz",
            tmp_path / "moving.mha",
            moving_points=tmp_path / "moving.csv",
        )


@pytest.mark.data
def test_a_real_inter_subject_pair_lists_the_labels_that_only_one_scan_shows(data_dir: Path) -> None:
    grid = read_image(data_dir / "thorax" / "lidc0405.nii.gz").grid.resampled(8.0)
    labels = read_labels(data_dir / "thorax" / "lidc0405_labels.nii.gz")
    fixed_labels = labels.resampled(grid, Interpolation.NEAREST)
    moving_labels = read_labels(data_dir / "abdomen" / "ts_example_labels.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(AffineTransform(), grid, fixed_labels=fixed_labels, moving_labels=moving_labels)[
            "labels"
        ]
    assert {1, 2, 3, 5, 6, 7} <= set(result["counted"])
    assert result["only_fixed"]
    assert result["only_moving"]
