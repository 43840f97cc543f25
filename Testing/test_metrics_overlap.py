"""Dice, robust Hausdorff distance and centers of labels against closed forms and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.metrics import (
    center_distance_per_label,
    common_labels,
    dice_per_label,
    hausdorff95_per_label,
    label_centers,
    labels_in,
    robust_hausdorff_distance,
    within,
)
from SAMRegistrationLib.metrics.overlap import label_boxes
from SAMRegistrationLib.metrics.surface import CORNERS, surface_element_areas


def blob(seed: int, shape: tuple[int, int, int] = (20, 24, 18), level: float = 0.05) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2) > level


def cube(shape: tuple[int, int, int], lower: tuple[int, int, int], side: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(low, low + side) for low in lower)] = True
    return mask


def published_areas(spacing_zyx: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """MONAI's copy of the published table: the area of each neighbor code, and the weights that make the code."""
    from monai.metrics.utils import ENCODING_KERNEL, create_table_neighbour_code_to_surface_area

    table, _ = create_table_neighbour_code_to_surface_area(spacing_zyx)
    return table.numpy().ravel(), np.asarray(ENCODING_KERNEL[3])


def reference_hausdorff(first: np.ndarray, second: np.ndarray, spacing_zyx: tuple[float, ...]) -> float:
    """The published definition with MONAI's table of surface elements and SciPy's distance transform."""
    table, kernel = published_areas(spacing_zyx)
    codes = [ndimage.correlate(np.pad(m, 1).astype(int), kernel, mode="constant") for m in (first, second)]
    borders = [(code > 0) & (code < 255) for code in codes]
    directed = []
    for a, b in ((0, 1), (1, 0)):
        distance = ndimage.distance_transform_edt(~borders[b], sampling=spacing_zyx)[borders[a]]
        area = table[codes[a][borders[a]]]
        order = np.argsort(distance, kind="stable")
        share = np.cumsum(area[order]) / area.sum()
        directed.append(distance[order][min(np.searchsorted(share, 0.95), len(order) - 1)])
    return float(max(directed))


def test_dice_of_shifted_cubes_is_their_share_in_common() -> None:
    fixed = cube((12, 12, 12), (2, 2, 2), 6) * 3
    warped = cube((12, 12, 12), (2, 2, 4), 6) * 3
    assert dice_per_label(fixed, warped, [3]) == {3: pytest.approx(4 / 6)}


def test_dice_of_a_label_that_neither_map_holds_is_not_a_number() -> None:
    empty = np.zeros((4, 4, 4), dtype=np.int32)
    assert math.isnan(dice_per_label(empty, empty, [1])[1])


def test_dice_of_a_label_that_was_moved_out_of_the_volume_is_zero() -> None:
    fixed = cube((8, 8, 8), (2, 2, 2), 3).astype(np.int16)
    assert dice_per_label(fixed, np.zeros_like(fixed), [1]) == {1: 0.0}


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_dice_agrees_with_counting_voxels_and_does_not_depend_on_the_order(first: int, second: int) -> None:
    shape = (5, 6, 7)
    a = np.random.default_rng(first).integers(0, 4, shape)
    b = np.random.default_rng(second).integers(0, 4, shape)
    overlap = dice_per_label(a, b, [1, 2, 3])
    for label in (1, 2, 3):
        expected = 2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))
        assert overlap[label] == pytest.approx(expected)
    assert overlap == dice_per_label(b, a, [1, 2, 3])


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        dice_per_label(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), [1])


def test_labels_common_to_two_maps_on_different_grids_are_listed_without_the_background() -> None:
    fixed = np.zeros((3, 3, 3), dtype=np.int32)
    fixed[0, 0, :] = (5, 2, 9)
    moving = np.zeros((2, 4, 5), dtype=np.int32)
    moving[0, 0, :3] = (9, 5, 7)
    assert labels_in(fixed) == [2, 5, 9]
    assert common_labels(fixed, moving) == [5, 9]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.4, 2.5)])
def test_areas_of_surface_elements_are_those_of_the_published_table(spacing: tuple[float, float, float]) -> None:
    published, kernel = published_areas(spacing[::-1])
    codes = [sum(int(kernel[c]) for bit, c in enumerate(CORNERS) if code >> bit & 1) for code in range(256)]
    assert surface_element_areas(spacing) == pytest.approx(published[codes], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.5), (0.7, 0.8, 3.0)])
