"""A patch changes its own place only, folds nothing, and can be taken back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import points_inside, rotation, seeds, smooth_field

from SAMRegistrationLib import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    RegionOfInterest,
    RegionRequest,
)
from SAMRegistrationLib.errors import InputError, UsageError
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.methods.region_volumes import box_on, region_grid
from SAMRegistrationLib.refinement.inversion import inverse_points
from SAMRegistrationLib.refinement.patch import Patch, folds, merged, refined, without_new_folds
from SAMRegistrationLib.refinement.regions import Side, in_fixed_space
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant

FIXED = Grid((30, 28, 26), (2.0, 2.5, 3.0), (-30.0, -35.0, -40.0))
LINEAR = AffineTransform.about_center(rotation((0.1, -0.2, 0.3)), (1.0, 2.0, 3.0), (5.0, -4.0, 7.0))

angles = st.tuples(*[st.floats(-3, 3)] * 3)


def accepted(seed: int = 5, amplitude: float = 3.0) -> CompositeTransform:
    grid = FIXED.resampled(5.0).padded(1)
    return CompositeTransform([smooth_field(grid, seed, amplitude, 50.0), LINEAR])


def patch(seed: int = 1, center: tuple[float, float, float] = (0.0, 0.0, 0.0), amplitude: float = 2.0) -> Patch:
    """A smooth correction of a box of 24 mm, windowed as a refinement is."""
    box = RegionOfInterest(np.array(center), np.full(3, 12.0))
    grid = region_grid(box, 10.0, FIXED)
    _, window = box_on(box, 10.0, grid)
    field = smooth_field(grid, seed, amplitude, 30.0)
    return Patch("region", DisplacementField(field.data * window, grid))


@settings(max_examples=25, deadline=None)
@given(angles, st.tuples(*[st.floats(6, 15)] * 3), seeds)
def test_the_grid_of_a_box_holds_it_with_its_margin_however_it_is_turned(
    turn: tuple[float, ...], half: tuple[float, ...], seed: int
) -> None:
    box = RegionOfInterest(np.array([1.0, -2.0, 3.0]), np.array(half), rotation(turn))
    grid = region_grid(box, 8.0, FIXED)
    inside, window = box_on(box, 8.0, grid)
    assert grid.contains(box.grown(8.0).corners()).all()
    # What the voxels say of random points is what the box says, but for the voxels that the faces cut.
    points = points_inside(grid, 200, seed)
    z, y, x = np.rint(grid.to_voxel(points)).astype(int).T[::-1]
    clear = box.grown(-3.0).contains(points) | ~box.grown(3.0).contains(points)
    np.testing.assert_array_equal(inside.numpy()[z, y, x][clear], box.contains(points)[clear])
    assert bool((window[inside] == 1).all())
    for axis in range(3):
        for face in (0, -1):
            assert float(window.select(axis, face).abs().max()) == 0


def test_a_box_along_the_axes_gets_the_fixed_voxels_and_a_turned_one_costs_no_more() -> None:
    straight = RegionOfInterest(np.zeros(3), np.full(3, 10.0))
    grid = region_grid(straight, 5.0, FIXED)
    offset = FIXED.to_voxel(grid.origin)
    np.testing.assert_allclose(offset, np.rint(offset), atol=1e-6)
    turned = RegionOfInterest(np.zeros(3), np.full(3, 10.0), rotation((0.6, 0.7, 0.8)))
    assert region_grid(turned, 5.0, FIXED).number_of_voxels < 1.5 * grid.number_of_voxels


def test_a_large_box_is_worked_on_at_a_coarser_spacing() -> None:
    box = RegionOfInterest(np.zeros(3), np.full(3, 30.0))
    grid = region_grid(box, 5.0, Grid((300, 300, 300), (0.5,) * 3, (-75.0,) * 3), most_voxels=20**3)
    inside, _ = box_on(box, 5.0, grid)
    assert 0.5 * 20**3 < int(inside.sum()) < 1.5 * 20**3


def test_outside_its_margin_a_patch_changes_no_bit_of_the_accepted_map() -> None:
    before, change = accepted(), patch()
    box = RegionOfInterest(np.zeros(3), np.full(3, 12.0))
    points = points_inside(FIXED, 3000, 2)
    beyond = ~box.grown(10.0 + 4.5).contains(points)
    after = change.applied(before)
    np.testing.assert_array_equal(after.transform_points(points)[beyond], before.transform_points(points)[beyond])
    assert np.linalg.norm(after.transform_points(points) - before.transform_points(points), axis=1).max() > 0.5
    on_grid = [displacement_on(transform, FIXED).data for transform in (before, after)]
    world = FIXED.to_world(np.stack(np.meshgrid(*[np.arange(n) for n in FIXED.size], indexing="ij"), -1))
    untouched = torch.from_numpy(~box.grown(14.5).contains(world).transpose(2, 1, 0))
    assert bool((on_grid[0][:, :, untouched] == on_grid[1][:, :, untouched]).all())


def test_patches_are_taken_back_exactly_in_turn() -> None:
    start = accepted()
    patches = (patch(1), patch(2, (10.0, 5.0, -8.0)), patch(3, (-6.0, 0.0, 4.0)))
    points = points_inside(FIXED, 500, 3)
    for count in range(3):
        expected = refined(start, patches[:count]).transform_points(points)
        stepwise = start
        for change in patches[:count]:
            stepwise = change.applied(stepwise)
        np.testing.assert_array_equal(stepwise.transform_points(points), expected)
    after = refined(start, patches)
    assert after.transforms[0] is patches[2].correction and after.transforms[2] is patches[0].correction
    np.testing.assert_array_equal(refined(start, ()).transform_points(points), start.transform_points(points))


def test_the_seam_has_no_kink() -> None:
    line = np.linspace((0.0, 1.0, 1.0), (30.0, 1.0, 1.0), 301)
    box = RegionOfInterest(np.zeros(3), np.full(3, 12.0))
    weights = box.weight(Grid((301, 1, 1), (0.1, 1.0, 1.0), tuple(line[0])), 10.0)[0, 0].numpy()
    slope = np.diff(weights) / 0.1
    assert np.abs(np.diff(slope)).max() < 0.01 and weights[0] == 1 and weights[-1] == 0


@settings(max_examples=10, deadline=None)
@given(seeds, st.floats(5.0, 12.0))
def test_what_would_fold_is_softened_until_it_does_not(seed: int, amplitude: float) -> None:
    wild = patch(seed, amplitude=amplitude * 3)
    start = accepted(seed)
    window = (wild.correction.data.abs().sum(dim=1, keepdim=True) > 0).float()
    sound, share = without_new_folds(wild.correction, start, window, FIXED)
    assert 0 < share <= 1.2
    assert float(smallest_corner_determinant(sound.to_voxels()).min()) > 0
    before, after = folds(start, sound.grid, FIXED), folds(CompositeTransform([sound, start]), sound.grid, FIXED)
    assert not bool((after & ~before).any())
    assert float(sound.data[(window == 0).expand_as(sound.data)].abs().max()) == 0


def test_a_sound_patch_is_kept_as_it_is() -> None:
    calm = patch(amplitude=1.0).correction
    sound, share = without_new_folds(calm, accepted(), torch.ones_like(calm.data[:, :1]), FIXED)
    torch.testing.assert_close(sound.data, calm.data, atol=1e-5, rtol=0)
    assert share == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("linear_only", [False, True])
def test_merged_fields_are_the_same_map_everywhere_in_the_fixed_volume(linear_only: bool) -> None:
    start = LINEAR if linear_only else accepted()
    whole = refined(start, (patch(1), patch(2, (10.0, 5.0, -8.0))))
    as_one = merged(whole, FIXED)
    assert isinstance(as_one, CompositeTransform) and len(as_one.transforms) == 2
    points = points_inside(FIXED, 800, 4)
    gap = np.linalg.norm(as_one.transform_points(points) - whole.transform_points(points), axis=1)
    assert gap.max() < 0.3 and gap.mean() < 0.05
    boxes = (RegionOfInterest(np.array(center), np.full(3, 27.0)) for center in ((0, 0, 0), (10, 5, -8)))
    outside = ~np.any([box.contains(points) for box in boxes], axis=0)
    assert outside.any() and gap[outside].max() < 1e-3


def test_a_map_without_patches_is_not_touched_by_merging() -> None:
    start = accepted()
    assert merged(start, FIXED) is start and merged(LINEAR, FIXED) is LINEAR


@settings(max_examples=15, deadline=None)
@given(angles, st.tuples(*[st.floats(-15, 15)] * 3))
def test_a_box_on_the_moving_volume_is_brought_back_exactly_by_a_rigid_map(
    turn: tuple[float, ...], center: tuple[float, ...]
) -> None:
    box = RegionOfInterest(np.array(center), np.array([5.0, 7.0, 9.0]), rotation(turn))
    moved = RegionOfInterest(LINEAR.transform_points(box.center), box.half_size, LINEAR.matrix[:3, :3] @ box.axes)
    back = in_fixed_space(RegionRequest(moved, Side.MOVING), LINEAR)
    np.testing.assert_allclose(
        sorted(map(tuple, back.corners().round(4))), sorted(map(tuple, box.corners().round(4))), atol=2e-3
    )
    assert in_fixed_space(RegionRequest(box), LINEAR) is box


def test_a_box_on_the_moving_volume_holds_what_a_bent_map_takes_into_it() -> None:
    start = accepted(amplitude=4.0)
    box = RegionOfInterest(start.transform_points(np.zeros((1, 3)))[0], np.full(3, 8.0), rotation((0.2, 0.1, 0.4)))
    back = in_fixed_space(RegionRequest(box, Side.MOVING), start)
    corners, residual = inverse_points(start, box.corners())
    assert residual.max() < 1e-3
    assert back.grown(0.01).contains(corners).all()


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_inverse_points_lead_back(seed: int) -> None:
    start = accepted(seed, 4.0)
    points = points_inside(FIXED, 20, seed)
    found, residual = inverse_points(start, start.transform_points(points))
    assert residual.max() < 1e-3
    np.testing.assert_allclose(found, points, atol=5e-3)


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        ({"center": [0, 0, 0]}, UsageError, "needs a center, a size"),
        ({"center": [0, 0, 0], "size": [1, 2]}, UsageError, "not as it should be"),
        ({"center": [0, 0, 0], "size": [1, 2, 0]}, InputError, "sides of a region must be positive"),
        (
            {"center": [0, 0, 0], "size": [1, 2, 3], "axes": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]},
            InputError,
            "orthonormal",
        ),
        ({"center": [0, 0, 0], "size": [1, 2, 3], "on": "left"}, UsageError, "not as it should be"),
        ("box", UsageError, "needs a center"),
    ],
)
def test_a_request_that_is_no_box_is_refused_in_one_sentence(
    content: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        RegionRequest.from_json(content)


def test_a_request_may_leave_out_axes_and_side() -> None:
    request = RegionRequest.from_json({"center": [1, 2, 3], "size": [4, 6, 8]})
    assert request.on is Side.FIXED
    np.testing.assert_array_equal(request.region.half_size, [2, 3, 4])
    np.testing.assert_array_equal(request.region.axes, np.eye(3))
