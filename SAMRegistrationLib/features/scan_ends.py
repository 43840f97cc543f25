"""Where a scan ends although the body does not, and what an embedding network is given beyond.

A body that ends in air is a landmark to a network, but says where the scan ends, not where in the body. Therefore
its outermost slices are repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..networks.sam_lite import preprocess_ct

_EMPTY, _LIKE_TISSUE = 0.05, 0.6
"""Darker than so much of the brightest voxel of an end, or beyond it of the usual one, is air."""

_BLURRED_SLICES = 2
_EMPTIER = 0.25
_SLICES_INSIDE = 5
_ABRUPT = 0.75
"""A scan, and not the body, ends where a slice shows at most a quarter of the third one from it, and that most of
what lies further inside."""


def continue_beyond_ends(volume: Tensor, first: int, means: Sequence[float], air: float) -> None:
    """Repeat the outermost slices of a body beyond the ends of its scan, in place.

    Args:
        volume: (1, 1, z, y, x), a network's input, with the scan somewhere between slices of air.
        first: the scan's first slice.
        means: of every slice of the scan, above air.
        air: the value of nothing.
    """
    lower, upper = shown_slices(means)
    below, above = (_BLURRED_SLICES * masked for masked in (lower > 0, upper < len(means) - 1))
    start, stop = first + lower, first + upper + 1
    _continue(volume, start, slice(start - below, start), slice(0, start - below), air)
    _continue(volume, stop - 1, slice(stop, stop + above), slice(stop + above, None), air)


def shown_part(volume: Tensor) -> tuple[int, int]:
    """The first and the last slice of a CT volume (1, 1, z, y, x), in HU, that show the body in full."""
    return shown_slices(preprocess_ct(volume[..., ::2, ::2]).mean(dim=(0, 1, 3, 4)).tolist())


def shown_slices(means: Sequence[float]) -> tuple[int, int]:
    """The first and the last slice that show the body in full, from the mean of every slice above air.

    A scan masked to its treated part has slices beyond its ends that are empty but for a table or a contoured
    organ, and half of one where it was resampled.
    """
    return _cut_off(means), len(means) - 1 - _cut_off(means[::-1])


def _cut_off(means: Sequence[float]) -> int:
    """The first slice after an end that is none of the body; 0 where there is no such end."""
    inside = _BLURRED_SLICES + 1
    for z in reversed(range(len(means) // 2 - inside - _SLICES_INSIDE)):
        full = means[z + inside]
        if means[z] <= _EMPTIER * full and full >= _ABRUPT * means[z + inside + _SLICES_INSIDE] > 0:
            return z + inside
    return 0


def _continue(volume: Tensor, end: int, blurred: slice, beyond: slice, air: float) -> None:
    """Repeat slice `end` over blurred slices and, where a mask leaves no organ, in those beyond."""
    source, outer = volume[:, :, end : end + 1], volume[:, :, beyond]
    tissue = source.float() - air
    body = tissue > _EMPTY * tissue.amax()
    usual = (tissue * body).sum() / body.sum().clamp(min=1)
    outer.copy_(torch.where(outer > air + _LIKE_TISSUE * usual, outer, source))
    volume[:, :, blurred] = source
