"""Grey values against their surroundings, and a term that compares them at full resolution.

Local normalized cross-correlation of a window is one less half the mean squared difference of its two sides, each
less its mean and divided by its standard deviation. Here every voxel is so standardized by the window around it,
once in the fixed and once in the undeformed moving volume. What is left of local correlation is a squared
difference that may be looked at in a few voxels at a time, at a fraction of its price.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.field_state import FieldState
from SAMRegistrationLib.solvers.filters import box_counts, box_sum
from SAMRegistrationLib.solvers.look import Looks
from SAMRegistrationLib.solvers.table_sampling import sample_table

RADIUS = 2
"""Half width of the windows in voxels."""

FLAT = 0.05
"""Standard deviation of a window, as a share of the whole volume's, that counts as noise: some 20 HU of a CT."""

_CORNERS = tuple(product((0, 1), repeat=3))


def local_contrast(volume: torch.Tensor, radius: int = RADIUS, flat: float = FLAT) -> torch.Tensor:
    """Every voxel less the mean of the window around it, in standard deviations of that window.

    Args:
        volume: (1, 1, z, y, x) float32, any unit.
        radius: half width of the windows in voxels.
        flat: is added to every window's variance as a square, in standard deviations of the whole volume.

    Returns:
        (1, 1, z, y, x), near 0 where there is no structure.
    """
    values = volume - volume.mean()
    values /= values.std().clamp(min=1e-9)
    count = box_counts(values, radius)
    mean = box_sum(values, radius).div_(count)
    variance = box_sum(values.square(), radius).div_(count).addcmul_(mean, mean, value=-1.0).clamp_(min=0.0)
    return values.sub_(mean).div_(variance.add_(flat**2).sqrt_())


class LocalContrastTerm:
    """Half the mean squared difference of the local contrast of the fixed and of the moving volume at x + u(x).

    For volumes whose grey values mean the same up to shading: where one is bright and the other dark it pulls
    apart what belongs together. A field voxel stands for the eight voxels inside it, which move along with it.

    Args:
        fixed: (1, 1, 2 z, 2 y, 2 x) grey values at twice the resolution of the field. No gradient.
        moving: the same shape.
        weight: of the term.
        voxel_weight: (1, 1, z, y, x), not negative, on the field grid.
        lattice: step of the field voxels that an iteration looks at, see `FeatureTerm`.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        weight: float = 1.0,
        *,
        voxel_weight: torch.Tensor | None = None,
        lattice: int = 2,
    ) -> None:
        self.weight = weight
        self._fixed = _neighbor_table(local_contrast(fixed), 2)
        self._moving = _neighbor_table(local_contrast(moving), 1)
        self._moving_shape = tuple(moving.shape[2:])
        self._looks = Looks([n // 2 for n in fixed.shape[2:]], lattice, voxel_weight, fixed.device)
        self.period = self._looks.period

    def __call__(self, state: FieldState) -> torch.Tensor:
        look = self._looks.at(state.iteration)
        moving = sample_table(self._moving, self._moving_shape, 2.0 * self._looks.displaced(state, look))
        cost = 0.5 * (moving - self._fixed.index_select(0, look.rows)).square().mean(1)
        weights = self._looks.weights(look.rows)
        # A mean over those without weight too: leaving them out must not raise the weight of the rest.
        return (cost if weights is None else cost * weights).sum() / look.count


def _neighbor_table(volume: torch.Tensor, step: int) -> torch.Tensor:
    """Every step-th voxel of (1, 1, z, y, x) with those next to it toward the far end: a row (8,) for each."""
    depth, height, width = volume.shape[2:]
    padded = F.pad(volume, [0, 1] * 3, mode="replicate")[0, 0]
    first = padded[:depth:step, :height:step, :width:step]
    table = volume.new_empty((*first.shape, len(_CORNERS)))
    for column, (z, y, x) in enumerate(_CORNERS):
        table[..., column] = padded[z : z + depth : step, y : y + height : step, x : x + width : step]
    return table.flatten(0, 2)
