"""Entropy-adaptive message passing: its formulas in float64 and known deformations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from solver_cases import KnownDeformation, noise, real_ct, simple_features, textured

from SAMRegistrationLib.solvers.cost_volume import displacements
from SAMRegistrationLib.solvers.coupled_convex import TIE_BREAK, warped_features
from SAMRegistrationLib.solvers.message_passing import (
    MessagePassingConfig,
    doubt,
    halved_levels,
    neighbor_share,
    pass_messages,
    solve_message_passing,
    solve_velocity,
)
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant


def reference_messages(values: np.ndarray, sigma: np.ndarray, passes: int) -> np.ndarray:
    """The three-tap Gaussian with its own width in every voxel, axis after axis, in float64."""
    weights = np.stack([np.exp(-0.5 * offset**2 / sigma**2) for offset in (-1, 0, 1)])
    weights /= weights.sum(0)
    for _ in range(passes):
        for axis in (1, 2, 3):
            padding = [(1, 1) if index == axis else (0, 0) for index in range(4)]
            padded = np.pad(values, padding, mode="edge")
            size = values.shape[axis]
            values = sum(weights[tap] * padded.take(range(tap, tap + size), axis) for tap in range(3))
    return values


def reference_velocity(cost: np.ndarray, config: MessagePassingConfig) -> np.ndarray:
    shifts = displacements(config.radius).double().numpy()
    likelihood = np.exp(-config.sharpness * cost)
    likelihood /= likelihood.sum(0)
    entropy = -(likelihood * np.log(likelihood)).sum(0)
    unsure = np.log2(1 + (entropy - entropy.min()) / (entropy.max() - entropy.min()))
    sigma = config.sigma[0] + (config.sigma[1] - config.sigma[0]) * unsure
    cost = reference_messages(cost, sigma, config.passes)
    u = np.zeros((3, *cost.shape[1:]))
    for coupling in (TIE_BREAK, *config.couplings):
        distance = ((shifts[:, :, None, None, None] - u[None]) ** 2).sum(1)
        best = shifts[(cost + coupling * distance).argmin(0)]
        u = reference_messages(np.moveaxis(best, -1, 0), sigma, config.passes)
    return u


def register(case: KnownDeformation) -> torch.Tensor:
    fixed, moving = (halved_levels(simple_features(volume)) for volume in (case.fixed, case.moving))
    return solve_message_passing(fixed, warped_features(moving))


@pytest.mark.parametrize("radius", [1, 2])
def test_one_level_equals_the_formula_in_float64(radius: int) -> None:
    config = MessagePassingConfig(radius=radius)
    cost = torch.rand((1, (2 * radius + 1) ** 3, 6, 7, 8), generator=torch.Generator().manual_seed(3))
    expected = reference_velocity(cost[0].double().numpy(), config)
    np.testing.assert_allclose(solve_velocity(cost, config)[0], expected, atol=1e-4)


def test_a_sure_voxel_keeps_its_value_and_an_unsure_one_listens() -> None:
    cost = torch.ones(1, 27, 5, 5, 5)
    cost[0, 4, :, :, :2] = -2.0
    share = neighbor_share(doubt(cost, 10.0), (0.1, 1.0))
    values = noise((1, 1, 5, 5, 5), 0)
    before = values.clone()
    pass_messages(values, share, 1)
    torch.testing.assert_close(values[..., :2], before[..., :2])
    assert (values[..., 3:] - before[..., 3:]).abs().max() > 0.1


def test_messages_keep_a_constant() -> None:
    values = torch.full((1, 2, 4, 5, 6), 3.0)
    share = torch.rand((1, 1, 4, 5, 6), generator=torch.Generator().manual_seed(0)) / 3
    torch.testing.assert_close(pass_messages(values, share, 3), torch.full((1, 2, 4, 5, 6), 3.0))


def test_halving_stops_at_four_voxels_and_keeps_unit_vectors() -> None:
    levels = halved_levels(simple_features(noise((1, 1, 16, 20, 17), 0)), levels=5)
    assert [tuple(level.shape[2:]) for level in levels] == [(4, 5, 5), (8, 10, 9), (16, 20, 17)]
    for level in levels:
        torch.testing.assert_close(level.norm(dim=1), torch.ones_like(level[:, 0]))


def test_a_smooth_deformation_is_recovered_to_under_half_a_voxel() -> None:
    case = textured(32)
    u = register(case)
    assert case.start > 1.0
    assert case.error(u) < 0.5
    assert smallest_corner_determinant(u).min() > 0


@pytest.mark.data
@pytest.mark.slow
def test_a_known_deformation_of_a_real_ct_is_recovered_to_under_half_a_voxel(data_dir: Path) -> None:
    case = real_ct(data_dir / "abdomen" / "ts_example.nii.gz")
    assert case.error(register(case)) < 0.5


def test_progress_may_cancel_between_levels() -> None:
    levels = halved_levels(simple_features(textured(16).moving))

    def cancel(fraction: float) -> None:
        raise InterruptedError(fraction)

    with pytest.raises(InterruptedError):
        solve_message_passing(levels, warped_features(levels), progress=cancel)
