"""Sampling at positions and resampling between grids, against SimpleITK, scipy and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import grids, noise_image, overlapping_grids, require_cuda, rotation, seeds

from SAMRegistrationLib import Grid, sampling
from SAMRegistrationLib.resampling import antialiasing_sigmas, resample, smooth
from SAMRegistrationLib.sampling import (
    Interpolation,
    Outside,
    affine_map,
    between_grids,
    linear_map,
    sample,
    sample_points,
    slabs,
    voxel_mesh,
)

quick = settings(max_examples=25, deadline=None)


def random_volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@quick
@given(overlapping_grids())
def test_the_mesh_of_a_grid_lies_at_its_voxels_in_the_other_grid(pair: tuple[Grid, Grid]) -> None:
    target, source = pair
    mesh = voxel_mesh(target.shape, between_grids(target, source))
    z, y, x = (n - 1 for n in target.shape)
    expected = source.to_voxel(target.to_world((x, y, z)))
    np.testing.assert_allclose(mesh[:, z, y, x].numpy(), expected, atol=1e-3)
    assert torch.equal(voxel_mesh(target.shape, between_grids(target, source), slab=slice(1, 3)), mesh[:, 1:3])


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_slabs_cover_every_slice_once(depth: int, height: int, width: int) -> None:
    covered = [z for slab in slabs((depth, height, width)) for z in range(slab.start, slab.stop)]
    assert covered == list(range(depth))


@pytest.mark.parametrize("interpolation", [Interpolation.NEAREST, Interpolation.LINEAR])
@pytest.mark.parametrize("outside", list(Outside))
def test_slabs_do_not_change_a_single_value(
    monkeypatch: pytest.MonkeyPatch, interpolation: Interpolation, outside: Outside
) -> None:
    volume = random_volume(1, 3, 6, 7, 8)
    voxel = random_volume(3, 9, 5, 4, seed=1) * 5 + 3
    whole = sample(volume, voxel, interpolation, outside, fill=-7)
    monkeypatch.setattr(sampling, "POSITIONS_AT_ONCE", 40)
    assert torch.equal(sample(volume, voxel, interpolation, outside, fill=-7), whole)


@quick
@given(seeds)
def test_linear_sampling_repeats_the_edge_or_fills(seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = random_volume(1, 2, 5, 6, 7, seed=seed)
    voxel = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed)) * 12 - 2.5
    zyx = voxel.flip(0).double().numpy()
    expected = [ndimage.map_coordinates(c.double().numpy(), zyx, order=1, mode="nearest") for c in volume[0]]
    np.testing.assert_allclose(sample(volume, voxel, outside=Outside.EDGE)[0], expected, atol=1e-5)
    filled = sample(volume, voxel, fill=9)[0].numpy()
    inside = ((voxel >= -0.5) & (voxel < torch.tensor([7, 6, 5]).view(3, 1, 1, 1) - 0.5)).all(0).numpy()
    np.testing.assert_allclose(filled[:, inside], np.stack(expected)[:, inside], atol=1e-5)
    assert (filled[:, ~inside] == 9).all()


@quick
@given(seeds)
def test_points_are_sampled_as_the_dense_mesh_is(seed: int) -> None:
    volume = random_volume(1, 2, 5, 6, 7, seed=seed)
    voxel = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 10 - 1.5
    for outside in Outside:
        points = sample_points(volume, voxel.double().flatten(1).T, outside, fill=4)
        assert points.dtype == torch.float64
        np.testing.assert_allclose(
            points.T, sample(volume, voxel, outside=outside, fill=4)[0].flatten(1), atol=1e-5
        )


def test_points_on_voxel_centers_get_the_voxel_exactly_even_in_one_slice() -> None:
    volume = random_volume(1, 1, 1, 3, 2)
    points = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 1, 0]], dtype=torch.float64)
    expected = [volume[0, 0, int(z), int(y), int(x)] for x, y, z in points]
    assert sample_points(volume, points)[:, 0].tolist() == [float(value) for value in expected]


def test_nearest_rounds_ties_up_and_ends_half_a_voxel_outside() -> None:
    volume = torch.arange(1.0, 5.0).view(1, 1, 1, 1, 4)
    x = torch.tensor([-0.6, -0.5, 0.5, 1.5, 2.5, 3.4, 3.5])
    voxel = torch.stack([x, torch.zeros(7), torch.zeros(7)]).view(3, 1, 1, 7)
    values = sample(volume, voxel, Interpolation.NEAREST, fill=-1)
    assert values.flatten().tolist() == [-1, 1, 2, 3, 4, 4, -1]


def test_half_precision_volumes_are_read_at_full_precision_positions() -> None:
    volume = random_volume(1, 20, 3, 3, 300).half()
    voxel = voxel_mesh((3, 3, 299), np.eye(4)) + torch.tensor([0.25, 0, 0]).view(3, 1, 1, 1)
    values = sample(volume, voxel)
    assert values.dtype == torch.float16
    expected = 0.75 * volume[..., :-1].float() + 0.25 * volume[..., 1:].float()
    torch.testing.assert_close(values.float(), expected, atol=2e-3, rtol=0)


def test_sampling_passes_gradients_to_the_volume_and_the_positions() -> None:
    volume = random_volume(1, 2, 4, 5, 6, dtype=torch.float64).requires_grad_()
    voxel = (random_volume(3, 2, 3, 2, dtype=torch.float64, seed=3) + 2.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: sample(v, x, outside=Outside.EDGE), (volume, voxel))


def test_a_dense_mesh_is_not_sampled_by_splines() -> None:
    with pytest.raises(ValueError, match="NEAREST or LINEAR"):
        sample(torch.zeros(1, 1, 2, 2, 2), torch.zeros(3, 1, 1, 1), Interpolation.CUBIC)


@quick
@given(seeds)
def test_affine_and_linear_maps_are_matrix_products(seed: int) -> None:
    matrix = np.eye(4)
    matrix[:3] = np.random.default_rng(seed).normal(size=(3, 4))
    points = random_volume(3, 2, 3, 4, seed=seed, dtype=torch.float64)
    expected = np.einsum("ij,jzyx->izyx", matrix[:3, :3], points.numpy())
    np.testing.assert_allclose(linear_map(matrix[:3, :3], points), expected, atol=1e-12)
    np.testing.assert_allclose(affine_map(matrix, points), expected + matrix[:3, 3, None, None, None], atol=1e-12)


@quick
@given(grids(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.floats(0.4, 2.5), seeds)
def test_parallel_grids_are_resampled_as_by_positions(
    source: Grid, order: list[int], flips: tuple[bool, ...], factor: float, seed: int
) -> None:
    volume = random_volume(1, 2, *source.shape, seed=seed)
    moved = Grid(source.size, source.spacing, tuple(source.to_world((0.3, -0.4, 1.2))), source.direction)
    spacing = np.asarray(source.spacing) * (factor, 1.0, 0.8 * factor)
    target = moved.resampled(spacing).padded(1).reordered(order, flips)
    voxel = voxel_mesh(target.shape, between_grids(target, source))
    near_edge = torch.zeros(target.shape, dtype=torch.bool)
    for axis in range(3):
        for edge in (-0.5, source.size[axis] - 0.5):
            near_edge |= (voxel[axis] - edge).abs() < 1e-3
    for outside in Outside:
        expected = sample(volume, voxel, outside=outside, fill=3)
        resampled = resample(volume, source, target, outside=outside, fill=3)
        np.testing.assert_allclose(resampled[0][:, ~near_edge], expected[0][:, ~near_edge], atol=2e-4)


@quick
@given(st.tuples(*[st.floats(0.3, 3.0)] * 3), seeds)
def test_smoothing_is_scipys_gaussian(sigmas: tuple[float, float, float], seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = random_volume(1, 1, 6, 9, 12, seed=seed)
    expected = volume[0, 0].double().numpy()
    for axis, sigma in enumerate(sigmas):
        radius = int(np.ceil(3 * sigma))
        expected = ndimage.gaussian_filter1d(expected, sigma, 2 - axis, mode="nearest", radius=radius)
    np.testing.assert_allclose(smooth(volume, sigmas)[0, 0], expected, atol=1e-5)


def test_antialiasing_widens_only_along_axes_that_get_coarser() -> None:
    source = Grid((20, 20, 20), (1.0, 2.0, 3.0))
    assert antialiasing_sigmas(source, source) == (0, 0, 0)
    assert antialiasing_sigmas(source, source.resampled(2.0)) == pytest.approx((0.4 * np.sqrt(3), 0, 0))


def test_antialiasing_and_interpolation_are_one_step_for_parallel_grids() -> None:
    source = Grid((20, 18, 16), (1.0, 1.2, 1.4), direction=tuple(rotation((0.3, 0.2, 0.1)).ravel()))
    target = source.resampled(3.1)
    volume = random_volume(1, 1, *source.shape)
    mesh = voxel_mesh(target.shape, between_grids(target, source))
    expected = sample(smooth(volume, antialiasing_sigmas(source, target)), mesh, outside=Outside.EDGE)
    resampled = resample(volume, source, target, outside=Outside.EDGE, antialias=True)
    torch.testing.assert_close(resampled, expected, atol=1e-5, rtol=0)


def test_resampling_onto_the_same_grid_is_an_exact_copy() -> None:
    grid = Grid((6, 7, 8), (0.7, 1.1, 2.3), (5, 6, 7), tuple(rotation((0.3, 0.2, 0.1)).ravel()))
    volume = random_volume(1, 2, *grid.shape)
    copied = resample(volume, grid, grid, antialias=True)
    assert torch.equal(copied, volume)
    assert copied.data_ptr() != volume.data_ptr()


def test_resampling_leaves_the_callers_matrix_precision_alone() -> None:
    source = Grid((8, 8, 8))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        resample(torch.zeros(1, 1, 8, 8, 8), source, source.resampled(1.7))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.cuda
@pytest.mark.parametrize("interpolation", [Interpolation.NEAREST, Interpolation.LINEAR])
def test_a_gpu_resamples_as_a_cpu_does(interpolation: Interpolation) -> None:
    cuda = require_cuda()
    source = Grid((40, 36, 32), (1.0, 1.3, 2.1))
    volume = noise_image(source, 0).tensor()
    turned = Grid((30, 30, 30), (1.5, 1.5, 1.5), (0.2, 0.3, 0.1), tuple(rotation((0.1, 0.2, 0.3)).ravel()))
    for target in (source.resampled(1.9), turned):
        on_cpu = resample(volume, source, target, interpolation, antialias=True)
        on_gpu = resample(volume.to(cuda), source, target, interpolation, antialias=True).cpu()
        differing = (on_gpu - on_cpu).abs() > 1e-2
        assert differing.float().mean() < 1e-3  # rounding decides at the border and between two voxels
