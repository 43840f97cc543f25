"""Metal in a CT: dense inserts, and the streaks that a scanner's reconstruction makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..image import Image

METAL_HU = 3071.0
TISSUE_HU = -200.0

_VIEWS = 120
_SATURATION_MM = 8.0
_METAL_CONTRAST_HU = 15000.0
_DENSE_SHARE = 0.96
_REACH = 10.0
_WORKING_SIZE = 160


def streaks(image: Image, seed: int, inserts: int = 3, radius_mm: float = 5.0) -> Image:
    """Metal balls in the body, and the streaks between and around them.

    In the axial slices that hold metal, parallel rays are cast through the metal alone. What a scanner would miss
    of its absorption, since metal hardens the beam (a ray of length L counts as a shorter one that saturates), is
    reconstructed by filtered backprojection and added: dark bands between inserts, bright ones beside them.

    Args:
        image: a CT whose z axis is the scanner's.
        seed: decides where the inserts lie: close together, around one dense place of the body.
        inserts: how many.
        radius_mm: how large.

    Returns:
        The same volume with metal of 3071 HU and streaks.
    """
    metal = _metal(image, np.random.default_rng(seed), inserts, radius_mm)
    changed = image.data.clone()
    for z in torch.nonzero(metal.any(dim=(1, 2))).flatten().tolist():
        changed[z] += _artifact(metal[z].float(), image.grid.spacing[:2])
    low, high = float(image.data.min()), max(METAL_HU, float(image.data.max()))
    changed = torch.where(image.data == low, image.data, changed.clamp(low, high))
    return image.with_data(torch.where(metal, METAL_HU, changed))


def _metal(image: Image, random: np.random.Generator, inserts: int, radius_mm: float) -> Tensor:
    """(z, y, x) bool: balls at dense places, all within reach of the first one and about as high."""
    limit = max(TISSUE_HU, float(torch.quantile(image.data[::2, ::2, ::2], _DENSE_SHARE)))
    places = image.grid.to_world(torch.nonzero(image.data > limit).flip(1).numpy())
    first = places[int(random.integers(len(places)))]
    apart = np.abs(places - first)
    near = places[(np.hypot(apart[:, 0], apart[:, 1]) < _REACH * radius_mm) & (apart[:, 2] < radius_mm)]
    axes = [torch.from_numpy(np.arange(n) * s) for n, s in zip(image.grid.size, image.grid.spacing, strict=True)]
    metal = torch.zeros(image.grid.shape, dtype=torch.bool)
    for place in [first, *near[random.integers(len(near), size=inserts - 1)]]:
        x, y, z = image.grid.to_voxel(place) * image.grid.spacing
        squared = (axes[2] - z)[:, None, None] ** 2 + (axes[1] - y)[:, None] ** 2 + (axes[0] - x) ** 2
        metal |= squared < radius_mm**2
    return metal & (image.data > TISSUE_HU)


def _artifact(metal: Tensor, spacing: tuple[float, float]) -> Tensor:
    """HU to add to a slice (y, x) with this metal."""
    height, width = metal.shape
    extent = (width * spacing[0], height * spacing[1])
    side = float(np.hypot(*extent))
    pixel = side / _WORKING_SIZE
    square = _recentered(metal[None, None], extent, (side, side), (_WORKING_SIZE, _WORKING_SIZE))
    lengths = _projected(square, pixel)
    missed = _SATURATION_MM * (1 - torch.exp(-lengths / _SATURATION_MM)) - lengths
    artifact = _backprojected(_ramp_filtered(missed, pixel)) * _METAL_CONTRAST_HU
    return _recentered(artifact, (side, side), extent, (height, width))[0, 0]


def _recentered(
    picture: Tensor, own: tuple[float, float], wanted: tuple[float, float], shape: tuple[int, int]
) -> Tensor:
    """A picture (1, 1, y, x) of extent `own` on `shape` pixels of extent `wanted` (x, y) about the same center."""
    theta = torch.tensor([[wanted[0] / own[0], 0.0, 0.0], [0.0, wanted[1] / own[1], 0.0]])
    grid = functional.affine_grid(theta[None], [1, 1, *shape], align_corners=False)
    return functional.grid_sample(picture, grid, align_corners=False)


def _angles() -> Tensor:
    return torch.arange(_VIEWS) * (torch.pi / _VIEWS)


def _projected(picture: Tensor, pixel: float) -> Tensor:
    """Line integrals in mm of (1, 1, n, n) by parallel rays: (views, n)."""
    cosine, sine = _angles().cos(), _angles().sin()
    zero = torch.zeros(_VIEWS)
    theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    pictures = picture.expand(_VIEWS, -1, -1, -1)
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False).sum(dim=2)[:, 0] * pixel


def _ramp_filtered(projections: Tensor, pixel: float) -> Tensor:
    """Projections (views, n) filtered by |frequency|, in 1/mm."""
    count = projections.shape[1]
    frequencies = torch.fft.rfftfreq(2 * count, d=pixel)
    return torch.fft.irfft(torch.fft.rfft(projections, n=2 * count) * frequencies, n=2 * count)[:, :count]


def _backprojected(projections: Tensor) -> Tensor:
    """The sum of filtered projections (views, n) smeared along their rays: (1, 1, n, n)."""
    count = projections.shape[1]
    place = (torch.arange(count) + 0.5) * 2 / count - 1
    cosine, sine = (values.view(-1, 1, 1) for values in (_angles().cos(), _angles().sin()))
    along = place[None, None, :] * cosine + place[None, :, None] * sine
    grid = torch.stack([along, torch.zeros_like(along)], dim=-1)
    smeared = functional.grid_sample(projections[:, None, None], grid, align_corners=False)
    return smeared.sum(dim=0, keepdim=True) * (torch.pi / _VIEWS)
