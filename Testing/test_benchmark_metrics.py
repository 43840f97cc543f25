"""Scores follow the truth: what is right scores no error, what is moved scores how far."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from benchmark_phantoms import OFFSET, SIZE, write_suite

from SAMRegistrationLib.benchmark.geometry import apply_matrix, moved_in_world
from SAMRegistrationLib.benchmark.metrics import METRICS, Judged, distance_per_slice, evaluate
from SAMRegistrationLib.benchmark.pairs import Mask, Pair, Region, Truth
from SAMRegistrationLib.benchmark.suite import load_suite
from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.field import DisplacementField, displacement_on
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.transforms import AffineTransform


def scores_of(pair: Pair, field: DisplacementField) -> dict[tuple[str, str], float | None]:
    return {(score.metric, score.label): score.value for score in evaluate(Judged(pair, field), METRICS)}


def grid_of(pair: Pair) -> Grid:
    return Grid.from_sitk(sitk.ReadImage(str(pair.judged_volumes[0])))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return load_suite(write_suite(tmp_path, ["initial"])).pairs()[0]


def test_the_true_map_scores_no_error_and_no_map_scores_its_length(pair: Pair) -> None:
    grid = grid_of(pair)
    true = scores_of(pair, displacement_on(AffineTransform.translation(OFFSET), grid))
    nothing = scores_of(pair, DisplacementField.zero(grid))
    length = float(np.linalg.norm(OFFSET))
    diagonal = math.dist((0, 0, 0), grid.extent)
    for metric in ("error_mean_mm", "error_max_mm", "tre_p95_mm", "tre_max_mm"):
        assert true[metric, ""] == pytest.approx(0, abs=1e-4)
        assert nothing[metric, ""] == pytest.approx(length, abs=1e-4)
    assert nothing["rtre", ""] == pytest.approx(length / diagonal, abs=1e-6)
    assert true["dice", "left"] == 1 and true["hd95_mm", "right"] == 0 and true["center_mm", "left"] == 0
    assert nothing["center_mm", "left"] == pytest.approx(length, abs=1.0)
    assert (true["ncc", ""] or 0) > 0.9999 > (nothing["ncc", ""] or 0)
    assert (true["mutual_information", ""] or 0) > (nothing["mutual_information", ""] or 0)
    assert true["folded_percent", ""] == true["ndv_percent", ""] == 0
    assert true["sdlogj", ""] == pytest.approx(0, abs=1e-6) and true["sdlogj_l2r", ""] == pytest.approx(
        0, abs=1e-6
    )
    assert true["inside_percent", ""] == 100


def test_only_what_is_mapped_inside_is_covered(pair: Pair) -> None:
    field = displacement_on(AffineTransform.translation(OFFSET + np.array([9.0, 0, 0])), grid_of(pair))
    expected = 100 * (SIZE[0] - 3) / SIZE[0]
    assert scores_of(pair, field)["inside_percent", ""] == pytest.approx(expected)


def test_a_label_that_is_driven_out_is_an_overlap_of_nothing(pair: Pair) -> None:
    far = displacement_on(AffineTransform.translation((500.0, 0, 0)), grid_of(pair))
    scores = scores_of(replace(pair, region=Region.OVERLAP), far)
    assert scores["dice", "left"] == 0 and scores["center_mm", "left"] is None
    assert ("ncc", "") not in scores


def test_the_error_is_judged_where_a_mask_file_says_so(pair: Pair, tmp_path: Path) -> None:
    grid = grid_of(pair)
    field = DisplacementField.zero(grid)
    field.data[:, 0, :, :, : SIZE[0] // 2] = 10.0
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[5:9, 5:9, 2:8] = 1
    for shift, expected in ((0, 10.0), (11, 0.0)):
        image = sitk.GetImageFromArray(np.roll(mask, shift, axis=2))
        image.CopyInformation(sitk.ReadImage(str(pair.fixed)))
        sitk.WriteImage(image, str(tmp_path / "mask.nii.gz"))
        truth = Truth(tmp_path / "mask.nii.gz", matrix=np.eye(4))
        judged = replace(pair, moving=pair.fixed, label_maps=None, truth=truth)
        assert scores_of(judged, field)["error_mean_mm", ""] == pytest.approx(expected)


def test_a_true_field_is_read_between_its_samples(pair: Pair, tmp_path: Path) -> None:
    grid = grid_of(pair)
    ramp = DisplacementField.zero(grid)
    ramp.data[0, 1] = torch.linspace(0.0, 3.0, SIZE[0])
    sitk.WriteImage(ramp.to_image(), str(tmp_path / "true.mha"))
    truth = Truth(Mask.BODY, field=tmp_path / "true.mha")
    points = grid.to_world(np.array([[3.5, 4.0, 5.0], [10.25, 2.0, 7.0], [99.0, 4.0, 5.0]]))
    expected = [3.5 / (SIZE[0] - 1) * 3, 10.25 / (SIZE[0] - 1) * 3, 3.0]
    np.testing.assert_allclose((truth.transform_points(points) - points)[:, 1], expected, atol=1e-5)
    same = replace(pair, moving=pair.fixed, label_maps=None, truth=truth)
    assert scores_of(same, ramp)["error_max_mm", ""] == pytest.approx(0, abs=1e-4)


def test_an_unknown_metric_is_refused(pair: Pair) -> None:
    with pytest.raises(InputError, match="unknown metric 'beauty'"):
        evaluate(Judged(pair, DisplacementField.zero(grid_of(pair))), ["beauty"])


def test_tubes_are_compared_slice_by_slice_whatever_their_length_and_thickness() -> None:
    grid = Grid((20, 20, 12), (2.0, 2.0, 3.0), (5.0, -3.0, 1.0))
    fixed, warped = (np.zeros(grid.shape, dtype=bool) for _ in range(2))
    fixed[0:9, 4:7, 4:7] = True
    warped[4:12, 8:11, 7:10] = True
    warped[7:12, 7:12, 6:11] = True
    assert distance_per_slice(fixed, warped, grid) == pytest.approx(2.0 * 5.0)
    assert np.isnan(distance_per_slice(fixed[::-1] & False, warped, grid))


def test_moving_a_volume_in_the_world_takes_every_voxel_along() -> None:
    image = sitk.Image([5, 6, 7], sitk.sitkInt16)
    image.SetSpacing([1.0, 2.0, 3.0])
    image.SetOrigin([10.0, -20.0, 30.0])
    matrix = np.array([[0, -1, 0, 5], [1, 0, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1]], dtype=float)
    moved = moved_in_world(image, matrix)
    for index in ([0, 0, 0], [4, 5, 6], [2, 1, 3]):
        expected = apply_matrix(matrix, np.asarray(image.TransformIndexToPhysicalPoint(index)))
        np.testing.assert_allclose(moved.TransformIndexToPhysicalPoint(index), expected, atol=1e-9)


@pytest.mark.data
def test_a_limb_is_judged_against_its_known_offset(data_dir: Path, tmp_path: Path) -> None:
    limb = load_suite("limbs", data_dir).pairs(["sts032_ct_mr"])[0].prepared(tmp_path)
    assert limb.truth is not None and limb.truth.matrix is not None
    grid = grid_of(limb)
    truth = scores_of(limb, displacement_on(AffineTransform(limb.truth.matrix), grid))
    nothing = scores_of(limb, DisplacementField.zero(grid))
    assert truth["error_max_mm", ""] == pytest.approx(0, abs=1e-3)
    lengths = np.linalg.norm(apply_matrix(limb.truth.matrix, grid.corners()) - grid.corners(), axis=1)
    assert 0 < (nothing["error_max_mm", ""] or 0) <= lengths.max()


@pytest.mark.data
def test_a_volume_registered_to_itself_has_perfect_overlap(data_dir: Path) -> None:
    pair = load_suite("openkbp_inter", data_dir).pairs()[0]
    assert pair.label_maps is not None
    same = replace(pair, moving=pair.fixed, label_maps=(pair.label_maps[0], pair.label_maps[0]))
    grid = grid_of(pair)
    scores = scores_of(same, DisplacementField.zero(grid))
    for label in same.labels:
        if ("dice", label.name) in scores:
            assert scores["dice", label.name] == 1 and scores["center_mm", label.name] == 0
    shifted = DisplacementField.zero(grid)
    shifted.data[:, 0] = 12.0
    assert scores_of(same, shifted)["center_mm", "Mandible"] == pytest.approx(12, abs=max(grid.spacing) / 2 + 0.1)
