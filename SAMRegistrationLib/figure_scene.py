"""The volumes of a registration, brought onto one upright grid to be looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .field import DisplacementField
from .grid import Grid
from .image import Image
from .sampling import Interpolation

Volume = NDArray[Any]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

SOFT_TISSUE_WINDOW = (-160.0, 240.0)
SOFT_TISSUE_SHARE = 0.6
OUTLIER_REACH = 2.0
"""Values further beyond the quartiles than so many interquartile ranges do not widen the window."""
BODY_THRESHOLD_HU = -300.0
BODY_THRESHOLD_SHARE = 0.15
MARGIN_MM = 12.0
SMALLEST_SHARE_SEEN = 0.05


@dataclass(frozen=True)
class LabelVolumes:
    """Label maps (z, y, x) on the scene's grid, None for one that was not given."""

    fixed: Volume | None
    moving_before: Volume | None
    moving_after: Volume | None


@dataclass(frozen=True)
class Scene:
    """Everything to be shown, as (z, y, x) arrays on the fixed grid stored along L, P, S.

    `fixed`, `before` and `after` (the moving volume as it lay and as it was warped) are scaled so that the window
    is 0 to 1, and NaN where there is no data. `determinant` is that of the Jacobian.
    """

    grid: Grid
    fixed: Volume
    before: Volume
    after: Volume
    determinant: Volume
    body: Mask
    labels: LabelVolumes

    def middle(self) -> tuple[int, int, int]:
        """Voxel (z, y, x) in the middle of the fixed labels, or of the body, as far as there is moving data."""
        shown = ~np.isnan(self.after)
        masks = [self.body & shown, self.body, np.ones_like(self.body)]
        if self.labels.fixed is not None:
            masks = [(self.labels.fixed > 0) & shown, self.labels.fixed > 0, *masks]
        z, y, x = (round(float(along.mean())) for along in np.nonzero(next(mask for mask in masks if mask.any())))
        return z, y, x

    def folded_percent(self) -> float:
        """Percentage of voxels with a determinant of at most 0, without two voxels at the border."""
        return 100 * float((self.determinant[2:-2, 2:-2, 2:-2] <= 0).mean())

    def box(self) -> Box:
        """The part worth showing: the fixed body where there is moving data, with a margin.

        All of the body where hardly any of it has moving data, as after a failed registration.
        """
        seen = self.body & ~np.isnan(self.after)
        mask = seen if seen.sum() > SMALLEST_SHARE_SEEN * self.body.sum() else self.body
        z, y, x = (self._range(mask, axis) for axis in range(3))
        return z, y, x

    def _range(self, mask: Mask, axis: int) -> slice:
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        size, margin = mask.shape[axis], round(MARGIN_MM / self.grid.spacing[2 - axis])
        if not len(occupied):
            return slice(0, size)
        return slice(max(0, int(occupied[0]) - margin), min(size, int(occupied[-1]) + 1 + margin))


def make_scene(
    fixed: Image,
    moving: Image,
    warped: Image,
    displacement: DisplacementField,
    fixed_labels: Image | None = None,
    moving_labels: Image | None = None,
) -> Scene:
    """Bring a registration onto the fixed grid, stored along L, P, S whatever it was.

    Args:
        fixed: the fixed volume.
        moving: the moving volume.
        warped: the moving volume on the fixed grid after registration.
        displacement: the total displacement from fixed to moving.
        fixed_labels: on any grid.
        moving_labels: on any grid.
    """
    upright = fixed.canonical()
    grid = upright.grid
    total = displacement.resampled(grid)
    in_view = ~torch.isnan(total.warp(moving, Interpolation.NEAREST, default=math.nan).data)
    window = _window(moving)
    return Scene(
        grid=grid,
        fixed=_scaled(upright.data, _window(fixed)),
        before=_scaled(moving.resampled(grid, default=math.nan).data, window),
        after=_scaled(torch.where(in_view, warped.canonical().data, math.nan), window),
        determinant=total.jacobian_determinant()[0, 0].cpu().numpy(),
        body=_body(upright),
        labels=LabelVolumes(
            fixed=_on_grid(fixed_labels, grid),
            moving_before=_on_grid(moving_labels, grid),
            moving_after=_warped(moving_labels, total),
        ),
    )


def _body(image: Image) -> Mask:
    values = image.data.cpu().numpy()
    if image.is_ct:
        return values > BODY_THRESHOLD_HU
    low, high = values.min(), np.percentile(values, 99)
    return values > low + BODY_THRESHOLD_SHARE * (high - low)


def _window(image: Image) -> tuple[float, float]:
    """Soft tissue for CT with true Hounsfield units, else the bulk of the values inside the body."""
    inside = image.data.cpu().numpy()[_body(image)]
    if not len(inside):
        return SOFT_TISSUE_WINDOW if image.is_ct else (0.0, 1.0)
    low, high = SOFT_TISSUE_WINDOW
    if image.is_ct and np.mean((inside >= low) & (inside <= high)) >= SOFT_TISSUE_SHARE:
        return low, high
    lowest, first, third, highest = (float(value) for value in np.percentile(inside, (1, 25, 75, 99)))
    reach = OUTLIER_REACH * (third - first)
    low, high = max(lowest, first - reach), min(highest, third + reach)
    return low, max(high, low + 1e-6)


def _scaled(values: torch.Tensor, window: tuple[float, float]) -> Volume:
    low, high = window
    return np.clip((values.cpu().numpy() - low) / (high - low), 0, 1)


def _on_grid(labels: Image | None, grid: Grid) -> Volume | None:
    if labels is None:
        return None
    return labels.resampled(grid, Interpolation.NEAREST, default=0.0).data.cpu().numpy()


def _warped(labels: Image | None, displacement: DisplacementField) -> Volume | None:
    if labels is None:
        return None
    return displacement.warp(labels, Interpolation.NEAREST, default=0.0).data.cpu().numpy()
