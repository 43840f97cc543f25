"""The voxel-unit primitives of the solvers against closed forms, scipy and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.solvers import filters, ops
from SAMRegistrationLib.solvers.table_sampling import channel_table, sample_table

ndimage = pytest.importorskip("scipy.ndimage")

SHAPE = (7, 9, 8)


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth_field(shape: tuple[int, ...], amplitude: float, seed: int = 1) -> torch.Tensor:
    noise = filters.gaussian(random_tensor(1, 3, *shape, seed=seed), 2.5)
    return noise * (amplitude / noise.abs().max())


def linear_field(matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    positions = ops.identity_positions(shape, dtype=torch.float64)
    return torch.einsum("ij,bjzyx->bizyx", torch.from_numpy(matrix), positions)


def test_identity_positions_list_x_y_z_voxel_indices() -> None:
    positions = ops.identity_positions((2, 3, 4))
    assert positions.shape == (1, 3, 2, 3, 4)
    assert positions[0, :, 1, 2, 3].tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("channels", [1, 11], ids=["grid_sample", "table"])
def test_warp_agrees_with_scipy_linear_interpolation_and_repeats_the_border(channels: int) -> None:
    volume = random_tensor(1, channels, *SHAPE)
    u = random_tensor(1, 3, *SHAPE, seed=3) * 3.0
    positions = (ops.identity_positions(SHAPE) + u)[0].double().numpy()
    expected = [
        ndimage.map_coordinates(channel.double().numpy(), positions[::-1], order=1, mode="nearest")
        for channel in volume[0]
    ]
    np.testing.assert_allclose(ops.warp(volume, u)[0].numpy(), np.stack(expected), atol=2e-5)


def test_warp_samples_a_volume_larger_than_the_field() -> None:
    volume = random_tensor(1, 9, 9, 12, 10)
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 0] = 1.0
    expected = volume[:, :, :7, :9, 1:9]
    torch.testing.assert_close(ops.warp(volume, u), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ops.warp(volume[:, :2], u), expected[:, :2], atol=1e-5, rtol=0)


def test_warp_keeps_half_precision_features_and_float32_positions() -> None:
    volume = random_tensor(1, 40, 4, 4, 300).bfloat16()
    u = torch.zeros(1, 3, 4, 4, 300)
    u[:, 0] = 1.0
    warped = ops.warp(volume, u)
    assert warped.dtype == torch.bfloat16
    torch.testing.assert_close(warped[..., :-1], volume[..., 1:], atol=0, rtol=0)


def test_nearest_warp_returns_only_labels_that_exist() -> None:
    labels = (random_tensor(1, 1, *SHAPE) > 0).float() * 7
    warped = ops.warp(labels, smooth_field(SHAPE, 2.0), mode="nearest")
    assert set(warped.unique().tolist()) <= {0.0, 7.0}


def test_sampling_gradient_with_respect_to_positions_is_exact() -> None:
    table = channel_table(random_tensor(1, 5, *SHAPE, dtype=torch.float64))
    positions = torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 9 - 1
    positions.requires_grad_()
    assert torch.autograd.gradcheck(lambda points: sample_table(table, SHAPE, points), positions)


def test_composing_translations_adds_them() -> None:
    a, b = torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)
    a[:, 0], b[:, 2] = 0.7, -1.3
    torch.testing.assert_close(ops.compose(a, b), a + b)


def test_compose_goes_through_the_first_field_and_then_the_second() -> None:
    first = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    first[:, 0] = 2.0
    scaling = linear_field(np.diag([0.1, 0.0, 0.0]), SHAPE)
    composed = ops.compose(first, scaling)
    inside = slice(0, SHAPE[2] - 2)
    x = torch.arange(SHAPE[2], dtype=torch.float64)[inside]
    torch.testing.assert_close(composed[0, 0, 3, 3, inside], 2.0 + 0.1 * (x + 2.0))


def test_upsampling_keeps_a_translation_in_physical_size() -> None:
    u = torch.ones(1, 3, 4, 5, 6)
    fine = ops.upsample(u, (8, 15, 6))
    assert fine.shape == (1, 3, 8, 15, 6)
    for component, ratio in enumerate((1.0, 3.0, 2.0)):
        torch.testing.assert_close(fine[:, component], torch.full((1, 8, 15, 6), ratio))


def test_upsampling_a_linear_field_keeps_it_linear_inside() -> None:
    coarse = linear_field(np.diag([0.2, 0.0, 0.0]), (4, 4, 8))
    fine = ops.upsample(coarse, (8, 8, 16))
    center = (torch.arange(16, dtype=torch.float64) + 0.5) / 2 - 0.5
    torch.testing.assert_close(fine[0, 0, 3, 3, 1:-1], 2 * 0.2 * center[1:-1])


def test_integrating_a_constant_velocity_translates() -> None:
    velocity = torch.full((1, 3, *SHAPE), 1.5)
    torch.testing.assert_close(ops.integrate_velocity(velocity), velocity, atol=1e-5, rtol=0)


def test_integrating_a_linear_velocity_is_the_matrix_exponential() -> None:
    shape = (21, 21, 21)
    rate = -0.3
    center = torch.tensor([10.0, 10.0, 10.0]).view(1, 3, 1, 1, 1)
    offset = ops.identity_positions(shape) - center
    u = ops.integrate_velocity(rate * offset, steps=8)
    torch.testing.assert_close(u, (np.exp(rate) - 1.0) * offset, atol=5e-3, rtol=0)


def test_the_flow_of_the_negative_velocity_is_the_inverse() -> None:
    velocity = smooth_field((16, 16, 16), 2.0)
    forward, backward = ops.integrate_velocity(velocity), ops.integrate_velocity(-velocity)
    residual = ops.compose(forward, backward)[..., 4:-4, 4:-4, 4:-4]
    assert residual.abs().max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-0.4, 0.4), min_size=9, max_size=9))
def test_all_determinants_of_a_linear_field_are_that_of_its_matrix(entries: list[float]) -> None:
    matrix = np.asarray(entries).reshape(3, 3)
    u = linear_field(matrix, (4, 5, 6))
    expected = torch.full((1, 1, 4, 5, 6), float(np.linalg.det(np.eye(3) + matrix)), dtype=torch.float64)
    torch.testing.assert_close(ops.jacobian_determinant(u), expected)
    torch.testing.assert_close(ops.smallest_corner_determinant(u), expected)


def test_corner_determinants_see_a_checkerboard_that_central_differences_miss() -> None:
    u = torch.zeros(1, 3, 6, 6, 6)
    u[:, 0, :, :, ::2] = 0.8
    u[:, 0, :, :, 1::2] = -0.8
    assert ops.jacobian_determinant(u)[..., 1:-1].min() > 0.9
    assert ops.smallest_corner_determinant(u).min() < 0


def test_strided_corner_determinant_is_a_subset_of_the_full_one() -> None:
    u = random_tensor(1, 3, *SHAPE)
    full = ops.corner_determinant(u, (1, -1, 1))
    torch.testing.assert_close(ops.corner_determinant(u, (1, -1, 1), (2, 3, 2)), full[::2, ::3, ::2])


@pytest.mark.parametrize("passes", [1, 3])
def test_smooth_is_the_uniform_filter_with_repeated_border(passes: int) -> None:
    volume = random_tensor(1, 2, *SHAPE, dtype=torch.float64)
    expected = volume[0].numpy()
    for _ in range(passes):
        expected = np.stack([ndimage.uniform_filter(channel, 3, mode="nearest") for channel in expected])
    before = volume.clone()
    np.testing.assert_allclose(filters.smooth(volume, passes)[0].numpy(), expected, atol=1e-12)
    assert torch.equal(volume, before)


def test_smoothing_an_axis_of_one_voxel_leaves_it() -> None:
    volume = random_tensor(1, 1, 1, 5, 1, dtype=torch.float64)
    expected = ndimage.uniform_filter1d(volume[0, 0, 0, :, 0].numpy(), 3, mode="nearest")
    np.testing.assert_allclose(filters.smooth(volume)[0, 0, 0, :, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("function", [lambda v: filters.smooth(v, 2), lambda v: filters.box_sum(v, 2)])
def test_gradient_of_the_filters_is_exact(function) -> None:  # type: ignore[no-untyped-def]
    volume = random_tensor(1, 1, 3, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, volume)


@pytest.mark.parametrize("sigma", [1.2, (0.8, 0.0, 2.0)])
def test_gaussian_agrees_with_scipy(sigma: float | tuple[float, ...]) -> None:
    volume = random_tensor(1, 1, 12, 14, 13, dtype=torch.float64)
    order = sigma if isinstance(sigma, float) else sigma[::-1]
    expected = ndimage.gaussian_filter(volume[0, 0].numpy(), order, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(filters.gaussian(volume, sigma, truncate=4.0)[0, 0], expected, atol=2e-4)


@pytest.mark.parametrize("radius", [1, 3, 12])
def test_box_sum_agrees_with_scipy_even_when_the_box_exceeds_the_volume(radius: int) -> None:
    volume = random_tensor(1, 2, *SHAPE)
    side = 2 * radius + 1
    expected = [
        ndimage.uniform_filter(channel.double().numpy(), side, mode="constant") * side**3 for channel in volume[0]
    ]
    np.testing.assert_allclose(filters.box_sum(volume, radius)[0].numpy(), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("radius", [1, 2, 9])
def test_counts_of_a_window_are_the_sums_of_ones(radius: int) -> None:
    ones = torch.ones((1, 1, *SHAPE))
    torch.testing.assert_close(filters.box_counts(ones, radius), filters.box_sum(ones, radius))


def test_box_mean_of_a_constant_is_the_constant_up_to_the_border() -> None:
    torch.testing.assert_close(
        filters.box_mean(torch.full((1, 1, *SHAPE), 2.5), 2), torch.full((1, 1, *SHAPE), 2.5)
    )
