"""What steps of a registration hold at a time, counted in bytes of tensors: the growth of memory with volumes."""

from __future__ import annotations

import gc
import weakref

import torch
from live_memory import held_bytes, peak_bytes
from solver_cases import noise

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.methods.sam_affine import aligned_volume
from SAMRegistrationLib.solvers.convexadam import average_blocks
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.table_sampling import sample_table
from SAMRegistrationLib.solvers.terms import FeatureTerm
from SAMRegistrationLib.transforms import AffineTransform

SIDE = 32


def side_by_side(volume: torch.Tensor) -> torch.Tensor:
    return volume.contiguous(memory_format=torch.channels_last_3d)


def test_what_counts_tensors_forgets_those_that_are_gone_and_those_from_before() -> None:
    given = torch.zeros(1000)

    def work() -> torch.Tensor:
        doubled = given[10:].view(-1) * 2
        return (doubled + 1)[:5]

    assert peak_bytes(work) == 2 * 990 * 4
    assert held_bytes(work) == 990 * 4


def test_a_sample_that_was_differentiated_leaves_nothing_behind() -> None:
    table = noise((4 * 4 * 4, 8), 0)
    gone = weakref.ref(table)
    gc.disable()
    try:
        positions = (noise((20, 3), 1) + 2).requires_grad_()
        torch.autograd.grad(sample_table(table, (4, 4, 4), positions).sum(), positions)
        del table
        assert gone() is None
    finally:
        gc.enable()


def test_a_term_of_features_whose_channels_lie_side_by_side_holds_no_copy_of_them() -> None:
    fixed, moving = (side_by_side(noise((1, 64, SIDE, SIDE, SIDE), seed)) for seed in (0, 1))
    assert held_bytes(lambda: FeatureTerm(fixed, moving, lattice=3)) < 0.15 * fixed.nbytes
    assert peak_bytes(lambda: FeatureTerm(fixed, moving, lattice=3)) < 0.7 * fixed.nbytes


def test_smoothing_many_channels_takes_the_result_and_little_more() -> None:
    costs = noise((1, 343, 16, 16, 16), 0)
    assert peak_bytes(lambda: smooth(costs, 2)) < 1.4 * costs.nbytes


def test_averaging_features_takes_their_means_along_one_axis_once() -> None:
    features = side_by_side(noise((1, 64, SIDE, SIDE, SIDE), 0))
    assert peak_bytes(lambda: average_blocks(features, 2)) < 0.8 * features.nbytes


def test_a_volume_is_aligned_without_the_positions_of_all_its_voxels() -> None:
    grid = Grid((160, 160, 96), (2.0,) * 3)
    volume = Image(noise(grid.shape, 0), grid, "float32", "CT")
    peak = peak_bytes(lambda: aligned_volume(volume, AffineTransform.translation([3.0, 1.0, 2.0]), grid))
    assert peak < 3 * volume.data.nbytes
