"""What a training run shows of a pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...networks.fields import warp
from ...solvers.ops import upsample
from .pairs import Pair


def middle_slices(pair: Pair, field: Tensor) -> Tensor:
    """Fixed, moving, warped volume and the difference that is left, side by side: (1, h, w) from 0 to 1.

    The upper row is the middle axial slice, the lower one the middle coronal slice.
    """
    shape = tuple(pair.fixed.shape[2:])
    warped = warp(pair.moving, upsample(field.float(), shape))
    volumes = [(volume + 1) / 2 for volume in (pair.fixed, pair.moving, warped)]
    volumes.append((volumes[0] - volumes[2]).abs())
    axial = torch.cat([volume[0, 0, shape[0] // 2] for volume in volumes], dim=1)
    coronal = torch.cat([volume[0, 0, :, shape[1] // 2].flip(0) for volume in volumes], dim=1)
    width = max(axial.shape[1], coronal.shape[1])
    rows = [functional.pad(part, (0, width - part.shape[1])) for part in (axial, coronal)]
    return torch.cat(rows)[None].clamp(0, 1).cpu()
