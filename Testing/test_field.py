"""Displacement fields against SimpleITK, closed forms and float64 integration, to 1e-3 mm."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from strategies import (
    affine_field,
    away_from_edges,
    empty_sitk,
    grids,
    noise_image,
    overlapping_grids,
    points_inside,
    require_cuda,
    rotation,
    seeds,
    smooth_field,
    smooth_image,
    world_positions,
)

from SAMRegistrationLib import AffineTransform, CompositeTransform, DisplacementField, Grid, sampling
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.sampling import Interpolation, Outside
from SAMRegistrationLib.transforms import ItkTransform

quick = settings(max_examples=25, deadline=None)
few = settings(max_examples=10, deadline=None)
SITK = {
    Interpolation.NEAREST: sitk.sitkNearestNeighbor,
    Interpolation.LINEAR: sitk.sitkLinear,
    Interpolation.CUBIC: sitk.sitkBSpline,
}
OBLIQUE = Grid((26, 24, 22), (1.5, 2.0, 2.5), (-30, 40, 500), tuple(rotation((0.3, -0.2, 0.4)).ravel()))


def vectors(field: DisplacementField) -> np.ndarray:
    """Displacements (z, y, x, 3) as float64."""
    return field.data[0].permute(1, 2, 3, 0).double().numpy()


def gentle_matrix(seed: int, center: ArrayLike = (0, 0, 0), strength: float = 0.1) -> np.ndarray:
    """An affine 4x4 matrix near the identity, about `center`."""
    random = np.random.default_rng(seed)
    linear = np.eye(3) + random.uniform(-strength, strength, (3, 3))
    return AffineTransform.about_center(linear, center, random.uniform(-5, 5, 3)).matrix


@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_warping_is_simpleitks(interpolation: Interpolation) -> None:
    @quick
    @given(overlapping_grids(), seeds, st.floats(0, 10))
    def check(pair: tuple[Grid, Grid], seed: int, amplitude: float) -> None:
        fixed, moving_grid = pair
        field = smooth_field(fixed, seed, amplitude)
        moving = smooth_image(moving_grid, seed)
        ours = field.warp(moving, interpolation, default=-2000.0)
        theirs = sitk.Resample(
            moving.to_sitk(), empty_sitk(fixed), field.to_sitk(), SITK[interpolation], -2000.0, sitk.sitkFloat32
        )
        assert ours.grid == fixed
        compared = away_from_edges(fixed, moving_grid, world_positions(fixed) + vectors(field))
        np.testing.assert_allclose(
            ours.data.numpy()[compared], sitk.GetArrayFromImage(theirs)[compared], atol=3e-2
        )

    check()


def test_a_warped_volume_keeps_the_moving_pixel_type_modality_and_background() -> None:
    moving = noise_image(Grid((6, 6, 6)), 0)
    moving = type(moving)(moving.data, moving.grid, "int16", "CT")
    warped = DisplacementField.zero(Grid((4, 4, 4), origin=(100, 0, 0))).warp(moving)
    assert (warped.pixel_type, warped.modality) == ("int16", "CT")
    assert (warped.data == -1024).all()


@quick
@given(overlapping_grids(), seeds)
def test_composing_is_simpleitks_composite(pair: tuple[Grid, Grid], seed: int) -> None:
    first = smooth_field(pair[0], seed, 4.0)
    second = smooth_field(pair[1], seed + 1, 4.0)
    composed = second.compose(first, Outside.CONSTANT)
    composite = sitk.CompositeTransform([second.to_sitk(), first.to_sitk()])
    compared = away_from_edges(first.grid, second.grid, world_positions(first.grid) + vectors(first))
    points = world_positions(first.grid)[compared]
    expected = np.array([composite.TransformPoint(point) for point in points.tolist()]).reshape(-1, 3)
    np.testing.assert_allclose(points + vectors(composed)[compared], expected, atol=1e-3)


@quick
@given(grids(largest=9), seeds)
def test_points_are_mapped_as_by_simpleitk(grid: Grid, seed: int) -> None:
    field = smooth_field(grid, seed, 5.0)
    points = np.concatenate([points_inside(grid, 20, seed, margin=0.0), grid.center + grid.corners() * 3])
    transform = field.to_sitk()
    expected = [transform.TransformPoint(point) for point in points.tolist()]
    np.testing.assert_allclose(field.transform_points(points), expected, atol=1e-4)


@quick
@given(grids(), seeds, seeds)
def test_affine_maps_compose_and_keep_their_volume_change(grid: Grid, seed: int, other: int) -> None:
    first, second = gentle_matrix(seed, grid.center), gentle_matrix(other, grid.center)
    # An affine field is linear, so a coarse grid holds it exactly; it reaches so far that nothing leaves it.
    around = Grid((5, 5, 5), (60, 60, 60), tuple(grid.center - 120))
    composed = affine_field(around, second).compose(affine_field(grid, first))
    np.testing.assert_allclose(composed.data, affine_field(grid, second @ first).data, atol=1e-3)
    determinant = affine_field(grid, first).jacobian_determinant()
    np.testing.assert_allclose(determinant, np.linalg.det(first[:3, :3]), atol=1e-3)


@quick
@given(grids(turn=0.0), seeds)
def test_the_jacobian_is_simpleitks_inside_a_straight_grid(grid: Grid, seed: int) -> None:
    grid = Grid(grid.size, grid.spacing, grid.origin)
    field = smooth_field(grid, seed, 3.0)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field.to_image()))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(field.jacobian_determinant()[0, 0].numpy()[inner], expected[inner], atol=1e-4)


@few
@given(seeds, st.tuples(*[st.floats(-3, 3)] * 3))
def test_the_jacobian_does_not_depend_on_how_the_world_is_turned(seed: int, angles: tuple[float, ...]) -> None:
    straight = Grid((9, 8, 7), (1.0, 1.5, 2.0))
    field = smooth_field(straight, seed, 3.0)
    turn = rotation(angles)
    turned_grid = Grid(straight.size, straight.spacing, (5, 6, 7), tuple(turn.ravel()))
    turned = DisplacementField(sampling.linear_map(turn, field.data[0])[None], turned_grid)
    torch.testing.assert_close(turned.jacobian_determinant(), field.jacobian_determinant(), atol=1e-4, rtol=0)


def test_a_mirrored_field_folds_everywhere_and_a_single_slice_has_a_jacobian() -> None:
    grid = Grid((6, 5, 4))
    assert (affine_field(grid, np.diag([-1.0, 1, 1, 1])).jacobian_determinant() < 0).all()
    assert torch.equal(DisplacementField.zero(Grid((6, 5, 1))).jacobian_determinant(), torch.ones(1, 1, 1, 5, 6))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_integration_follows_the_flow_of_the_velocity(seed: int) -> None:
    # The velocity vanishes at the border, so that no path leaves the grid.
    window = [torch.hann_window(n, periodic=False) for n in OBLIQUE.shape]
    weight = window[0][:, None, None] * window[1][:, None] * window[2]
    velocity = smooth_field(OBLIQUE, seed, 4.0, wavelength=60.0)
    velocity = DisplacementField(velocity.data * weight, OBLIQUE)
    some = (slice(None, None, 2),) * 3
    start = world_positions(OBLIQUE)[some]
    end = integrated_in_double(velocity, start, steps=30)
    error = np.linalg.norm(start + vectors(velocity.integrated())[some] - end, axis=-1)
    assert error.max() < 0.03 * min(OBLIQUE.spacing)
    assert error.mean() < 1e-3


def integrated_in_double(velocity: DisplacementField, points: np.ndarray, steps: int) -> np.ndarray:
    """The ends of the paths from `points` through a velocity over unit time, by the midpoint rule."""

    def displaced(positions: np.ndarray, by: np.ndarray) -> np.ndarray:
        return positions + (velocity.transform_points(by) - by) / steps

    for _ in range(steps):
        points = displaced(points, by=(points + displaced(points, by=points)) / 2)
    return points


@few
@given(seeds)
def test_integrating_a_linear_velocity_gives_the_matrix_exponential(seed: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.zeros((4, 4))
    generator[:3] = np.random.default_rng(seed).uniform(-0.08, 0.08, (3, 4))
    grid = Grid((12, 11, 10), (2.0, 2.5, 3.0), (-12, -14, -15)).padded(12)
    flow = affine_field(grid, np.eye(4) + generator).integrated()
    points = points_inside(grid, 50, seed, margin=13.0)
    expected = points @ linalg.expm(generator)[:3, :3].T + linalg.expm(generator)[:3, 3]
    np.testing.assert_allclose(flow.transform_points(points), expected, atol=1e-3)


def test_integration_has_no_displacement_where_the_velocity_is_zero() -> None:
    assert not DisplacementField.zero(OBLIQUE).integrated().data.any()


@few
@given(seeds, st.floats(0.5, 6.0))
def test_the_inverse_undoes_the_field_within_its_reported_residual(seed: int, amplitude: float) -> None:
    field = smooth_field(OBLIQUE, seed, amplitude, wavelength=60.0)
    inverse, residual = field.inverse(tolerance=1e-3)
    assert residual < 1e-3
    back = field.compose(inverse)
    position = OBLIQUE.to_voxel(world_positions(OBLIQUE) + vectors(inverse))
    inside = ((position >= 0) & (position <= np.asarray(OBLIQUE.size) - 1)).all(axis=-1)
    length = np.linalg.norm(vectors(back), axis=-1)
    assert length[inside].max() == pytest.approx(residual, abs=2e-4)


@few
@given(grids(turn=1.0), seeds)
def test_the_inverse_of_an_affine_field_is_affine_on_any_grid(grid: Grid, seed: int) -> None:
    matrix = gentle_matrix(seed, grid.center)
    around = Grid((5, 5, 5), (60, 60, 60), tuple(grid.center - 120))
    inverse, residual = affine_field(around, matrix).inverse(grid, tolerance=2e-4)
    assert residual < 2e-4
    np.testing.assert_allclose(inverse.data, affine_field(grid, np.linalg.inv(matrix)).data, atol=1e-3)


@pytest.mark.parametrize("stretch", [1.8, 2.3, 5.0])
def test_strong_stretching_is_inverted_too(stretch: float) -> None:
    grid = Grid((16, 16, 16), (2, 2, 2), (-15, -15, -15))
    matrix = np.diag([stretch, 1.0, stretch, 1.0])
    inverse, residual = affine_field(grid, matrix).inverse()
    assert residual < 1e-2
    np.testing.assert_allclose(inverse.data, affine_field(grid, np.linalg.inv(matrix)).data, atol=1e-2)


def test_a_jump_between_two_voxels_is_inverted_too() -> None:
    grid = Grid((24, 6, 6))
    shift = torch.zeros(1, 3, 6, 6, 24)
    shift[:, 0, :, :, 12:] = 4.0
    inverse, residual = DisplacementField(shift, grid).inverse()
    assert residual < 1e-2
    # Voxel 11 stays, voxel 12 moves to 16, so what lies from 11 to 16 comes from between the two.
    expected = [11.0 + (x - 11) / 5 - x for x in range(11, 17)]
    np.testing.assert_allclose(inverse.data[0, 0, 3, 3, 11:17], expected, atol=1e-2)


def test_the_residual_tells_that_iterations_were_too_few() -> None:
    field = smooth_field(OBLIQUE, 1, 6.0, wavelength=60.0)
    zero, residual = field.inverse(iterations=0)
    assert not zero.data.any()
    assert residual == pytest.approx(float(field.data.norm(dim=1).max()), rel=1e-5)
    once, shorter = field.inverse(iterations=1)
    torch.testing.assert_close(once.data, -field.data, atol=1e-4, rtol=0)
    assert 1e-2 < shorter < residual


def test_folds_are_reported_as_large_residuals() -> None:
    field = smooth_field(OBLIQUE, 1, 25.0, wavelength=40.0)
    assert float(field.jacobian_determinant().min()) < -0.5
    assert field.inverse()[1] > 1.0


@quick
@given(grids(), seeds)
def test_voxel_units_and_millimeters_convert_both_ways(grid: Grid, seed: int) -> None:
    field = smooth_field(grid, seed, 8.0)
    voxels = field.to_voxels()
    start = grid.to_world((1, 2, 3))
    moved = start + field.data[0, :, 3, 2, 1].numpy()
    np.testing.assert_allclose(voxels[0, :, 3, 2, 1], grid.to_voxel(moved) - (1, 2, 3), atol=1e-5)
    torch.testing.assert_close(DisplacementField.from_voxels(voxels, grid).data, field.data, atol=1e-4, rtol=0)


@quick
@given(overlapping_grids(), seeds)
def test_a_resampled_field_is_simpleitks(pair: tuple[Grid, Grid], seed: int) -> None:
    source, target = pair
    field = smooth_field(source, seed, 5.0)
    resampled = field.resampled(target, Outside.CONSTANT)
    theirs = sitk.Resample(field.to_image(), empty_sitk(target), sitk.Transform(), sitk.sitkLinear, 0.0)
    compared = away_from_edges(target, source)
    np.testing.assert_allclose(vectors(resampled)[compared], sitk.GetArrayFromImage(theirs)[compared], atol=1e-3)


@quick
@given(grids(), seeds)
def test_simpleitk_gives_the_field_back(grid: Grid, seed: int) -> None:
    field = smooth_field(grid, seed, 5.0)
    again = DisplacementField.from_sitk(field.to_image())
    assert again.grid == grid
    assert torch.equal(again.data, field.data)


@quick
@given(overlapping_grids(), seeds)
def test_any_transform_becomes_the_field_that_simpleitk_makes_of_it(pair: tuple[Grid, Grid], seed: int) -> None:
    field = smooth_field(pair[0], seed, 3.0)
    affine = AffineTransform(gentle_matrix(seed))
    spline = sitk.BSplineTransformInitializer(empty_sitk(pair[1].padded(5)), (2, 2, 2))
    spline.SetParameters(tuple(np.random.default_rng(seed).uniform(-2, 2, len(spline.GetParameters()))))
    target = pair[1]
    converter = sitk.TransformToDisplacementFieldFilter()
    converter.SetReferenceImage(empty_sitk(target))
    for transform in (
        affine,
        CompositeTransform([affine, field]),
        CompositeTransform([affine, ItkTransform(spline)]),
    ):
        theirs = sitk.GetArrayFromImage(converter.Execute(transform.to_sitk()))
        mapped = affine.transform_points(world_positions(target))
        compared = away_from_edges(target, field.grid, mapped)
        ours = vectors(displacement_on(transform, target))
        np.testing.assert_allclose(ours[compared], theirs[compared], atol=1e-3)


def test_slabs_do_not_change_a_single_number(monkeypatch: pytest.MonkeyPatch) -> None:
    field = smooth_field(OBLIQUE, 5, 3.0, wavelength=60.0)
    moving = noise_image(OBLIQUE.padded(2), 6)

    def everything() -> list[torch.Tensor]:
        return [
            field.warp(moving).data,
            field.compose(field).data,
            field.jacobian_determinant(),
            field.resampled(Grid((9, 9, 9), (3, 3, 3), tuple(OBLIQUE.center))).data,
            displacement_on(CompositeTransform([field, AffineTransform(gentle_matrix(3))]), OBLIQUE).data,
        ]

    whole, residual = field.inverse(tolerance=0.0, iterations=5)
    results = everything()
    monkeypatch.setattr(sampling, "POSITIONS_AT_ONCE", OBLIQUE.size[0] * OBLIQUE.size[1] * 3)
    for result, expected in zip(everything(), results, strict=True):
        assert torch.equal(result, expected)
    in_slabs, residual_in_slabs = field.inverse(tolerance=0.0, iterations=5)
    assert torch.equal(in_slabs.data, whole.data)
    assert residual_in_slabs == residual


def test_data_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        DisplacementField(torch.zeros(1, 3, 4, 5, 6), Grid((4, 5, 6)))


@pytest.mark.cuda
def test_a_gpu_computes_what_a_cpu_computes() -> None:
    cuda = require_cuda()
    field = smooth_field(OBLIQUE, 7, 4.0, wavelength=60.0)
    moving = smooth_image(OBLIQUE.padded(3), 8)
    on_gpu = field.to(cuda)
    pairs = [
        (field.warp(moving).data / 1000, on_gpu.warp(moving.to(cuda)).data / 1000),
        (field.compose(field).data, on_gpu.compose(on_gpu).data),
        (field.integrated().data, on_gpu.integrated().data),
        (field.inverse()[0].data, on_gpu.inverse()[0].data),
        (field.jacobian_determinant(), on_gpu.jacobian_determinant()),
        (field.resampled(OBLIQUE.resampled(1.7)).data, on_gpu.resampled(OBLIQUE.resampled(1.7)).data),
        (field.to_voxels(), on_gpu.to_voxels()),
    ]
    for cpu, gpu in pairs:
        assert gpu.device.type == "cuda"
        torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-3, rtol=0)
