"""Every network can learn: it finds the known deformation of a pair when it is trained on that pair alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_cases import CASES, NetworkCase, Pair, deformed_pair, textured_pair
from torch import Tensor
from torch.nn import functional

from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.networks.fields import coarsen, warp

SIZE = (20, 24, 24)
MOTION = 2.0
RATE = 5e-3
ITERATIONS = {"voxelmorph": 120, "sam-voxelmorph": 120, "residual-u-net": 120, "lapirn": 80, "rwcnet": 40}
"""Per stage."""


def test_a_network_finds_the_deformation_of_smooth_noise():
    pair = textured_pair(SIZE, motion=MOTION)
    assert error_after_learning(CASES["residual-u-net"], pair) < 1.0


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [*ITERATIONS, "voxelmorph, diffeomorphic", "lapirn, diffeomorphic"])
def test_every_network_finds_the_deformation_of_a_real_volume(name, data_dir):
    pair = deformed_pair(chest(data_dir), MOTION)
    assert pair.error(torch.zeros_like(pair.truth)) > 1.5
    assert error_after_learning(CASES[name], pair) < 1.0


def chest(data_dir: Path) -> Tensor:
    """Part of a chest CT in voxels of about 8 mm, values from 0 to 1."""
    values = read_image(data_dir / "thorax" / "lidc0405.nii.gz").tensor()
    shape = [4 * size for size in SIZE]
    start = [(size - length) // 2 for size, length in zip(values.shape[2:], shape, strict=True)]
    z, y, x = (slice(first, first + length) for first, length in zip(start, shape, strict=True))
    return coarsen(((values[:, :, z, y, x] + 1000) / 1400).clamp(0, 1), 4)


def error_after_learning(case: NetworkCase, pair: Pair) -> float:
    """Mean distance in voxels from the true field, after training stage by stage without knowing it."""
    network = case.build().train()
    for stage in range(network.stages):
        network.use_stages(stage)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=RATE)
        for _ in range(ITERATIONS[case.name]):
            field = network(*pair.inputs_of(network))[-1 if stage == network.stages - 1 else stage]
            optimizer.zero_grad()
            dissimilarity(pair, field).backward()
            optimizer.step()
    return pair.error(field.detach())


def dissimilarity(pair: Pair, field: Tensor) -> Tensor:
    """Squared difference after warping, at the field's resolution, and its roughness."""
    stride = round(pair.fixed.shape[2] / field.shape[2])
    fixed, moving = coarsen(pair.fixed, stride), coarsen(pair.moving, stride)
    roughness = sum(field.diff(dim=axis).square().mean() for axis in (2, 3, 4))
    return 20.0 * functional.mse_loss(warp(moving, field), fixed) + 0.1 * roughness
