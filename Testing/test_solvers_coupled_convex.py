"""Coupled convex optimization: its formula in float64, known deformations, the pyramid's bookkeeping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from solver_cases import KnownDeformation, noise, pyramid, real_ct, simple_features, textured

from SAMRegistrationLib.solvers.cost_volume import cost_volume, displacements
from SAMRegistrationLib.solvers.coupled_convex import (
    COUPLINGS,
    TIE_BREAK,
    cheapest_shift,
    solve_level,
    solve_pyramid,
    warped_features,
    warped_masks,
)
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant, warp

ndimage = pytest.importorskip("scipy.ndimage")


def reference_solution(cost: np.ndarray, shifts: np.ndarray, couplings: tuple[float, ...]) -> np.ndarray:
    """SAMConvex equation 3, with every |d - u|^2 written out, in float64."""

    def smoothed(field: np.ndarray) -> np.ndarray:
        for _ in range(3):
            field = np.stack([ndimage.uniform_filter(component, 3, mode="nearest") for component in field])
        return field

    u = np.zeros((3, *cost.shape[1:]))
    for coupling in (TIE_BREAK, *couplings):
        distance = ((shifts[:, :, None, None, None] - u[None]) ** 2).sum(1)
        u = smoothed(np.moveaxis(shifts[(cost + coupling * distance).argmin(0)], -1, 0))
    return u


def register(case: KnownDeformation, radii: tuple[int, ...] = (2, 3, 3)) -> torch.Tensor:
    fixed = [simple_features(level) for level in pyramid(case.fixed, len(radii))]
    moving = [simple_features(level) for level in pyramid(case.moving, len(radii))]
    return solve_pyramid(fixed, warped_features(moving), radii)


@pytest.mark.parametrize("radius", [1, 2])
def test_one_level_equals_the_formula_in_float64(radius: int) -> None:
    cost = torch.rand(
        (1, (2 * radius + 1) ** 3, 6, 7, 8), generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    expected = reference_solution(cost[0].numpy(), displacements(radius).double().numpy(), COUPLINGS)
    np.testing.assert_allclose(solve_level(cost.float(), radius)[0], expected, atol=1e-4)


def test_without_a_field_the_cheapest_shift_is_the_minimum_of_the_cost() -> None:
    cost = torch.rand((1, 27, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(cheapest_shift(cost), cost[0].argmin(0))


def test_the_strongest_coupling_follows_the_field() -> None:
    cost = torch.rand((1, 27, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    u = torch.round(noise((1, 3, 4, 5, 6), 1).clamp(-1, 1))
    shifts = displacements(1)
    best = shifts[cheapest_shift(cost, shifts, u, coupling=100.0)]
    assert torch.equal(best.permute(3, 0, 1, 2)[None], u)


def test_voxels_without_any_preference_stay() -> None:
    cost = torch.full((1, 27, 4, 5, 6), 0.3)
    assert solve_level(cost, 1).abs().max() < 1e-6


def test_a_translation_is_recovered_exactly_away_from_the_border() -> None:
    case = textured(20)
    features = simple_features(case.moving)
    shifted = torch.roll(features, (-2, 1, -1), dims=(2, 3, 4))
    u = solve_level(cost_volume(shifted, features, 2), 2)
    expected = torch.tensor([1.0, -1.0, 2.0]).view(1, 3, 1, 1, 1)
    assert (u - expected)[..., 6:-6, 6:-6, 6:-6].abs().max() < 0.05


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
    assert case.start > 1.0
    assert case.error(register(case)) < 0.5


def test_extracting_again_from_the_warped_image_is_supported() -> None:
    case = textured(32)
    fixed, moving = pyramid(case.fixed, 3), pyramid(case.moving, 3)
    seen = []

    def moving_at(level: int, u: torch.Tensor) -> torch.Tensor:
        seen.append((level, tuple(u.shape[2:])))
        return simple_features(warp(moving[level], u))

    u = solve_pyramid([simple_features(level) for level in fixed], moving_at)
    assert seen == [(0, (8, 8, 8)), (1, (16, 16, 16)), (2, (32, 32, 32))]
    assert case.error(u) < 0.5


def test_an_initial_field_on_a_coarser_grid_is_the_start() -> None:
    case = textured(32)
    features = [simple_features(case.moving)]
    initial = torch.zeros(1, 3, 16, 16, 16)
    initial[:, 0] = 4.0
    seen = []

    def moving_at(level: int, u: torch.Tensor) -> torch.Tensor:
        seen.append(u)
        return warp(features[level], u)

    u = solve_pyramid([torch.roll(features[0], -8, dims=4)], moving_at, radii=(1,), initial=initial)
    torch.testing.assert_close(seen[0][:, 0], torch.full((1, 32, 32, 32), 8.0))
    assert (u[0, 0, 8:-8, 8:-8, 6:18] - 8.0).abs().max() < 0.1


def test_masked_fixed_voxels_do_not_mislead_their_neighbors() -> None:
    case = textured(32)
    fixed_volume, mask = case.fixed.clone(), torch.ones_like(case.fixed)
    fixed_volume[..., 20:] = case.moving.roll((8, 3), dims=(2, 4))[..., 20:]
    mask[..., 18:] = 0.0
    fixed = [simple_features(level) for level in pyramid(fixed_volume, 3)]
    moving = [simple_features(level) for level in pyramid(case.moving, 3)]
    masks = warped_masks([(level > 0.5).float() for level in pyramid(mask, 3)], [None] * 3)
    plain = solve_pyramid(fixed, warped_features(moving))
    masked = solve_pyramid(fixed, warped_features(moving), masks_at=masks)

    def error(u: torch.Tensor) -> float:
        return float((u - case.u).square().sum(1).sqrt()[0, 4:-4, 4:-4, 6:18].mean())

    assert error(masked) < 0.8 * error(plain)


def test_positions_outside_the_moving_volume_are_invalid() -> None:
    u = torch.zeros(1, 3, 4, 4, 6)
    u[:, 0] = 3.0
    fixed, moving = warped_masks([None], [torch.ones(1, 1, 4, 4, 6)])(0, u)
    assert fixed is None
    assert moving is not None
    assert moving[0, 0, 0, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_progress_reports_each_level_and_may_cancel() -> None:
    class StopRequestError(Exception):
        pass

    fractions = []

    def stop_after_two(fraction: float) -> None:
        fractions.append(fraction)
        if len(fractions) == 2:
            raise StopRequestError

    levels = [simple_features(level) for level in pyramid(textured(24).moving, 3)]
    with pytest.raises(StopRequestError):
        solve_pyramid(levels, warped_features(levels), (1, 1, 1), progress=stop_after_two)
    assert fractions == pytest.approx([1 / 3, 2 / 3])


def test_levels_without_a_radius_are_refused() -> None:
    with pytest.raises(ValueError, match="radii"):
        solve_pyramid([noise((1, 3, 4, 4, 4), 0)], warped_features([]), (1, 2))
