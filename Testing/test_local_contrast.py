"""Local contrast: what it is blind to, and what a descent on it recovers."""

from __future__ import annotations

import pytest
import torch
from solver_cases import textured

from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.instance_optimization import OptimizationConfig, optimize
from SAMRegistrationLib.solvers.local_contrast import LocalContrastTerm, local_contrast
from SAMRegistrationLib.solvers.ops import upsample, zero_field

HALF = (16, 16, 16)


def test_contrast_does_not_see_a_change_of_scale_or_slow_shading() -> None:
    volume = textured(32).fixed
    shading = torch.linspace(0.0, 2.0, 32).view(1, 1, 1, 1, 32)
    assert torch.allclose(local_contrast(300.0 * volume - 50.0), local_contrast(volume), atol=1e-3)
    likeness = torch.nn.functional.cosine_similarity(
        local_contrast(volume + shading).flatten(), local_contrast(volume).flatten(), dim=0
    )
    assert likeness > 0.95


def test_faint_noise_beside_structure_has_little_contrast() -> None:
    volume = textured(32).fixed.clone()
    noise = torch.randn(volume[..., :16].shape, generator=torch.Generator().manual_seed(0))
    volume[..., :16] = 0.002 * volume.std() * noise
    assert local_contrast(volume)[..., :12].abs().max() < 0.3


def test_volumes_under_the_true_displacement_differ_less_than_under_none() -> None:
    case = textured(32)
    term = LocalContrastTerm(case.fixed, case.moving, lattice=1)
    costs = [float(term(FieldState(u, u, 0))) for u in (upsample(case.u, HALF), zero_field(HALF))]
    assert costs[0] < 0.3 * costs[1]


def test_a_descent_on_contrast_recovers_a_displacement_finer_than_its_own_grid() -> None:
    case = textured(32)
    config = OptimizationConfig(iterations=60, learning_rate=0.15, control_spacing=1, diffusion=0.1, tolerance=0.0)
    result = optimize(zero_field(HALF), [LocalContrastTerm(case.fixed, case.moving)], config)
    assert case.start > 1.0
    assert case.error(upsample(result.u, (32, 32, 32))) < 0.5


def test_voxels_without_weight_do_not_count() -> None:
    case = textured(32)
    weight = torch.ones((1, 1, *HALF))
    weight[..., 8:] = 0.0
    changed = case.moving.clone()
    changed[..., 24:] = 0.0
    u = zero_field(HALF)
    costs = [
        float(LocalContrastTerm(case.fixed, moving, voxel_weight=weight, lattice=1)(FieldState(u, u, 0)))
        for moving in (case.moving, changed)
    ]
    assert costs[0] > 0.0
    assert costs[1] == pytest.approx(costs[0], rel=0.2)
