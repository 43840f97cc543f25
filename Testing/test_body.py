"""The body mask and the measured region of volumes with known content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from SAMRegistrationLib.body import body_mask, data_region, looks_like_ct, surroundings
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image


def _torso(couch: bool = True) -> tuple[Image, torch.Tensor]:
    """An elliptic cylinder of muscle with two lungs over a thin couch, 4 mm voxels, and the true body."""
    shape = (20, 40, 50)
    y, x = np.meshgrid(np.arange(40), np.arange(50), indexing="ij")
    body = ((x - 24.5) / 18) ** 2 + ((y - 18) / 12) ** 2 < 1
    lungs = (np.hypot(x - 16, y - 18) < 5) | (np.hypot(x - 33, y - 18) < 5)
    plane = np.where(body, 40.0, -1000.0)
    plane[lungs] = -850.0
    if couch:
        plane[34, 5:45] = 200.0
    data = torch.from_numpy(np.broadcast_to(plane, shape).copy()).float()
    return Image(data, Grid((50, 40, 20), (4.0, 4.0, 4.0)), "int16", "CT"), torch.from_numpy(
        np.broadcast_to(body, shape).copy()
    )


def _dice(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_the_body_contains_the_lungs_and_leaves_the_couch_out() -> None:
    image, body = _torso()
    found = body_mask(image)
    assert found.shape == image.data.shape
    assert _dice(found, body) > 0.97
    assert not bool(found[:, 34].any())


def test_the_body_does_not_depend_on_how_the_volume_is_stored() -> None:
    image, _ = _torso()
    grid = image.grid
    flipped = Image(
        image.data.flip(2),
        Grid(
            grid.size,
            grid.spacing,
            tuple(grid.to_world((grid.size[0] - 1, 0, 0))),
            (-1, 0, 0, 0, 1, 0, 0, 0, 1),
        ),
        "int16",
        "CT",
    )
    assert torch.equal(body_mask(flipped).flip(2), body_mask(image))


def test_bright_tissue_of_an_mr_volume_is_found() -> None:
    image, body = _torso(couch=False)
    noise = torch.rand(image.data.shape, generator=torch.Generator().manual_seed(1)) * 30
    scan = Image(torch.where(body, 400.0, 0.0) + noise, image.grid, modality="MR")
    assert _dice(body_mask(scan), body) > 0.97


def test_a_volume_of_one_value_is_body_everywhere() -> None:
    image = Image(torch.zeros(8, 8, 8), Grid((8, 8, 8), (4.0, 4.0, 4.0)), modality="MR")
    assert bool(body_mask(image).all())


def test_a_constant_fill_away_from_the_skin_is_not_data() -> None:
    image, body = _torso(couch=False)
    data = image.data.clone()
    data[:, :, 44:] = -1024.0
    data[:5] = -1024.0
    known = data_region(Image(data, image.grid, "int16", "CT"))
    assert bool(known[body & (data > -1024)].all())
    assert not bool(known[:5].any())
    assert bool(known[10, 2, 10]), "measured air is data"


@pytest.mark.parametrize(
    ("modality", "lowest", "expected"), [("CT", 0, True), (None, -1000, True), (None, 0, False)]
)
def test_a_volume_of_unknown_modality_is_judged_by_its_range(
    modality: str | None, lowest: float, expected: bool
) -> None:
    data = torch.linspace(lowest, 500, 64).view(4, 4, 4)
    assert looks_like_ct(Image(data, Grid((4, 4, 4)), modality=modality)) is expected


def test_two_legs_have_surroundings_though_only_one_of_them_is_the_body() -> None:
    y, x = np.meshgrid(np.arange(40), np.arange(60), indexing="ij")
    left, right = np.hypot(x - 14, y - 16) < 8, np.hypot(x - 44, y - 16) < 7
    plane = np.where(left | right, 40.0, -1000.0)
    plane[36, 5:55] = 200.0
    data = torch.from_numpy(np.broadcast_to(plane, (12, 40, 60)).copy()).float()
    found = surroundings(Image(data, Grid((60, 40, 12), (4.0, 4.0, 4.0)), "int16", "CT")).data > 0.5
    legs = torch.from_numpy(left | right)
    assert bool(found[:, legs].all())
    assert not bool(found[:, 36].any()) and not bool(found[:, 16, 29].any())
