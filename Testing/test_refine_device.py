"""A refinement stays on one device: a GPU would refuse to mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from SAMRegistrationLib import AffineTransform, Grid, Image
from SAMRegistrationLib.methods.region_optimization import RegionSettings, Similarity, optimize_displacement
from SAMRegistrationLib.methods.region_volumes import box_on, region_grid, region_pair
from SAMRegistrationLib.roi import RegionOfInterest
from Testing.other_device import other_device

MARGIN_MM = 10.0


@pytest.mark.parametrize("similarity", [Similarity.MSE, Similarity.LNCC, Similarity.MIND])
def test_a_region_is_optimized_on_the_device_as_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, similarity: Similarity
) -> None:
    grid = Grid((40, 40, 40), (2.0,) * 3)
    noise = torch.randn(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    values = functional.avg_pool3d(noise, 5, 1, 2)[0, 0] * 1000
    fixed, moving = (Image(each, grid, "int16", "CT") for each in (values, values.roll(1, 0)))
    box = RegionOfInterest(np.full(3, 39.0), np.full(3, 22.0))

    def losses(device: torch.device) -> list[float]:
        region = region_grid(box, MARGIN_MM, grid)
        inside, window = box_on(box, MARGIN_MM, region)
        pair = region_pair(fixed, moving, AffineTransform(), region, inside, window, device)
        return optimize_displacement(pair, RegionSettings(similarity, 4)).losses

    expected = losses(torch.device("cpu"))
    with other_device(monkeypatch) as device:
        assert losses(device) == pytest.approx(expected, rel=1e-3)
