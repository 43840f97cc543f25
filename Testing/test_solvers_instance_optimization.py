"""Instance optimization: known deformations, its knobs, cancellation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from solver_cases import real_ct, simple_features, smooth_deformation, textured
from strategies import require_cuda

from SAMRegistrationLib.solvers.adam import Adam
from SAMRegistrationLib.solvers.descent import Descent
from SAMRegistrationLib.solvers.device_descent import DeviceDescent
from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.instance_optimization import OptimizationConfig, optimize
from SAMRegistrationLib.solvers.ops import identity_positions, upsample, zero_field
from SAMRegistrationLib.solvers.recorder import Recorder
from SAMRegistrationLib.solvers.terms import (
    AnchorTerm,
    CorrelationTerm,
    FeatureTerm,
    KeypointTerm,
    diffusion,
)

CONFIG = OptimizationConfig(iterations=60, learning_rate=0.3, diffusion=0.1, tolerance=0.0)


class TargetTerm:
    """Mean squared distance of the field from a given one: a loss with a known minimum."""

    weight = 1.0

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def __call__(self, state: FieldState) -> torch.Tensor:
        return (state.u - self.target).square().mean()


def test_features_recover_a_smooth_deformation_to_under_half_a_voxel() -> None:
    case = textured(32)
    term = FeatureTerm(simple_features(case.fixed), simple_features(case.moving))
    result = optimize(zero_field((32, 32, 32)), [term], CONFIG)
    assert case.start > 1.0
    assert case.error(result.u) < 0.4
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_intensity_correlation_recovers_a_smooth_deformation_to_under_half_a_voxel() -> None:
    case = textured(32)
    result = optimize(zero_field((32, 32, 32)), [CorrelationTerm(case.fixed, case.moving)], CONFIG)
    assert case.error(result.u) < 0.5


@pytest.mark.data
@pytest.mark.slow
def test_a_known_deformation_of_a_real_ct_is_recovered_to_under_half_a_voxel(data_dir: Path) -> None:
    case = real_ct(data_dir / "abdomen" / "ts_example.nii.gz")
    term = FeatureTerm(simple_features(case.fixed), simple_features(case.moving))
    start = 0.6 * case.u
    assert case.error(start) > 0.5
    assert case.error(optimize(start, [term], CONFIG).u) < 0.4


def test_the_loss_and_its_descent_equal_a_float64_reference() -> None:
    """One step of Adam from zero moves every control point by the learning rate against its gradient's sign."""
    shape = (6, 8, 8)
    target = smooth_deformation(shape, 2.0, 3.0)
    config = OptimizationConfig(iterations=1, learning_rate=0.1, final_rate=1.0, diffusion=0.7, folding=0.0)
    result = optimize(target * 0.5, [TargetTerm(target)], config)
    parameter = torch.zeros((1, 3, 3, 4, 4), dtype=torch.float64, requires_grad=True)
    control = smooth(parameter, 3)
    residual = F.interpolate(control, size=shape, mode="trilinear")
    coarse = F.avg_pool3d(target.double() * 0.5, 2)
    loss = (target.double() * 0.5 + residual - target).square().mean() + 0.7 * diffusion(
        coarse + control, (2.0, 2.0, 2.0)
    )
    assert result.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, parameter)
    step = smooth(-0.1 * gradient.sign(), 3)
    expected = target * 0.5 + F.interpolate(step, size=shape, mode="trilinear")
    torch.testing.assert_close(result.u.double(), expected, atol=1e-5, rtol=0)


def test_without_a_reason_to_move_the_initial_field_stays() -> None:
    initial = smooth_deformation((10, 12, 11), 1.0, 4.0)
    config = replace(CONFIG, iterations=5, diffusion_of_total=False)
    assert torch.equal(optimize(initial, [], config).u, initial)


def test_diffusion_of_the_total_field_flattens_it_and_of_the_residual_does_not() -> None:
    initial = smooth_deformation((12, 12, 12), 2.0, 3.0)
    flattened = optimize(initial, [], replace(CONFIG, diffusion=1.0)).u
    assert diffusion(flattened) < 0.7 * diffusion(initial)


def test_the_run_ends_on_a_plateau() -> None:
    target = torch.full((1, 3, 8, 8, 8), 0.1)
    config = replace(CONFIG, iterations=500, tolerance=1e-3, patience=5)
    result = optimize(zero_field((8, 8, 8)), [TargetTerm(target)], config)
    assert 10 <= len(result.losses) < 500


def test_the_callback_sees_every_iteration_and_may_cancel() -> None:
    seen = []

    def cancel_at_two(iteration: int, loss: float) -> None:
        seen.append((iteration, loss))
        if iteration == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        optimize(zero_field((6, 6, 6)), [TargetTerm(torch.ones(1, 3, 6, 6, 6))], CONFIG, cancel_at_two)
    assert [iteration for iteration, _ in seen] == [0, 1, 2]
    assert seen[0][1] == pytest.approx(1.0)


def test_the_same_inputs_give_the_same_field() -> None:
    case = textured(16)
    fields = [
        optimize(
            zero_field((16, 16, 16)),
            [FeatureTerm(simple_features(case.fixed), simple_features(case.moving))],
            replace(CONFIG, iterations=5),
        ).u
        for _ in range(2)
    ]
    assert torch.equal(*fields)


