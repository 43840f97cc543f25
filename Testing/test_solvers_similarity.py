"""LNCC, feature projection and the terms of instance optimization against slow definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from solver_cases import noise, simple_features, smooth_deformation, textured

from SAMRegistrationLib.solvers.field_state import ControlledState, FieldState, resized_values
from SAMRegistrationLib.solvers.fold_term import FoldTerm
from SAMRegistrationLib.solvers.lattice import lattice_period, lattice_slices
from SAMRegistrationLib.solvers.lncc import EPSILON, _LocalCorrelation, lncc
from SAMRegistrationLib.solvers.ops import corner_determinant, warp
from SAMRegistrationLib.solvers.projection import project_features
from SAMRegistrationLib.solvers.terms import (
    AnchorTerm,
    CorrelationTerm,
    FeatureTerm,
    KeypointTerm,
    SquaredDifferenceTerm,
    diffusion,
)

SHAPE = (6, 7, 8)


def state(u: torch.Tensor, iteration: int = 0) -> FieldState:
    return FieldState(u, u, iteration)


def reference_lncc(fixed: np.ndarray, moving: np.ndarray, weight: np.ndarray, radius: int) -> float:
    inside = weight > 0
    fixed, moving = ((v - v[inside].mean()) / v[inside].std() for v in (fixed, moving))
    total = 0.0
    for center in itertools.product(*map(range, fixed.shape)):
        window = tuple(slice(max(0, c - radius), c + radius + 1) for c in center)
        f, m = fixed[window][inside[window]], moving[window][inside[window]]
        if len(f) == 0:
            continue
        covariance = ((f - f.mean()) * (m - m.mean())).mean()
        total += weight[center] * covariance**2 / ((f.var() + EPSILON) * (m.var() + EPSILON))
    return total / weight.sum()


def weight_map(seed: int = 8) -> torch.Tensor:
    """Non-negative weights with zeros."""
    return noise((1, 1, *SHAPE), seed).double().clamp(min=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
def test_lncc_equals_its_definition_window_by_window(radius: int, weighted: bool) -> None:
    fixed, moving = noise((1, 1, *SHAPE), 0).double() * 40 + 300, noise((1, 1, *SHAPE), 1).double()
    weight = weight_map() if weighted else torch.ones((1, 1, *SHAPE), dtype=torch.float64)
    expected = reference_lncc(fixed[0, 0].numpy(), moving[0, 0].numpy(), weight[0, 0].numpy(), radius)
    assert float(lncc(fixed, moving, radius, weight if weighted else None)) == pytest.approx(expected, rel=1e-6)


def test_lncc_gradient_is_exact() -> None:
    shape = (1, 1, 3, 4, 4)
    fixed, moving = noise(shape, 0).double(), noise(shape, 1).double().requires_grad_()
    weight = noise(shape, 2).double().clamp(min=0)
    inside = (weight > 0).double()
    assert torch.autograd.gradcheck(
        lambda volume: _LocalCorrelation.apply(fixed, volume, 1, weight, inside), moving
    )


def test_lncc_does_not_see_contrast_and_brightness() -> None:
    volume = textured(16).moving
    assert float(lncc(volume, 5 - 3 * volume)) > 0.98
    assert float(lncc(volume, noise(tuple(volume.shape), 7))) < 0.1


def test_projection_to_the_true_rank_keeps_every_dot_product() -> None:
    basis = noise((20, 4), 0)
    fixed, moving = (torch.einsum("kc,bczyx->bkzyx", basis, noise((1, 4, *SHAPE), seed)) for seed in (1, 2))
    small_fixed, small_moving = project_features(fixed, moving, 4)
    assert small_fixed.shape[1] == 4
    torch.testing.assert_close((small_fixed * small_moving).sum(1), (fixed * moving).sum(1), atol=1e-3, rtol=1e-4)


def test_projecting_real_features_to_half_their_channels_keeps_dot_products() -> None:
    case = textured(24)
    fixed, moving = simple_features(case.fixed), simple_features(case.moving)
    small_fixed, small_moving = project_features(fixed, moving, fixed.shape[1] // 2)
    difference = (small_fixed * small_moving).sum(1) - (fixed * moving).sum(1)
    assert difference.abs().mean() < 0.03
    assert (small_fixed.norm(dim=1) <= 1.0 + 1e-4).all()
    again, _ = project_features(fixed, moving, fixed.shape[1] // 2)
    assert torch.equal(again, small_fixed)


@pytest.mark.parametrize(("step", "share"), [(1, 1.0), (2, 1.0), (3, 8 / 27), (4, 1.0)])
def test_consecutive_iterations_never_look_at_a_voxel_twice_until_the_lattices_repeat(
    step: int, share: float
) -> None:
    seen = torch.zeros(12, 12, 12)
    for iteration in range(lattice_period(step)):
        seen[lattice_slices(iteration, step)] += 1
    assert seen.max() == 1
    assert seen.mean() == pytest.approx(share)
    assert lattice_slices(lattice_period(step), step) == lattice_slices(0, step)


@pytest.mark.parametrize("measure", ["cosine", "squared"])
def test_the_feature_term_is_the_weighted_mean_dissimilarity_of_warped_features(measure: str) -> None:
    fixed, moving = noise((1, 5, *SHAPE), 0), noise((1, 5, *SHAPE), 1)
    u, weight = smooth_deformation(SHAPE, 1.5, 2.0), weight_map().float()
    term = FeatureTerm(fixed, moving, voxel_weight=weight, lattice=2, measure=measure)
    warped = warp(moving, u)
    if measure == "cosine":
        dissimilarity = 1 - F.cosine_similarity(fixed, warped, dim=1)
    else:
        dissimilarity = 0.5 * (fixed - warped).square().sum(1)
    for iteration in (0, 3):
        part = lattice_slices(iteration, 2)
        expected = (dissimilarity[0] * weight[0, 0])[part].mean()
        torch.testing.assert_close(term(state(u, iteration)), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_feature_term_is_that_of_plain_autograd() -> None:
    fixed, moving = F.normalize(noise((1, 5, *SHAPE), 0), dim=1), noise((1, 5, *SHAPE), 1)
    u = smooth_deformation(SHAPE, 1.5, 2.0).requires_grad_()
    (gradient,) = torch.autograd.grad(FeatureTerm(fixed, moving, lattice=1)(state(u)), u)
    plain = (1 - F.cosine_similarity(fixed, warp(moving, u), dim=1)).mean()
    (expected,) = torch.autograd.grad(plain, u)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-3)


def test_terms_on_a_finer_grid_see_the_field_in_their_own_voxels() -> None:
    case = textured(16)
    coarse = torch.zeros(1, 3, 8, 8, 8)
    coarse[:, 2] = 1.0
    fixed = torch.roll(case.moving, -2, dims=2)
    weight = torch.zeros_like(fixed)
    weight[:, :, 4:-4] = 1.0
    assert float(SquaredDifferenceTerm(fixed, case.moving, voxel_weight=weight)(state(coarse))) < 1e-8
    assert float(CorrelationTerm(fixed, case.moving, radius=2, voxel_weight=weight)(state(coarse))) < 0.01


def test_the_keypoint_term_is_quadratic_near_and_linear_far_in_mm() -> None:
    u = torch.zeros(1, 3, *SHAPE)
    points = torch.tensor([[2.0, 3.0, 1.0]])
    for offset, expected in ((0.5, 0.5 * (1.0 / 2.0) ** 2), (5.0, 10.0 / 2.0 - 0.5)):
        term = KeypointTerm(points, points + torch.tensor([[offset, 0.0, 0.0]]), (2.0, 1.0, 1.0), softness=2.0)
        assert float(term(state(u))) == pytest.approx(expected, rel=1e-4)


def test_the_keypoint_term_vanishes_where_the_field_hits_the_target() -> None:
    u = smooth_deformation(SHAPE, 1.0, 2.0)
    point = torch.tensor([[3.0, 2.0, 4.0]])
    target = point + u[0, :, 4, 2, 3]
    assert float(KeypointTerm(point, target)(state(u))) < 1e-6


def test_the_anchor_term_counts_changes_only_where_it_holds() -> None:
    hold = torch.zeros(1, 1, *SHAPE)
    hold[..., :4] = 1.0
    moved = torch.zeros(1, 3, *SHAPE)
    moved[..., 4:] = 5.0
    assert float(AnchorTerm(hold)(FieldState(moved, moved))) == 0.0
    assert float(AnchorTerm(hold)(FieldState(moved, moved + 1.0))) == pytest.approx(1.5)


def test_diffusion_of_a_linear_field_is_the_squared_norm_of_its_gradient() -> None:
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 0] = 0.5 * torch.arange(SHAPE[2])
    u[:, 2] = 0.2 * torch.arange(SHAPE[1]).view(-1, 1)
    assert float(diffusion(u)) == pytest.approx(0.5**2 + 0.2**2, rel=1e-5)
    assert float(diffusion(u, (2.0, 1.0, 1.0))) == pytest.approx(0.25**2 + 0.2**2, rel=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 3), (2, 1, 5)])
def test_the_gradient_of_diffusion_is_that_of_its_formula(shape: tuple[int, int, int]) -> None:
    u = torch.randn((2, 3, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    distances = (2.0, 1.0, 0.5)

    def recorded(u: torch.Tensor) -> torch.Tensor:
        pairs = zip((4, 3, 2), distances, strict=True)
        parts = [(u.diff(dim=axis) / step).square().sum(1).mean() for axis, step in pairs if u.shape[axis] > 1]
        return torch.stack(parts).sum()

    ours, theirs = u.clone().requires_grad_(), u.clone().requires_grad_()
    value, expected = diffusion(ours, distances), recorded(theirs)
    (3.0 * value).backward()
    (3.0 * expected).backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_fold_term_is_zero_without_folds_and_pushes_against_them() -> None:
    assert float(FoldTerm()(state(torch.zeros(1, 3, *SHAPE)))) == 0.0
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 0] = -1.5 * torch.arange(SHAPE[2])
    u.requires_grad_()
    term = FoldTerm(margin=0.2)(state(u))
    assert float(term.detach()) == pytest.approx((0.2 + 0.5) ** 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(term, u)
    after = FoldTerm(margin=0.2)(state((u - 0.5 * gradient / gradient.norm()).detach()))
    assert float(after) < float(term.detach())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_fold_penalty_sees_thin_fields_too(depth: int) -> None:
    u = torch.zeros(1, 3, depth, 6, 6)
    u[0, 0] = -3.0 * torch.arange(6.0)
    penalties = [float(FoldTerm()(FieldState(u, u, iteration))) for iteration in range(8)]
    assert all(penalty == 0 for penalty in penalties) if depth == 1 else min(penalties) > 1


def test_gradient_of_the_corner_determinant_is_exact() -> None:
    u = noise((1, 3, 4, 4, 5), 0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda field: corner_determinant(field, (1, -1, -1), (2, 1, 2)), u)


@pytest.mark.parametrize("shape", [(12, 10, 8), (11, 9, 7)])
def test_a_field_of_control_points_is_the_same_where_it_is_asked_for_as_everywhere(
    shape: tuple[int, int, int],
) -> None:
    control, initial = noise((1, 3, 6, 5, 4), 0).requires_grad_(), noise((1, 3, *shape), 1)
    residual = resized_values(control, shape)
    parts = [(slice(0, 6, 2), slice(0, 5, 2), slice(0, 5, 2)), (slice(1, 7, 2), slice(2, 7, 2), slice(1, 6, 2))]
    whole = FieldState(initial + residual, residual).at(parts)
    lattice = ControlledState(initial, control).at(parts)
    torch.testing.assert_close(lattice, whole, atol=1e-5, rtol=1e-5)
    weights = noise(tuple(whole.shape), 2)
    gradients = [torch.autograd.grad((field * weights).sum(), control)[0] for field in (whole, lattice)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_the_feature_term_has_no_gradient_where_its_weight_is_zero_and_the_exact_one_elsewhere() -> None:
    fixed, moving = noise((1, 5, *SHAPE), 0), noise((1, 5, *SHAPE), 1)
    u = (smooth_deformation(SHAPE, 1.5, 2.0) + 0.01).requires_grad_()
    weight = weight_map().float()
    (gradient,) = torch.autograd.grad(FeatureTerm(fixed, moving, voxel_weight=weight, lattice=1)(state(u)), u)
    expected = ((1 - F.cosine_similarity(fixed, warp(moving, u), dim=1))[0] * weight[0, 0]).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, u)[0], atol=1e-5, rtol=1e-4)
    assert not gradient[(weight == 0).expand_as(gradient)].any()


def test_a_feature_term_without_any_weight_is_zero() -> None:
    fixed, moving = noise((1, 5, *SHAPE), 0), noise((1, 5, *SHAPE), 1)
    u = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    value = FeatureTerm(fixed, moving, voxel_weight=torch.zeros(1, 1, *SHAPE))(state(u))
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, u)[0].any()
