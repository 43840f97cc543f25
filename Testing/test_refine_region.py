"""The unknowns of a region's descent, and the descent itself, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRegistrationLib.solvers.bspline import SplineField, spline_matrix
from SAMRegistrationLib.solvers.ops import warp
from SAMRegistrationLib.solvers.region import (
    Level,
    RegionConfig,
    RegionVolumes,
    level_of,
    optimize_region,
    windowed,
)
from SAMRegistrationLib.solvers.terms import SquaredDifferenceTerm

SPACING = (1.5, 2.0, 2.5)


class Spline:
    """A spline field as a deformation."""

    def __init__(self, shape: tuple[int, ...], control_mm: float = 8.0) -> None:
        self.field = SplineField(shape, SPACING, control_mm)

    def parameters(self) -> list[torch.Tensor]:
        return [self.field.control]

    def prepare(self) -> None:
        pass

    def at(self, part: tuple[slice, slice, slice]) -> torch.Tensor:
        return self.field.at(part)

    def roughness(self) -> torch.Tensor:
        return self.field.roughness()


def cubic(distance: float) -> float:
    """The cubic B-spline from its definition as a sum of truncated powers."""
    return sum(sign * max(distance + 2 - k, 0.0) ** 3 / 6 for k, sign in enumerate((1.0, -4.0, 6.0, -4.0, 1.0)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_spline_weights_are_truncated_powers_and_sum_to_one(positions: list[float]) -> None:
    matrix = spline_matrix(torch.tensor(positions, dtype=torch.float64), 8)
    expected = [[cubic(position - (j - 1)) for j in range(8)] for position in positions]
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(matrix.sum(dim=1).numpy(), 1, atol=1e-9)


def test_control_points_on_a_line_give_a_linear_displacement_of_known_roughness() -> None:
    field = SplineField((9, 11, 13), SPACING, 6.0)
    with torch.no_grad():
        # 0.1 mm per mm along x for the z component: control points at -1, 0, 1, ... steps.
        step = 12 * SPACING[0] / (field.control.shape[3] - 3)
        field.control[2] = 0.1 * step * (torch.arange(field.control.shape[3]) - 1)
    expected = 0.1 * SPACING[0] * torch.arange(13)
    torch.testing.assert_close(field.whole()[0, 2].detach(), expected.expand(9, 11, 13), atol=1e-5, rtol=0)
    assert float(field.whole()[0, :2].detach().abs().max()) == 0
    assert float(field.roughness().detach()) == pytest.approx(0.1**2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_a_part_of_the_grid_is_that_part_of_the_whole(start: int, step: int, seed: int) -> None:
    field = SplineField((8, 9, 10), SPACING, 5.0)
    with torch.no_grad():
        field.control.normal_(generator=torch.Generator().manual_seed(seed))
    part = (slice(start, 8, step), slice(start, 9, step), slice(start, None, step))
    expected = field.whole()[:, :, part[0], part[1], part[2]]
    torch.testing.assert_close(field.at(part), expected, atol=1e-5, rtol=0)


def test_a_finer_spline_takes_over_a_coarser_one() -> None:
    coarse, fine = SplineField((20, 20, 20), SPACING, 16.0), SplineField((20, 20, 20), SPACING, 8.0)
    with torch.no_grad():
        coarse.control.normal_(generator=torch.Generator().manual_seed(1))
    fine.fit(coarse.whole().detach())
    assert float((fine.whole() - coarse.whole()).detach().abs().max()) < 0.05


def blobs(shape: tuple[int, int, int], shift: float = 0.0) -> torch.Tensor:
    z, y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij")
    x = x + shift
    return (torch.sin(0.5 * x) * torch.cos(0.4 * y) + torch.sin(0.45 * z + 0.3 * x))[None, None]


def region(shape: tuple[int, int, int] = (20, 22, 24), shift: float = 1.0) -> RegionVolumes:
    """Two volumes, the fixed one `shift` voxels ahead along x, and a box in the middle."""
    weight, window = torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape)
    weight[:, :, 6:-6, 6:-6, 6:-6] = 1
    window[:, :, 2:-2, 2:-2, 2:-2] = 0.5
    window[:, :, 4:-4, 4:-4, 4:-4] = 1
    return RegionVolumes(blobs(shape, shift), blobs(shape), weight, window, SPACING)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_level_looks_at_the_box_and_warps_the_whole_region(stride: int) -> None:
    volumes = region()
    level = level_of(volumes, stride)
    assert level.weight.sum() == volumes.weight[:, :, ::stride, ::stride, ::stride].sum()
    # At rest every voxel of the box meets its own place in the region, at the level's resolution.
    state = level.state(Spline((20, 22, 24)))
    torch.testing.assert_close(
        warp(level.moving, state.u), volumes_at(volumes, level, stride), atol=2e-3 * stride, rtol=0
    )


def volumes_at(volumes: RegionVolumes, level: Level, stride: int) -> torch.Tensor:
    if stride == 1:
        return volumes.moving[:, :, level.part[0], level.part[1], level.part[2]]
    whole = level_of(
        RegionVolumes(volumes.moving, volumes.moving, volumes.weight, volumes.window, SPACING), stride
    )
    return whole.fixed


def test_the_descent_finds_a_shift_in_the_box_and_leaves_everything_beyond_the_window() -> None:
    volumes = region(shift=1.0)
    deformation = Spline((20, 22, 24))
    level = level_of(volumes, 1)
    told: list[tuple[int, float]] = []
    term = SquaredDifferenceTerm(level.fixed, level.moving, voxel_weight=level.weight / level.weight.mean())
    found = optimize_region(
        deformation,
        volumes,
        level,
        [term],
        RegionConfig(80, 0.2, diffusion=0.001),
        lambda *both: told.append(both),
    )
    assert found.data_losses[-1] < 0.02 * found.data_losses[0]
    assert told == list(enumerate(found.data_losses))
    displacement = windowed(deformation, volumes)
    inside = displacement[:, :, volumes.weight[0, 0] > 0]
    assert float(inside[0, 0].mean()) == pytest.approx(1.0 * SPACING[0], abs=0.1)
    assert float(displacement[(volumes.window == 0).expand_as(displacement)].abs().max()) == 0


def test_the_fold_penalty_keeps_space_from_folding() -> None:
    volumes = region(shift=5.0)
    smallest = []
    for folding in (0.0, 50.0):
        deformation = Spline((20, 22, 24), 4.0)
        level = level_of(volumes, 1)
        term = SquaredDifferenceTerm(level.fixed, level.moving, voxel_weight=level.weight)
        config = RegionConfig(60, 0.6, diffusion=0.0, folding=folding)
        optimize_region(deformation, volumes, level, [term], config)
        displacement = windowed(deformation, volumes) / torch.tensor(SPACING).view(1, 3, 1, 1, 1)
        smallest.append(float((displacement[0, 0].diff(dim=2) + 1).min()))
    assert smallest[1] > smallest[0]


def test_an_interrupted_descent_passes_the_interruption_on() -> None:
    volumes = region()
    level = level_of(volumes, 1)

    def stop(iteration: int, _: float) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize_region(Spline((20, 22, 24)), volumes, level, [], RegionConfig(5), stop)
