"""The cost volume against its definition, written as loops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.cost_volume import Measure, cost_volume, displacements

SHAPE = (6, 7, 9)


def features(channels: int, seed: int, unit: bool = True) -> torch.Tensor:
    values = torch.randn((1, channels, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=1) if unit else values


def reference(fixed: torch.Tensor, moving: torch.Tensor, radius: int, measure: Measure) -> torch.Tensor:
    """The definition, voxel by voxel and shift by shift."""
    fixed, moving = fixed[0].double(), moving[0].double()
    shifts = displacements(radius).long()
    cost = torch.empty((1, len(shifts), *SHAPE), dtype=torch.float64)
    for z, y, x in itertools.product(*map(range, SHAPE)):
        for k, (dx, dy, dz) in enumerate(shifts.tolist()):
            place = [
                min(max(value, 0), size - 1) for value, size in zip((z + dz, y + dy, x + dx), SHAPE, strict=True)
            ]
            f, m = fixed[:, z, y, x], moving[:, place[0], place[1], place[2]]
            if measure is Measure.COSINE:
                value = 1.0 - f @ m
            elif measure is Measure.SQUARED:
                value = 0.5 * (f - m).square().sum()
            else:
                value = (f - m).abs().mean()
            cost[0, k, z, y, x] = value
    return cost


def test_displacements_vary_fastest_in_x_and_have_zero_in_the_middle() -> None:
    shifts = displacements(1)
    assert shifts.shape == (27, 3)
    assert shifts[0].tolist() == [-1, -1, -1]
    assert shifts[1].tolist() == [0, -1, -1]
    assert shifts[13].tolist() == [0, 0, 0]


@pytest.mark.parametrize("measure", list(Measure))
@pytest.mark.parametrize(("radius", "channels"), [(1, 5), (2, 20)])
def test_cost_equals_its_definition_for_every_voxel_and_shift(
    measure: Measure, radius: int, channels: int
) -> None:
    unit = measure is Measure.COSINE
    fixed, moving = features(channels, 0, unit), features(channels, 1, unit)
    expected = reference(fixed, moving, radius, measure)
    torch.testing.assert_close(
        cost_volume(fixed, moving, radius, measure).double(), expected, atol=2e-5, rtol=1e-5
    )


def test_block_size_does_not_change_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving = features(8, 0), features(8, 1)
    expected = cost_volume(fixed, moving, 2)
    monkeypatch.setattr("SAMRegistrationLib.solvers.cost_volume.BLOCK_ON_CPU", 8)
    torch.testing.assert_close(cost_volume(fixed, moving, 2), expected, atol=1e-6, rtol=0)


def test_half_precision_features_and_storage_stay_close_to_float32() -> None:
    fixed, moving = features(32, 0), features(32, 1)
    expected = cost_volume(fixed, moving, 2)
    stored = cost_volume(fixed, moving, 2, dtype=torch.float16)
    assert stored.dtype == torch.float16
    assert (stored.float() - expected).abs().max() < 1e-3
    assert (cost_volume(fixed.bfloat16(), moving.bfloat16(), 2) - expected).abs().max() < 1e-2


def test_the_cheapest_shift_finds_a_translation() -> None:
    moving = features(12, 3)
    fixed = torch.roll(moving, (-1, 2, 1), dims=(2, 3, 4))
    cost = cost_volume(fixed, moving, 2)
    best = displacements(2)[cost[0].argmin(0)][2:-2, 2:-2, 2:-2]
    assert (best == torch.tensor([-1.0, -2.0, 1.0])).all()


def test_a_shift_into_invalid_voxels_costs_the_mean_of_the_valid_shifts() -> None:
    fixed, moving = features(6, 0), features(6, 1)
    valid = torch.ones(1, 1, *SHAPE)
    valid[..., 5:] = 0
    plain = cost_volume(fixed, moving, 1)
    masked = cost_volume(fixed, moving, 1, moving_valid=valid)
    blocked = displacements(1)[:, 0] == 1
    torch.testing.assert_close(masked[0, ~blocked][..., 4], plain[0, ~blocked][..., 4])
    mean = plain[0, ~blocked][..., 4].mean(0)
    torch.testing.assert_close(masked[0, blocked][..., 4], mean.expand(int(blocked.sum()), -1, -1))


def test_an_invalid_fixed_voxel_prefers_no_shift() -> None:
    valid = torch.ones(1, 1, *SHAPE)
    valid[..., 2, 3, 4] = 0
    cost = cost_volume(features(6, 0), features(6, 1), 1, fixed_valid=valid)
    assert (cost[0, :, 2, 3, 4] == 0).all()
    assert (cost[0, :, 2, 3, 5] != 0).all()


def test_different_shapes_and_empty_searches_are_refused() -> None:
    with pytest.raises(ValueError, match="share one"):
        cost_volume(features(6, 0), features(5, 1), 1)
    with pytest.raises(ValueError, match="radius"):
        cost_volume(features(6, 0), features(6, 1), 0)
