"""A region of interest is the same box in Slicer's file, in text, for points and for voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import grids, rotation, seeds

from SAMRegistrationLib.errors import InputError
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.roi import RegionOfInterest, read_roi, require_overlap, write_roi


@st.composite
def regions(draw: st.DrawFn) -> RegionOfInterest:
    center = draw(st.tuples(*[st.floats(-50, 50)] * 3))
    half_size = draw(st.tuples(*[st.floats(1.0, 30.0)] * 3))
    return RegionOfInterest(
        np.array(center), np.array(half_size), rotation(draw(st.tuples(*[st.floats(-3, 3)] * 3)))
    )


def roi_markup(**changes: Any) -> dict[str, Any]:
    """An ROI as Slicer saves it: its own axes L, P, S look like a turn by 180 degrees in an LPS file."""
    markup = {
        "type": "ROI",
        "coordinateSystem": "LPS",
        "coordinateUnits": ["mm", "UCUM", "millimeter"],
        "roiType": "Box",
        "center": [10.0, 20.0, 30.0],
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "size": [8.0, 6.0, 4.0],
        "insideOut": False,
        "controlPoints": [{"id": "1", "label": "R-1", "position": [10.0, 20.0, 30.0]}],
    }
    markup.update(changes)
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [markup]}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def sorted_corners(roi: RegionOfInterest) -> np.ndarray:
    corners = roi.corners().round(6)
    return corners[np.lexsort(corners.T)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(roi=regions())
def test_a_written_region_is_read_as_the_same_box(tmp_path: Path, roi: RegionOfInterest) -> None:
    write_roi(roi, tmp_path / "roi.mrk.json")
    found = read_roi(tmp_path / "roi.mrk.json")
    np.testing.assert_allclose(found.center, roi.center, atol=1e-9)
    np.testing.assert_allclose(found.half_size, roi.half_size, atol=1e-9)
    np.testing.assert_allclose(found.axes, roi.axes, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(roi=regions(), seed=seeds)
def test_a_point_is_inside_exactly_if_its_own_coordinates_are(roi: RegionOfInterest, seed: int) -> None:
    own = np.random.default_rng(seed).uniform(-1.5, 1.5, (50, 3))
    world = roi.center + own * roi.half_size @ roi.axes.T
    clear = (np.abs(np.abs(own) - 1) * roi.half_size > 1e-3).all(axis=1)
    np.testing.assert_array_equal(roi.contains(world)[clear], (np.abs(own) <= 1).all(axis=1)[clear])


def test_corners_and_center_lie_inside_and_beyond_the_corners_nothing_does() -> None:
    roi = RegionOfInterest(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), rotation((0.3, 0.2, 0.1)))
    assert roi.contains(roi.corners()).all() and roi.contains(roi.center)
    assert not roi.contains(roi.center + 1.01 * (roi.corners() - roi.center)).any()
    assert roi.volume == pytest.approx(8 * 4 * 5 * 6)


def test_slicers_lps_and_ras_files_name_the_same_box(tmp_path: Path) -> None:
    turn = rotation((0.3, -0.2, 0.5))
    flip = np.diag([-1.0, -1.0, 1.0])
    lps = roi_markup(orientation=turn.ravel().tolist())
    ras = roi_markup(
        coordinateSystem="RAS", center=[-10.0, -20.0, 30.0], orientation=(flip @ turn).ravel().tolist()
    )
    from_lps = read_roi(write_json(tmp_path / "lps.mrk.json", lps))
    from_ras = read_roi(write_json(tmp_path / "ras.mrk.json", ras))
    np.testing.assert_allclose(from_lps.center, (10, 20, 30))
    np.testing.assert_allclose(from_lps.axes, turn)
    np.testing.assert_allclose(sorted_corners(from_lps), sorted_corners(from_ras), atol=1e-6)


def test_a_region_as_slicer_saves_it_is_the_box_between_its_corners(tmp_path: Path) -> None:
    saved = read_roi(write_json(tmp_path / "r.mrk.json", roi_markup()))
    typed = read_roi("6,17,28,14,23,32")
    np.testing.assert_allclose(sorted_corners(saved), sorted_corners(typed))
    turned_corners = read_roi(" 14, 23, 28, 6, 17, 32 ")
    np.testing.assert_allclose(sorted_corners(turned_corners), sorted_corners(typed))


def test_scaled_axes_and_micrometers_scale_the_box(tmp_path: Path) -> None:
    scaled = roi_markup(orientation=[2.0, 0, 0, 0, 1, 0, 0, 0, 1], coordinateUnits="mm")
    np.testing.assert_allclose(read_roi(write_json(tmp_path / "s.mrk.json", scaled)).half_size, (8, 3, 2))
    micro = read_roi(write_json(tmp_path / "m.mrk.json", roi_markup(coordinateUnits="um")))
    np.testing.assert_allclose(micro.center, (0.01, 0.02, 0.03))
    np.testing.assert_allclose(micro.half_size, (0.004, 0.003, 0.002))


def test_a_written_region_has_what_slicer_asks_for(tmp_path: Path) -> None:
    write_roi(RegionOfInterest.from_corners((6, 17, 28), (14, 23, 32)), tmp_path / "r.mrk.json")
    (markup,) = json.loads((tmp_path / "r.mrk.json").read_text())["markups"]
    assert (markup["type"], markup["roiType"], markup["coordinateSystem"]) == ("ROI", "Box", "LPS")
    assert (markup["center"], markup["size"]) == ([10.0, 20.0, 30.0], [8.0, 6.0, 4.0])
    assert markup["orientation"] == np.eye(3).ravel().tolist()
    assert markup["controlPoints"][0]["position"] == [10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "is not a box"),
        ("1,2,3,4,5,six", "is not a box"),
        ("1,2,3,1,5,6", "is not a box"),
        ("1,2,3,4,5,inf", "is not a box"),
        ("missing.mrk.json", "file not found"),
    ],
)
def test_text_that_is_no_box_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_roi(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"@schema": "", "markups": [{"type": "Fiducial"}]}, "holds 0 ROIs"),
        ({"@schema": "", "markups": [{"type": "ROI"}, {"type": "ROI"}]}, "holds 2 ROIs"),
        (roi_markup(center=None), "the ROI's center must be 3 finite numbers"),
        (roi_markup(size=[1, 2, 0]), "sides of a region must be positive"),
        (roi_markup(orientation=[0] * 9), "holds no usable ROI"),
        (roi_markup(orientation=[1, 0.5, 0, 0, 1, 0, 0, 0, 1]), "orthonormal"),
        (roi_markup(coordinateSystem="IJK"), "IJK is not known"),
    ],
)
def test_markups_that_are_no_box_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = write_json(tmp_path / "roi.mrk.json", content)
    with pytest.raises(InputError, match=words) as caught:
        read_roi(path)
    assert str(path) in str(caught.value)


def test_files_of_another_kind_are_no_regions(tmp_path: Path) -> None:
    (tmp_path / "roi.csv").write_text("1,2,3")
    with pytest.raises(InputError, match="is not an ROI file"):
        read_roi(tmp_path / "roi.csv")
    with pytest.raises(InputError, match=r"must end in \.mrk\.json"):
        write_roi(RegionOfInterest.from_corners((0, 0, 0), (1, 1, 1)), tmp_path / "roi.nrrd")


def voxel_centers(grid: Grid) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)[..., ::-1]
    return grid.to_world(index)


@settings(max_examples=25, deadline=None)
@given(roi=regions(), grid=grids(largest=8, off_center=40.0), margin=st.floats(1.0, 20.0))
def test_mask_and_weight_agree_with_the_distance_to_the_box(
    roi: RegionOfInterest, grid: Grid, margin: float
) -> None:
    own = np.abs((voxel_centers(grid) - roi.center) @ roi.axes) - roi.half_size
    distance = np.linalg.norm(np.maximum(own, 0), axis=-1)
    weight = roi.weight(grid, margin)
    assert weight.shape == grid.shape and weight.dtype == torch.float32
    expected = np.where(distance < margin, 0.5 + 0.5 * np.cos(np.pi * distance / margin), 0.0)
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-3)
    clear = np.abs(own).min(axis=-1) > 2e-3  # not on a face, where rounding decides
    np.testing.assert_array_equal(roi.mask(grid).numpy()[clear], roi.contains(voxel_centers(grid))[clear])


@settings(max_examples=25, deadline=None)
@given(roi=regions(), grid=grids(largest=8, off_center=40.0), margin=st.floats(0.0, 5.0))
def test_the_voxel_box_holds_every_voxel_of_the_grown_region(
    roi: RegionOfInterest, grid: Grid, margin: float
) -> None:
    lower, upper = roi.voxel_box(grid, margin)
    inside = np.argwhere(roi.grown(margin).mask(grid).numpy())[:, ::-1]
    assert (inside >= lower).all() and (inside < upper).all()
    assert min(lower) >= 0 and (np.array(upper) <= grid.size).all()


def test_the_voxel_box_of_a_region_along_the_grid_is_exact() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0))
    roi = RegionOfInterest.from_corners((3.1, 4.9, 0.0), (8.9, 7.1, 100.0))
    assert roi.voxel_box(grid) == ((2, 2, 0), (5, 5, 10))
    lower, upper = RegionOfInterest.from_corners((50, 50, 50), (60, 60, 60)).voxel_box(grid)
    assert min(np.array(upper) - lower) <= 0


def test_the_overlap_is_the_fraction_of_the_region_inside_the_image() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    assert RegionOfInterest.from_corners((2, 2, 2), (8, 8, 8)).overlap(grid) == 1
    assert RegionOfInterest.from_corners((-10, 0, 0), (10, 20, 20)).overlap(grid) == pytest.approx(0.5, abs=0.03)
    whole = RegionOfInterest.from_grid(grid)
    assert whole.overlap(grid) == 1 and bool(whole.mask(grid).all())
    np.testing.assert_allclose(sorted_corners(whole)[[0, -1]], [[0, 0, 0], [20, 20, 20]], atol=1e-9)


def test_a_region_outside_the_image_is_refused_and_any_overlap_accepted() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0))
    require_overlap(RegionOfInterest.from_corners((17, 17, 17), (200, 200, 200)), grid)
    require_overlap(RegionOfInterest.from_corners((3.1, 3.1, 3.1), (3.2, 3.2, 3.2)), grid)
    outside = RegionOfInterest.from_corners((30, 30, 30), (40, 40, 40))
    with pytest.raises(InputError, match=r"around \(35, 35, 35\) mm LPS lies outside the moving image"):
        require_overlap(outside, grid, "the moving image")


@settings(max_examples=20, deadline=None)
@given(roi=regions(), margin=st.floats(-0.9, 10.0))
def test_growing_moves_every_face_by_the_margin(roi: RegionOfInterest, margin: float) -> None:
    assume(roi.half_size.min() + margin > 0)
    np.testing.assert_allclose(roi.grown(margin).half_size, roi.half_size + margin)


@pytest.mark.parametrize(
    "arguments",
    [
        {"half_size": [1, 1, 0]},
        {"half_size": [1, 1]},
        {"center": [0, 0, np.nan]},
        {"axes": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]},
    ],
)
def test_what_is_no_box_is_no_region(arguments: dict[str, Any]) -> None:
    box: dict[str, Any] = {"center": [0, 0, 0], "half_size": [1, 1, 1], **arguments}
    with pytest.raises(ValueError, match="region"):
        RegionOfInterest(**box)


def test_a_smooth_weight_needs_a_margin() -> None:
    roi = RegionOfInterest.from_corners((0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="margin"):
        roi.weight(Grid((4, 4, 4)), 0.0)
