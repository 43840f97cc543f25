"""ConvexAdam's two stages and the symmetric constraint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from solver_cases import noise, real_ct, simple_features, smooth_deformation, textured

from SAMRegistrationLib.solvers.convexadam import DiscreteConfig, adam_stage, average_blocks, discrete_stage
from SAMRegistrationLib.solvers.instance_optimization import OptimizationConfig
from SAMRegistrationLib.solvers.inverse_consistency import inconsistency, make_inverse_consistent
from SAMRegistrationLib.solvers.ops import integrate_velocity

ADAM = OptimizationConfig(
    iterations=60, learning_rate=0.5, control_spacing=1, diffusion=0.1, folding=0.0, tolerance=0.0
)


def test_blocks_are_averages_and_odd_sizes_keep_their_box() -> None:
    features = noise((1, 2, 4, 6, 7), 0)
    blocks = average_blocks(features, 2)
    assert blocks.shape == (1, 2, 2, 3, 4)
    torch.testing.assert_close(blocks[0, :, 0, 1, 0], features[0, :, 0:2, 2:4, 0:2].mean((1, 2, 3)))


def test_a_large_translation_is_found_in_one_search_and_given_in_feature_voxels() -> None:
    features = simple_features(textured(36).moving)
    shifted = torch.roll(features, (0, 6, -9), dims=(2, 3, 4))
    u = discrete_stage(shifted, features, DiscreteConfig(block=3, radius=3))
    inner = u[0, :, 12:-12, 12:-12, 12:-12].mean((1, 2, 3))
    torch.testing.assert_close(inner, torch.tensor([9.0, -6.0, 0.0]), atol=0.5, rtol=0)


def test_both_stages_recover_a_smooth_deformation_to_under_half_a_voxel() -> None:
    case = textured(32)
    fixed, moving = simple_features(case.fixed), simple_features(case.moving)
    discrete = discrete_stage(fixed, moving, DiscreteConfig(block=2, radius=3))
    refined = adam_stage(fixed, moving, discrete, ADAM)
    assert case.error(discrete) < 0.8 * case.start
    assert case.error(refined) < 0.5


@pytest.mark.data
@pytest.mark.slow
def test_a_known_deformation_of_a_real_ct_is_recovered_to_under_half_a_voxel(data_dir: Path) -> None:
    case = real_ct(data_dir / "abdomen" / "ts_example.nii.gz")
    fixed, moving = simple_features(case.fixed), simple_features(case.moving)
    discrete = discrete_stage(fixed, moving, DiscreteConfig(block=3, radius=3))
    assert case.error(adam_stage(fixed, moving, discrete, ADAM)) < 0.5


def test_exact_inverses_are_left_as_they_are() -> None:
    velocity = smooth_deformation((24, 24, 24), 1.5, 7.0)
    forward, backward = integrate_velocity(velocity), integrate_velocity(-velocity)
    consistent, _ = make_inverse_consistent(forward, backward)
    inner = (..., *(slice(5, -5),) * 3)
    assert (consistent - forward)[inner].abs().max() < 0.1


def test_the_symmetric_constraint_removes_the_disagreement_of_two_fields() -> None:
    shape = (20, 20, 20)
    forward, backward = smooth_deformation(shape, 2.0, 5.0, seed=1), smooth_deformation(shape, 2.0, 5.0, seed=2)
    before = inconsistency(forward, backward).mean()
    after = inconsistency(*make_inverse_consistent(forward, backward)).mean()
    assert before > 0.5
    assert after < 0.02 * before