def test_keypoints_pull_the_field_and_an_anchor_holds_it_elsewhere() -> None:
    shape = (16, 16, 16)
    points = torch.tensor([[8.0, 8.0, 8.0]])
    targets = points + torch.tensor([[1.5, 0.0, 0.0]])
    near = (identity_positions(shape) - 7.5).abs().amax(1, keepdim=True) < 5
    terms = [KeypointTerm(points, targets, weight=10.0), AnchorTerm(1.0 - near.float(), weight=50.0)]
    u = optimize(zero_field(shape), terms, replace(CONFIG, diffusion=0.05)).u
    assert abs(float(u[0, 0, 8, 8, 8]) - 1.5) < 0.4
    assert u[..., :2].abs().max() < 0.2


def test_a_voxel_weight_makes_the_field_follow_the_features_of_a_box_only() -> None:
    case = textured(24)
    fixed, moving = simple_features(case.fixed), simple_features(case.moving)
    box = torch.zeros(1, 1, 24, 24, 24)
    box[..., :12] = 1.0
    term = FeatureTerm(fixed, moving, voxel_weight=box)
    u = optimize(zero_field((24, 24, 24)), [term], replace(CONFIG, diffusion=0.05)).u
    error = (u - case.u).square().sum(1).sqrt()[0, 4:-4, 4:-4]
    truth = case.u.square().sum(1).sqrt()[0, 4:-4, 4:-4]
    assert error[..., 4:10].mean() < 0.6 * truth[..., 4:10].mean()
    assert error[..., 18:].mean() > 0.6 * truth[..., 18:].mean()


def test_features_on_a_finer_grid_than_the_field_work() -> None:
    case = textured(32)
    term = FeatureTerm(simple_features(case.fixed), simple_features(case.moving))
    u = optimize(zero_field((16, 16, 16)), [term], replace(CONFIG, control_spacing=1)).u
    assert case.error(upsample(u, (32, 32, 32))) < 0.5


def test_the_descent_takes_the_very_steps_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.zeros(1, 3, 4, 5, 6, requires_grad=True) for _ in range(2))
    descent, optimizer = Adam(own), torch.optim.Adam([other])
    for iteration in range(20):
        gradient = torch.randn(own.shape, generator=generator)
        rate = 0.5 / (iteration + 1)
        descent.step(gradient, rate)
        optimizer.param_groups[0]["lr"] = rate
        other.grad = gradient
        optimizer.step()
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def test_a_descent_imports_neither_the_optimizers_of_torch_nor_its_symbolic_numbers() -> None:
    code = (
        "import sys, torch; "
        "from SAMRegistrationLib.solvers.instance_optimization import OptimizationConfig, optimize; "
        "from SAMRegistrationLib.solvers.terms import FeatureTerm; "
        "features = [torch.rand(1, 8, 4, 4, 4) for _ in range(2)]; "
        "optimize(torch.zeros(1, 3, 4, 4, 4), [FeatureTerm(*features)], OptimizationConfig(iterations=2)); "
        "print(any(name in sys.modules for name in ('torch._dynamo', 'sympy')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("tolerance", [0.0, 3e-2])
def test_a_descent_that_stays_on_its_device_takes_the_same_steps_and_ends_as_early(tolerance: float) -> None:
    case = textured(24)
    terms = [FeatureTerm(simple_features(case.fixed), simple_features(case.moving))]
    config = replace(CONFIG, iterations=50, tolerance=tolerance, patience=6)
    expected = optimize(zero_field((24, 24, 24)), terms, config)
    descent = Descent(zero_field((24, 24, 24)), terms, config)
    told: list[tuple[int, float]] = []
    losses = DeviceDescent(descent).run(None, lambda iteration, loss: told.append((iteration, loss)))
    assert len(losses) == len(expected.losses)
    assert (len(losses) < 50) == (tolerance > 0)
    assert told == list(enumerate(losses))
    torch.testing.assert_close(losses, expected.losses, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(descent.field(), expected.u, atol=1e-3, rtol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("tolerance", [0.0, 3e-2])
def test_a_recorded_descent_on_a_gpu_ends_where_that_on_a_cpu_does(tolerance: float) -> None:
    cuda = require_cuda()
    case = textured(24)
    maps = simple_features(case.fixed), simple_features(case.moving)
    config = replace(CONFIG, iterations=50, tolerance=tolerance, patience=6)
    expected = optimize(zero_field((24, 24, 24)), [FeatureTerm(*maps)], config)
    for _ in range(2):
        term = FeatureTerm(*(each.to(cuda) for each in maps))
        found = optimize(zero_field((24, 24, 24), cuda), [term], config)
        assert abs(len(found.losses) - len(expected.losses)) <= 1
        torch.testing.assert_close(found.u.cpu(), expected.u, atol=2e-2, rtol=0)
    assert Recorder.of(found.u.device) is Recorder.of(found.u.device)


@pytest.mark.cuda
def test_what_cannot_be_recorded_is_launched_one_by_one() -> None:
    cuda = require_cuda()
    number = torch.zeros(1, device=cuda)
    recorder = Recorder.of(number.device)
    with torch.cuda.stream(recorder.stream):
        assert recorder.record(number.item) is None
    again = Recorder.of(number.device)
    with torch.cuda.stream(again.stream):
        assert again.record(lambda: number.add_(1)) is not None
    target = torch.full((1, 3, 8, 8, 8), 0.5, device=cuda)
    assert len(optimize(zero_field((8, 8, 8), cuda), [TargetTerm(target)], CONFIG).losses) == CONFIG.iterations