def test_hausdorff95_agrees_with_the_published_definition(seed: int, spacing: tuple[float, float, float]) -> None:
    first, second = blob(seed), blob(seed + 100, level=0.08)
    expected = reference_hausdorff(first, second, spacing[::-1])
    assert robust_hausdorff_distance(first, second, spacing) == pytest.approx(expected, rel=1e-5)


def test_hausdorff95_of_a_plate_is_the_shift_of_its_faces_in_voxels_and_in_mm() -> None:
    fixed = np.zeros((30, 20, 20), dtype=np.int32)
    warped = fixed.copy()
    fixed[4:14] = 7
    warped[7:17] = 7
    assert hausdorff95_per_label(fixed, warped, [7], (1, 1, 1))[7] == pytest.approx(3)
    assert hausdorff95_per_label(fixed, warped, [7], (1, 1, 2.5))[7] == pytest.approx(7.5)


def test_hausdorff_distance_ignores_less_than_five_percent_of_the_surface() -> None:
    fixed = cube((40, 40, 40), (4, 4, 4), 20)
    warped = fixed.copy()
    warped[38, 38, 38] = True
    assert robust_hausdorff_distance(fixed, warped, (1, 1, 1)) == 0
    assert robust_hausdorff_distance(fixed, warped, (1, 1, 1), percentile=100) > 20


@given(st.integers(0, 500), st.integers(0, 500))
@settings(max_examples=15, deadline=None)
def test_hausdorff95_is_symmetric_and_zero_only_without_difference(first: int, second: int) -> None:
    a, b = blob(first, (9, 10, 11)), blob(second, (9, 10, 11))
    assert robust_hausdorff_distance(a, b, (1, 2, 3)) == robust_hausdorff_distance(b, a, (1, 2, 3))
    assert robust_hausdorff_distance(a, a, (1, 2, 3)) == 0


def test_hausdorff95_of_a_lost_label_is_infinite_and_of_an_unknown_one_not_a_number() -> None:
    fixed = cube((8, 8, 8), (2, 2, 2), 3).astype(np.int16)
    distances = hausdorff95_per_label(fixed, np.zeros_like(fixed), [1, 2], (1, 1, 1))
    assert math.isinf(distances[1])
    assert math.isnan(distances[2])


def test_hausdorff95_of_many_labels_is_that_of_each_mask_alone() -> None:
    rng = np.random.default_rng(3)
    fixed = ndimage.zoom(rng.integers(0, 5, (4, 4, 4)), 5, order=0)
    warped = np.roll(fixed, (1, 2, 0), (0, 1, 2))
    distances = hausdorff95_per_label(fixed, warped, [1, 2, 3, 4], (1, 1.5, 2))
    for label, distance in distances.items():
        assert distance == robust_hausdorff_distance(fixed == label, warped == label, (1, 1.5, 2))


def test_boxes_around_labels_are_those_of_scipy() -> None:
    label_map = ndimage.zoom(np.random.default_rng(1).integers(0, 6, (3, 4, 5)), 3, order=0)
    expected = {i + 1: box for i, box in enumerate(ndimage.find_objects(label_map)) if box is not None}
    assert label_boxes(label_map) == expected


def test_centers_lie_where_the_oblique_anisotropic_grid_puts_them() -> None:
    direction = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    grid = Grid((9, 8, 7), (1.0, 2.0, 3.0), (10.0, -20.0, 30.0), direction)
    label_map = np.zeros(grid.shape, dtype=np.int32)
    label_map[2:5, 1, 6] = 4
    assert label_centers(label_map, grid)[4] == pytest.approx(grid.to_world((6, 1, 3)))
    moved = np.roll(label_map, (1, 2), (0, 1))
    assert center_distance_per_label(label_map, moved, [4], grid)[4] == pytest.approx(5)
    assert math.isinf(center_distance_per_label(label_map, moved * 0, [4], grid)[4])


def test_a_mask_restricts_every_measure() -> None:
    fixed = cube((12, 12, 12), (2, 2, 2), 6).astype(np.int16)
    warped = fixed.copy()
    warped[:, :, 8:] = 1
    mask = np.zeros(fixed.shape, dtype=bool)
    mask[2:8, 2:8, :8] = True
    assert dice_per_label(fixed, warped, [1])[1] < 1
    assert dice_per_label(within(fixed, mask), within(warped, mask), [1])[1] == 1
