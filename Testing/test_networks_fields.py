"""Fields inside networks: they mean what they mean in the solvers, and resolutions agree for any size."""

from __future__ import annotations

import pytest
import torch

from SAMRegistrationLib.networks import fields
from SAMRegistrationLib.solvers import ops

SHAPE = (7, 9, 11)


@pytest.fixture
def random_field() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.interpolate(
        2.0 * torch.randn((1, 3, 3, 3, 3), generator=generator), size=SHAPE, mode="trilinear"
    )


def test_warping_is_that_of_the_solvers(random_field):
    volume = torch.rand(1, 2, *SHAPE)
    torch.testing.assert_close(fields.warp(volume, random_field), ops.warp(volume, random_field))


def test_composition_is_that_of_the_solvers(random_field):
    other = random_field.flip(2)
    torch.testing.assert_close(fields.compose(random_field, other), ops.compose(random_field, other))


def test_integration_is_that_of_the_solvers(random_field):
    torch.testing.assert_close(fields.integrate_velocity(random_field), ops.integrate_velocity(random_field))


def test_every_volume_of_a_batch_is_warped_by_its_own_field(random_field):
    volumes = torch.rand(2, 1, *SHAPE)
    both = torch.cat((random_field, -random_field))
    warped = fields.warp(volumes, both)
    for number in range(2):
        alone = fields.warp(volumes[number, None], both[number, None])
        torch.testing.assert_close(warped[number, None], alone)


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 10)])
def test_a_linear_field_survives_enlargement_in_voxels_of_the_fine_grid(size):
    fine = 0.1 * fields.identity_positions(size)
    coarse = fields.coarsen(fine, 2) / 2.0
    again = fields.enlarge_field(coarse, 2, size)
    assert again.shape == fine.shape
    torch.testing.assert_close(again[..., 2:5, 2:5, 2:5], fine[..., 2:5, 2:5, 2:5])


def test_coarsening_takes_the_mean_of_what_a_coarse_voxel_covers():
    volume = torch.arange(6.0).view(1, 1, 1, 1, 6).expand(1, 1, 2, 2, 6)
    assert fields.coarsen(volume, 2).flatten().tolist() == [0.5, 2.5, 4.5]


def test_padding_keeps_indices_and_continues_the_border():
    volume = torch.rand(1, 1, 3, 4, 5)
    padded = fields.pad_to_multiple(volume, 4)
    assert padded.shape == (1, 1, 4, 4, 8)
    assert torch.equal(fields.crop(padded, (3, 4, 5)), volume)
    assert torch.equal(padded[..., 0, 0, 7], volume[..., 0, 0, 4])
