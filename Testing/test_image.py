"""The volume type: storage, conversion and resampling against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    STORAGES,
    away_from_edges,
    empty_sitk,
    grids,
    noise_image,
    overlapping_grids,
    rotation,
    seeds,
    smooth_image,
    stored,
)

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.sampling import Interpolation

quick = settings(max_examples=25, deadline=None)
SITK = {
    Interpolation.NEAREST: sitk.sitkNearestNeighbor,
    Interpolation.LINEAR: sitk.sitkLinear,
    Interpolation.CUBIC: sitk.sitkBSpline,
}


def finer(source: Grid, grid: Grid) -> Grid:
    """`grid` with a spacing that is nowhere coarser than the source's, so that nothing is smoothed."""
    return Grid(grid.size, (0.5 * min(source.spacing),) * 3, grid.origin, grid.direction)


@pytest.mark.parametrize("turn", [0.0, 0.3], ids=["straight", "oblique"])
def test_all_48_ways_to_store_a_volume_become_the_same(turn: float) -> None:
    grid = Grid((4, 5, 6), (0.7, 1.1, 2.3), (10, -20, 30), tuple(rotation((turn, -turn, turn / 2)).ravel()))
    image = noise_image(grid, 1)
    expected = image.canonical()
    assert torch.equal(expected.data, image.data)
    assert expected.grid == grid
    for order, flips in STORAGES:
        canonical = stored(image, order, flips).canonical()
        assert canonical.grid.isclose(expected.grid, 1e-6)
        assert torch.equal(canonical.data, expected.data)


@quick
@given(grids(turn=3.2), st.sampled_from(STORAGES), seeds)
def test_canonical_depends_on_the_place_of_voxels_and_not_on_their_order(
    grid: Grid, storage: tuple[tuple[int, ...], tuple[bool, ...]], seed: int
) -> None:
    image = noise_image(grid, seed)
    one, other = image.canonical(), stored(image, *storage).canonical()
    assert one.grid.isclose(other.grid, 1e-6)
    assert torch.equal(one.data, other.data)
    assert np.trace(one.grid.axes) >= np.trace(grid.axes) - 1e-6


@pytest.mark.parametrize("angle", [45, -45, 135])
def test_a_volume_turned_by_45_degrees_has_one_canonical_form_too(angle: float) -> None:
    grid = Grid((4, 5, 6), direction=tuple(rotation((0, 0, np.deg2rad(angle))).ravel()))
    image = noise_image(grid, 2)
    forms = [stored(image, *storage).canonical() for storage in STORAGES]
    assert all(form.grid.isclose(forms[0].grid, 1e-6) for form in forms)
    assert all(torch.equal(form.data, forms[0].data) for form in forms)


@quick
@given(grids(), st.sampled_from(["int16", "uint8", "float32", "int32", "float64"]), seeds)
def test_simpleitk_gives_the_volume_back(grid: Grid, pixel_type: str, seed: int) -> None:
    values = noise_image(grid, seed).data.round().clamp(0, 200)
    image = Image(values, grid, pixel_type, "CT")
    again = Image.from_sitk(image.to_sitk(), "CT")
    assert torch.equal(again.data, image.data)
    assert (again.grid, again.pixel_type, again.modality) == (grid, pixel_type, "CT")


def test_whole_number_types_are_rounded_and_clipped() -> None:
    image = Image(torch.tensor([-5.0, 0.6, 254.4, 300.0]).view(1, 1, 4), Grid((4, 1, 1)), "uint8")
    assert sitk.GetArrayFromImage(image.to_sitk()).flatten().tolist() == [0, 1, 254, 255]


def test_a_copy_from_simpleitk_does_not_change_with_its_source() -> None:
    source = sitk.Image(3, 3, 3, sitk.sitkFloat32)
    image = Image.from_sitk(source)
    source[1, 1, 1] = 5.0
    assert float(image.data.abs().max()) == 0.0


@pytest.mark.parametrize("interpolation", [Interpolation.NEAREST, Interpolation.LINEAR, Interpolation.CUBIC])
def test_resampling_without_a_loss_of_resolution_is_simpleitks(interpolation: Interpolation) -> None:
    @quick
    @given(overlapping_grids(), seeds)
    def check(pair: tuple[Grid, Grid], seed: int) -> None:
        source, grid = pair
        target = finer(source, grid)
        image = smooth_image(source, seed)
        ours = image.resampled(target, interpolation, default=-2000.0).data.numpy()
        theirs = sitk.Resample(
            image.to_sitk(), empty_sitk(target), sitk.Transform(), SITK[interpolation], -2000.0, sitk.sitkFloat32
        )
        compared = away_from_edges(target, source)
        # Values change by up to 1000 per voxel, positions are rounded to about 1e-6 voxel.
        np.testing.assert_allclose(ours[compared], sitk.GetArrayFromImage(theirs)[compared], atol=2e-2)

    check()


def test_nothing_of_a_finer_pattern_survives_on_a_coarser_grid() -> None:
    grid = Grid((48, 48, 48))
    pattern = torch.ones(grid.shape)
    pattern[::2] *= -1
    pattern[:, ::2] *= -1
    image = Image(pattern, grid)
    for interpolation in (Interpolation.LINEAR, Interpolation.CUBIC):
        coarse = image.resampled(grid.resampled(4.3), interpolation)
        assert float(coarse.data[1:-1, 1:-1, 1:-1].abs().max()) < 0.01


def test_smooth_content_keeps_its_place_and_size_on_a_coarser_grid() -> None:
    grid = Grid((60, 56, 52), (1.0, 1.1, 1.2), direction=tuple(rotation((0.2, 0.1, -0.3)).ravel()))
    image = smooth_image(grid, 3, wavelength=60.0)
    coarse = image.resampled(grid.resampled(2.6))
    expected = smooth_image(grid.resampled(2.6), 3, wavelength=60.0)
    inner = (slice(2, -2),) * 3
    assert float((coarse.data - expected.data)[inner].abs().max()) < 30


def test_outside_lies_the_background_of_the_modality() -> None:
    grid = Grid((4, 4, 4))
    far = Grid((4, 4, 4), origin=(100, 0, 0))
    data = torch.full(grid.shape, 7.0)
    data[0, 0, 0] = -3.0
    assert (Image(data, grid, modality="CT").resampled(far).data == -1024).all()
    assert (Image(data, grid, modality="MR").resampled(far).data == -3).all()
    assert (Image(data, grid).resampled(far, default=5.0).data == 5).all()


def test_data_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Image(torch.zeros(3, 4, 5), Grid((3, 4, 5)))


def test_the_tensor_of_a_volume_has_batch_and_channel() -> None:
    image = noise_image(Grid((3, 4, 5)), 0)
    assert image.tensor().shape == (1, 1, 5, 4, 3)
    assert image.with_data(image.data + 1).grid is image.grid
