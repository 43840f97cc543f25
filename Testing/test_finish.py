"""The end of a registration: how good its map is, said from as many voxels as it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from SAMRegistrationLib import finish
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.transforms import AffineTransform

SHAPE = (20, 22, 24)


def volumes() -> tuple[Image, Image]:
    """A smooth volume, and the same one shifted by two voxels along x with some noise."""
    generator = np.random.default_rng(3)
    values = gaussian_filter(generator.normal(size=SHAPE), 2.0) * 500
    moved = np.roll(values, 2, axis=2) + generator.normal(size=SHAPE)
    grid = Grid(SHAPE[::-1], (2.0, 2.0, 2.0))
    fixed, moving = (Image(torch.from_numpy(array.astype(np.float32)), grid) for array in (values, moved))
    return fixed, moving


def test_similarity_is_that_of_every_second_voxel_where_a_volume_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving = volumes()
    shift = AffineTransform.translation((4.0, 0.0, 0.0))
    whole = finish.judged(shift, (fixed, moving), torch.device("cpu"))
    monkeypatch.setattr(finish, "MOST_VOXELS_COMPARED", 1400)
    thinned = finish.judged(shift, (fixed, moving), torch.device("cpu"))
    first, second = (image.data.numpy()[::2, ::2, ::2] for image in (fixed, moving))
    before = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    after = np.corrcoef(first[..., :-1].ravel(), second[..., 1:].ravel())[0, 1]
    assert thinned["similarity_before"]["normalized_cross_correlation"] == pytest.approx(before, abs=1e-5)
    assert thinned["similarity_after"]["normalized_cross_correlation"] == pytest.approx(after, abs=1e-5)
    assert thinned["field"] == whole["field"], "folds are looked for in every voxel"
    assert whole["similarity_after"]["overlap"] == pytest.approx(22 / 24)
