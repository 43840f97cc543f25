"""Changes of a CT's appearance that leave every structure where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..image import Image
from ..resampling import smooth

SOFT_TISSUE_HU = (0.0, 40.0, 200.0, 320.0)
"""Contrast agent changes tissue fully between the inner two values and not at all beyond the outer two."""

_NOISE_CORRELATION = 0.6


def contrast_phase(image: Image, seed: int, change_hu: float = 80.0, scale_mm: float = 25.0) -> Image:
    """Another phase of contrast agent: organs and vessels brighter here and darker there, smoothly in between.

    Args:
        image: a CT.
        seed: decides where.
        change_hu: the largest change of soft tissue; fat, air and bone keep their values.
        scale_mm: standard deviation of the Gaussian that the random map of changes is smoothed with.
    """
    low, full_from, full_to, high = SOFT_TISSUE_HU
    values = smooth(image.tensor(), [1.0] * 3)
    tissue = ((values - low) / (full_from - low)).clamp(0, 1) * ((high - values) / (high - full_to)).clamp(0, 1)
    change = tissue * _smooth_map(image, seed, scale_mm)
    return _changed(image, change * (change_hu / change.abs().max().clamp(min=1e-6)))


def noise(image: Image, seed: int, sigma_hu: float = 20.0) -> Image:
    """Gaussian noise of the given standard deviation, correlated between neighbors of an axial slice as in CT."""
    white = _random(image, seed)
    correlated = smooth(white, [_NOISE_CORRELATION, _NOISE_CORRELATION, 0.0])
    return _changed(image, correlated * (sigma_hu / correlated.std()))


def shading(image: Image, seed: int, strength_hu: float = 120.0, scale_mm: float = 60.0) -> Image:
    """The uneven brightness of cone-beam CT: darker toward the middle (cupping), with broad blotches.

    Args:
        image: a CT.
        seed: decides where the blotches lie.
        strength_hu: difference of the cup's middle and rim, and twice the largest blotch; the body's mean stays.
        scale_mm: standard deviation of the Gaussian that the blotches are smoothed with.
    """
    body = image.tensor() > -500
    cup = smooth(body.to(image.data.dtype), [scale_mm / own for own in image.grid.spacing])
    deep, shallow = (torch.quantile(cup[body][::16], share) for share in (0.98, 0.02))
    blotches = _smooth_map(image, seed, scale_mm)
    change = (cup[body].mean() - cup) / (deep - shallow).clamp(min=1e-6) + 0.5 * (blotches - blotches[body].mean())
    share = body * change
    return _changed(image, strength_hu * smooth(share, [1.0] * 3))


def thick_slices(image: Image, thickness_mm: float = 5.0) -> Image:
    """The volume on a grid of thick slices, each an average over about its thickness."""
    x, y, z = image.grid.spacing
    return image.resampled(image.grid.resampled((x, y, max(z, thickness_mm))))


def crop_field_of_view(image: Image, seed: int, keep: float = 0.6, axis: int = 2) -> Image:
    """The part `keep` of the volume along grid axis `axis`, at one of its two ends, as a shorter scan shows it."""
    kept = max(1, round(keep * image.grid.size[axis]))
    at_end = bool(np.random.default_rng(seed).integers(2))
    lower, upper = [0, 0, 0], list(image.grid.size)
    lower[axis] = image.grid.size[axis] - kept if at_end else 0
    upper[axis] = lower[axis] + kept
    return _cropped(image, lower, upper)


def trim(image: Image, margin_mm: float = 10.0) -> Image:
    """Without the first and last slices (grid z), into which a motion may have brought what no scan has seen."""
    cut = min(int(np.ceil(margin_mm / image.grid.spacing[2])), (image.grid.size[2] - 1) // 2)
    return _cropped(image, [0, 0, cut], [*image.grid.size[:2], image.grid.size[2] - cut])


def _cropped(image: Image, lower: list[int], upper: list[int]) -> Image:
    z, y, x = (slice(lower[axis], upper[axis]) for axis in (2, 1, 0))
    return replace(image, data=image.data[z, y, x].clone(), grid=image.grid.cropped(lower, upper))


def _changed(image: Image, change: Tensor) -> Image:
    """The volume plus (1, 1, z, y, x), within its range; its lowest value, which means nothing known, stays."""
    low, high = float(image.data.min()), float(image.data.max())
    changed = (image.data + change[0, 0]).clamp(low, high)
    return image.with_data(torch.where(image.data == low, image.data, changed))


def _smooth_map(image: Image, seed: int, scale_mm: float) -> Tensor:
    """A smooth random map (1, 1, z, y, x) between -1 and 1."""
    field = smooth(_random(image, seed), [scale_mm / own for own in image.grid.spacing])
    return field / field.abs().max()


def _random(image: Image, seed: int) -> Tensor:
    """Independent normal numbers (1, 1, z, y, x), the same on every machine."""
    white = np.random.default_rng(seed).standard_normal(image.grid.shape, dtype=np.float32)
    return torch.from_numpy(white)[None, None]
