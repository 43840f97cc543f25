"""The grid against SimpleITK's geometry and against what its operations promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import STORAGES, empty_sitk, grids, points_inside

from SAMRegistrationLib import Grid

quick = settings(max_examples=25, deadline=None)


@quick
@given(grids(), st.integers(0, 1000))
def test_world_positions_agree_with_simpleitk(grid: Grid, seed: int) -> None:
    voxels = np.random.default_rng(seed).uniform(-20, 20, (10, 3))
    image = empty_sitk(grid)
    expected = [image.TransformContinuousIndexToPhysicalPoint(voxel) for voxel in voxels.tolist()]
    np.testing.assert_allclose(grid.to_world(voxels), expected, atol=1e-9)
    assert Grid.from_sitk(image) == grid


@quick
@given(grids(), st.integers(0, 1000))
def test_world_and_voxel_positions_invert_each_other(grid: Grid, seed: int) -> None:
    voxels = np.random.default_rng(seed).uniform(-50, 50, (2, 5, 3))
    np.testing.assert_allclose(grid.to_voxel(grid.to_world(voxels)), voxels, atol=1e-9)


@quick
@given(grids())
def test_the_matrix_of_a_grid_gives_the_grid_back(grid: Grid) -> None:
    again = Grid.from_voxel_to_world(grid.size, grid.voxel_to_world)
    assert again.isclose(grid, 1e-9)
    np.testing.assert_allclose(again.spacing, grid.spacing)


@quick
@given(grids(), st.tuples(*[st.floats(0.3, 9.0)] * 3))
def test_resampled_covers_the_same_box_from_the_same_center(
    grid: Grid, spacing: tuple[float, float, float]
) -> None:
    new = grid.resampled(spacing)
    assert new.spacing == pytest.approx(spacing)
    np.testing.assert_allclose(new.center, grid.center, atol=1e-9)
    missing = np.asarray(grid.extent) - np.asarray(new.extent)
    assert (missing <= 1.1e-3 * np.asarray(spacing)).all()
    assert (missing > -np.asarray(spacing)).all()


@quick
@given(grids(), st.tuples(*[st.integers(1, 30)] * 3))
def test_resized_covers_exactly_the_same_box(grid: Grid, size: tuple[int, int, int]) -> None:
    new = grid.resized(size)
    assert new.size == size
    np.testing.assert_allclose(new.corners(), grid.corners(), atol=1e-9)


def test_halving_the_resolution_of_an_even_grid_halves_its_size() -> None:
    grid = Grid((10, 8, 6), (1.5, 2.0, 3.0))
    assert grid.resampled((3.0, 4.0, 6.0)).size == (5, 4, 3)
    assert grid.resampled(100.0).size == (1, 1, 1)


@quick
@given(grids(), st.integers(1, 4), st.floats(-2, 2))
def test_voxels_of_a_strided_grid_lie_where_the_stride_says(grid: Grid, stride: int, offset: float) -> None:
    strided = grid.strided(stride, offset)
    index = np.array([[0, 0, 0], [1, 0, 0], [2, 1, 3]])
    np.testing.assert_allclose(strided.to_world(index), grid.to_world(index * stride + offset), atol=1e-9)
    assert strided.size == tuple(math.ceil(n / stride) for n in grid.size)


@quick
@given(grids(), st.tuples(*[st.integers(-3, 3)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_cropping_keeps_voxels_where_they_are(grid: Grid, lower: tuple[int, ...], size: tuple[int, ...]) -> None:
    upper = tuple(low + n for low, n in zip(lower, size, strict=True))
    cropped = grid.cropped(lower, upper)
    assert cropped.size == size
    np.testing.assert_allclose(cropped.to_world((1, 2, 3)), grid.to_world(np.add(lower, (1, 2, 3))), atol=1e-9)


@quick
@given(grids(), st.tuples(*[st.integers(0, 4)] * 3))
def test_padding_and_cropping_cancel(grid: Grid, margin: tuple[int, ...]) -> None:
    padded = grid.padded(margin)
    np.testing.assert_allclose(padded.center, grid.center, atol=1e-9)
    back = padded.cropped(margin, tuple(np.subtract(padded.size, margin)))
    assert back.isclose(grid, 1e-9)


@quick
@given(grids(), st.sampled_from(STORAGES))
def test_reordered_voxels_stay_at_their_place(
    grid: Grid, storage: tuple[tuple[int, ...], tuple[bool, ...]]
) -> None:
    order, flips = storage
    new = grid.reordered(order, flips)
    index = np.array([1, 2, 0])
    old = np.zeros(3)
    old[list(order)] = np.where(flips, np.asarray(grid.size)[list(order)] - 1 - index, index)
    np.testing.assert_allclose(new.to_world(index), grid.to_world(old), atol=1e-9)
    assert sorted(new.size) == sorted(grid.size)


@quick
@given(grids())
def test_a_box_contains_its_corners_and_no_point_beyond(grid: Grid) -> None:
    assert grid.contains(grid.corners()).all()
    assert grid.contains(points_inside(grid, 20, 0)).all()
    outward = grid.center + (grid.corners() - grid.center) * 1.01
    assert not grid.contains(outward).any()


def test_overlap_is_the_share_of_the_first_box() -> None:
    grid = Grid((10, 10, 10))
    assert grid.overlap(grid) == 1.0
    assert grid.overlap(grid.cropped((5, 0, 0), (25, 10, 10))) == pytest.approx(0.5, abs=0.02)
    assert grid.cropped((0, 0, 0), (5, 10, 10)).overlap(grid) == 1.0
    assert grid.overlap(Grid((10, 10, 10), origin=(100, 0, 0))) == 0.0


def test_extent_volume_and_shape_follow_from_size_and_spacing() -> None:
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0))
    assert grid.shape == (6, 5, 4)
    assert grid.extent == (4.0, 10.0, 18.0)
    assert grid.voxel_volume == 6.0
    assert grid.number_of_voxels == 120


def test_isclose_sees_a_shift_a_turn_and_another_size() -> None:
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0))
    assert grid.isclose(Grid((4, 5, 6), (1.0, 2.0, 3.0), (0, 0, 1e-4)))
    assert not grid.isclose(Grid((4, 5, 6), (1.0, 2.0, 3.0), (0, 0, 1e-2)))
    assert not grid.isclose(Grid((4, 5, 7), (1.0, 2.0, 3.0)))
    assert not grid.isclose(Grid((4, 5, 6), (1.0, 2.0, 3.0), direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (0, 4, 4)},
        {"size": (4, 4)},
        {"size": (4, 4, 4), "spacing": (1, 1, 0)},
        {"size": (4, 4, 4), "spacing": (1, 1, math.nan)},
        {"size": (4, 4, 4), "spacing": (1, 1, math.inf)},
        {"size": (4, 4, 4), "origin": (0, 0, math.nan)},
        {"size": (4, 4, 4), "origin": (0, 0)},
        {"size": (4, 4, 4), "direction": (1, 0, 0, 0, 1, 0, 0, 1, 1)},
        {"size": (4, 4, 4), "direction": (1, 0, 0, 1)},
    ],
    ids=str,
)
def test_a_grid_that_is_none_is_refused(arguments: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="a grid"):
        Grid(**arguments)  # type: ignore[arg-type]


def test_equal_grids_are_equal_keys() -> None:
    assert len({Grid((4, 5, 6)), Grid((4, 5, 6), (1, 1, 1)), Grid((4, 5, 7))}) == 2
