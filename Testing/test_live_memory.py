"""What steps of a registration hold at a time, counted in bytes of tensors: the growth of memory with volumes."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from live_memory import held_bytes, peak_bytes
from solver_cases import noise
from torch.nn import functional

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.features.base import FeatureMap, Features, divided
from SAMRegistrationLib.matching import FeatureIndex
from SAMRegistrationLib.matching.vectors import JoinedVectors
from SAMRegistrationLib.methods.sam_affine import aligned_volume
from SAMRegistrationLib.solvers.convexadam import average_blocks
from SAMRegistrationLib.solvers.filters import smooth
from SAMRegistrationLib.solvers.table_sampling import sample_table
from SAMRegistrationLib.solvers.terms import FeatureTerm
from SAMRegistrationLib.transforms import AffineTransform

SIDE = 32


def side_by_side(volume: torch.Tensor) -> torch.Tensor:
    return volume.contiguous(memory_format=torch.channels_last_3d)


def embeddings(
    shape: tuple[int, int, int] = (SIDE, SIDE + 8, SIDE - 8), dtype: torch.dtype = torch.float32
) -> Features:
    """Fine and coarse unit vectors of noise, the coarse ones at a quarter of the resolution."""
    grid = Grid(shape[::-1], (4.0,) * 3, (-20.0, 7.0, 3.0))
    coarse = divided(grid, (4, 4, 4))
    fine_vectors = functional.normalize(noise((1, 48, *shape), 1), dim=1)
    coarse_vectors = functional.normalize(noise((1, 40, *coarse.shape), 2), dim=1)
    return Features(
        FeatureMap(side_by_side(fine_vectors.to(dtype)), grid),
        FeatureMap(side_by_side(coarse_vectors.to(dtype)), coarse),
    )


def ball(grid: Grid, share: float = 0.25) -> Image:
    """1 in a ball in the middle that takes about a share of the volume."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    radius = (share * 6 / np.pi) ** (1 / 3)
    return Image(torch.from_numpy(x**2 + y**2 + z**2 < radius**2).float(), grid)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_read_voxel_by_voxel_are_those_of_the_joined_map(dtype: torch.dtype) -> None:
    features = embeddings(dtype=dtype)
    searched = ball(features.fine.grid).data > 0.5
    vectors = JoinedVectors(features, searched)
    joined = features.joined().data[0].flatten(1).T
    inside = searched.flatten().nonzero()[:, 0]
    torch.testing.assert_close(vectors.at(inside), joined[inside], atol=0, rtol=0)
    torch.testing.assert_close(vectors.at(inside, searched_only=True), joined[inside], atol=0, rtol=0)
    everywhere = torch.randperm(len(joined), generator=torch.Generator().manual_seed(3))
    close = {"atol": 2e-3 if dtype is torch.float16 else 1e-6, "rtol": 0}
    torch.testing.assert_close(vectors.at(everywhere), joined[everywhere], **close)
    slabs = torch.cat([slab for _, slab in vectors.slabs()]).flatten(0, 2)
    torch.testing.assert_close(slabs, joined, atol=0, rtol=0)


def test_neighbors_of_what_is_searched_are_stored_too() -> None:
    features = embeddings()
    searched = torch.zeros(features.fine.grid.shape, dtype=torch.bool)
    searched[10, 10, 10] = True
    vectors = JoinedVectors(features, searched)
    joined = features.joined().data[0]
    height, width = searched.shape[1:]
    for z, y, x in ((10, 10, 12), (12, 8, 10)):
        row = torch.tensor([(z * height + y) * width + x])
        expected = joined[:, z, y, x]
        torch.testing.assert_close(vectors.at(row, searched_only=True)[0], expected, atol=0, rtol=0)


def test_an_index_takes_the_coarse_vectors_of_the_body_beside_the_features() -> None:
    features = embeddings()
    body = ball(features.fine.grid)
    joined = features.joined().data.nbytes
    held = held_bytes(lambda: FeatureIndex(features, body))
    assert held < 0.5 * joined, "the coarse half of two fifths of the voxels, and the means of the cells"
    assert peak_bytes(lambda: FeatureIndex(features, body)) < 0.8 * joined
