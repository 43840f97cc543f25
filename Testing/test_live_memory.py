"""What steps of a registration hold at a time, counted in bytes of tensors: the growth of memory with volumes."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from live_memory import LiveMemory, held_bytes, peak_bytes
from phantoms import phantom_pair
from solver_cases import noise
from torch.nn import functional

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.features.base import FeatureMap, Features, divided
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.matching import FeatureIndex
from SAMRegistrationLib.matching.vectors import JoinedVectors
from SAMRegistrationLib.methods.instance_optimization import instance_optimization
from SAMRegistrationLib.methods.sam_affine import aligned_volume
from SAMRegistrationLib.networks.sam_lite import SamLite
from SAMRegistrationLib.pipeline import prepare, register, working_grid
from SAMRegistrationLib.solvers.convexadam import average_blocks
from SAMRegistrationLib.solvers.field_state import FieldState
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


def test_a_sparse_term_is_the_same_and_holds_no_more_than_it_looks_at() -> None:
    fixed, moving = (side_by_side(noise((1, 64, SIDE, SIDE, SIDE), seed)) for seed in (0, 1))
    near = (noise((1, 1, SIDE, SIDE, SIDE), 2) > 0).float()

    def term(sparse: bool) -> FeatureTerm:
        return FeatureTerm(fixed, moving, voxel_weight=near, lattice=3, sparse=sparse)

    u = 0.3 * noise((1, 3, SIDE, SIDE, SIDE), 3)
    for iteration in range(9):
        values = []
        for sparse in (False, True):
            parameter = u.clone().requires_grad_()
            value = term(sparse)(FieldState(parameter, parameter, iteration))
            values.append((value.detach(), *torch.autograd.grad(value, parameter)))
        torch.testing.assert_close(values[0], values[1], atol=0, rtol=0)


def test_a_sparse_term_holds_no_more_fixed_vectors_than_it_looks_at() -> None:
    moving = side_by_side(noise((1, 64, SIDE, SIDE, SIDE), 1))

    def term(sparse: bool) -> FeatureTerm:
        # Features that nobody else holds.
        return FeatureTerm(side_by_side(moving.neg()), moving, lattice=3, sparse=sparse)

    assert held_bytes(lambda: term(True)) < 0.5 * held_bytes(lambda: term(False))


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


def test_large_volumes_are_embedded_with_few_slices_of_high_resolution_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = SamLite().fused().to(torch.bfloat16)
    network.to(memory_format=torch.channels_last_3d)
    volume = torch.rand(1, 1, 96, 48, 64).bfloat16() * 2

    def embedded() -> torch.Tensor:
        with torch.no_grad():
            into = torch.empty((1, 64, 48, 24, 32), memory_format=torch.channels_last_3d)
            return network(volume, into)[0]

    whole, peak = embedded(), peak_bytes(embedded)
    monkeypatch.setattr("SAMRegistrationLib.networks.sam_lite._LARGEST_WHOLE", 0)
    monkeypatch.setattr("SAMRegistrationLib.networks.sam_lite._SLICES_AT_ONCE", 8)
    torch.testing.assert_close(embedded(), whole, atol=4e-3, rtol=0)
    assert peak_bytes(embedded) - whole.nbytes < 0.6 * (peak - whole.nbytes)


@pytest.mark.slow
def test_no_stage_of_the_default_preset_holds_more_than_its_share_for_every_voxel() -> None:
    pair = phantom_pair(spacing=3.0)
    most: dict[str, int] = {}
    with LiveMemory() as memory:

        def note(stage: str, _: float) -> None:
            if stage not in most:
                memory.peak = memory.live
            most[stage] = memory.peak

        register(pair.fixed, pair.moving, device="cpu", progress=note)
    volume = 4 * working_grid(pair.fixed.grid, 2.0).number_of_voxels
    bounds = {
        # With the slices that embeddings see beyond both ends.
        "convex_search": 49,
        "instance_optimization": 41,
        "instance_optimization 2": 43,
        "finish": 17,
    }
    volumes = {stage: most[stage] / volume for stage in bounds}
    assert all(volumes[stage] < bound for stage, bound in bounds.items()), volumes


def test_a_last_stage_leaves_no_features_behind_and_others_do() -> None:
    pair = phantom_pair(spacing=6.0)
    problem = prepare(MindExtractor(), (pair.fixed, pair.moving), 4.0, torch.device("cpu"))
    settings = {"feature_weight": 1.0, "iterations": 2}
    instance_optimization(problem, **settings)
    kept = problem.fixed_features()
    assert problem.fixed_features() is kept
    first = instance_optimization(problem, **settings)
    problem.in_last_stage = True
    last = instance_optimization(problem, **settings)
    torch.testing.assert_close(last, first, atol=0, rtol=0)
    assert problem.fixed_features() is not kept
