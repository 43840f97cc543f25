"""What a region of interest holds: its own grid, both volumes on it, and where its loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..field import DisplacementField, displacement_on
from ..grid import Grid
from ..image import Image
from ..roi import RegionOfInterest
from ..sampling import Interpolation, linear_map
from ..transforms import Transform

MOST_BOX_VOXELS = 72**3
"""Larger boxes are worked on at a coarser spacing, so that no box takes much longer than one of 64 cubed."""

LEAST_BOX_VOXELS = 3
"""Along every axis of a box: below, there is nothing to compare."""

_PARALLEL = 0.999
_WHOLE_MARGIN_VOXELS = 1


@dataclass(frozen=True, eq=False)
class RegionPair:
    """Both volumes on the grid of a region.

    Args:
        grid: of the region, the box and its margin; along the axes of the box.
        fixed: (1, 1, z, y, x) values.
        moving: (1, 1, z, y, x) values of the moving volume under the accepted map.
        weight: (1, 1, z, y, x), 1 in the box where both volumes have data, else 0.
        window: (1, 1, z, y, x) by which a displacement is multiplied: 1 in the box, 0 at the edge of the margin.
    """

    grid: Grid
    fixed: Tensor
    moving: Tensor
    weight: Tensor
    window: Tensor

    def patch(self, displacement: Tensor) -> DisplacementField:
        """A displacement in mm along the grid's axes as a field of the world."""
        return DisplacementField(linear_map(self.grid.axes, displacement[0].float())[None].cpu(), self.grid)


def region_grid(region: RegionOfInterest, margin: float, fixed: Grid, most_voxels: int = MOST_BOX_VOXELS) -> Grid:
    """The grid that a region is worked on: no larger than the box and its margin, no finer than the fixed volume.

    A box along the fixed volume's axes gets voxels of that volume, so that its values need no interpolation; a
    turned box gets a grid of its own, so that the cost follows the box.

    Args:
        region: the box.
        margin: mm around it in which the displacement dies away.
        fixed: the fixed volume's grid.
        most_voxels: of the box.
    """
    cosines = fixed.axes.T @ region.axes
    if np.abs(cosines).max(axis=0).min() > _PARALLEL:
        corners = fixed.to_voxel(region.grown(margin).corners())
        lower = np.floor(corners.min(axis=0) + 1e-6).astype(int) - 1
        upper = np.ceil(corners.max(axis=0) - 1e-6).astype(int) + 2
        grid = fixed.cropped(lower.tolist(), upper.tolist())
    else:
        spacing = np.linalg.norm(cosines * np.asarray(fixed.spacing)[:, None], axis=0)
        size = np.ceil(2 * (region.half_size + margin) / spacing).astype(int) + 3
        origin = region.center - region.axes @ ((size - 1) / 2 * spacing)
        grid = Grid(tuple(size.tolist()), tuple(spacing), tuple(origin), tuple(region.axes.ravel()))
    return _not_too_fine(grid, region.volume, most_voxels)


def whole_grid(fixed: Grid, most_voxels: int) -> Grid:
    """The grid for a whole fixed volume, a voxel larger on every side."""
    grid = _not_too_fine(fixed, float(np.prod(fixed.extent)), most_voxels)
    return grid.padded(_WHOLE_MARGIN_VOXELS)


def region_pair(
    fixed: Image,
    moving: Image,
    accepted: Transform,
    grid: Grid,
    inside: Tensor,
    window: Tensor,
    device: torch.device | str = "cpu",
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
) -> RegionPair:
    """Sample both volumes on the grid of a region.

    Args:
        fixed: the fixed volume.
        moving: the moving volume.
        accepted: from fixed to moving world, the map to be refined.
        grid: of the region.
        inside: (z, y, x) bool on that grid, where the loss counts if both volumes have data there.
        window: (z, y, x) on that grid, see `RegionPair`.
        device: where to work.
        fixed_mask: (z, y, x) bool on the fixed volume's grid, where the loss counts.
        moving_mask: (z, y, x) bool on the moving volume's grid, where that is usable.

    Raises:
        InputError: if there is no such place, or nothing is to be seen there.
    """
    fixed_values = _on_grid(fixed, grid)
    # Accepted maps lie on the CPU, whatever the device is.
    field = displacement_on(accepted, grid).to(device)
    moving_values = field.warp(_not_finer(moving, grid).to(device), default=float("nan")).data
    fixed_values = fixed_values.to(device)
    counted = inside.to(device) & ~torch.isnan(fixed_values)
    if not bool(counted.any()):
        raise InputError("the region of interest lies outside the fixed volume")
    counted &= ~torch.isnan(moving_values)
    if fixed_mask is not None:
        usable = _cropped(fixed.with_data(fixed_mask.float()), grid)
        counted &= usable.resampled(grid, Interpolation.NEAREST, default=0).data.to(device) > 0
    if moving_mask is not None:
        usable = moving.with_data(moving_mask.float()).to(device)
        counted &= field.warp(usable, Interpolation.NEAREST, default=0).data > 0
    if not bool(counted.any()):
        raise InputError(
            "the region of interest lies outside the overlap: the other volume has no usable data there"
        )
    if (
        float(fixed_values[counted].std(unbiased=False)) == 0
        or float(moving_values[counted].std(unbiased=False)) == 0
    ):
        raise InputError("the region of interest shows nothing but one value, so there is nothing to align in it")
    return RegionPair(
        grid,
        torch.nan_to_num(fixed_values, nan=fixed.background)[None, None],
        torch.nan_to_num(moving_values, nan=moving.background)[None, None],
        counted[None, None].float(),
        window[None, None].to(device),
    )


def box_on(region: RegionOfInterest, margin: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """Which voxels of a grid lie in a box, and the window about it: (z, y, x) bool and float32.

    Raises:
        InputError: if the box holds too few voxels.
    """
    inside = region.mask(grid)
    extent = [inside.any(dim=first).any(dim=second).sum() for first, second in ((2, 1), (2, 0), (1, 0))]
    if min(int(count) for count in extent) < LEAST_BOX_VOXELS:
        sides = " x ".join(f"{2 * side:.1f}" for side in region.half_size)
        raise InputError(
            f"the region of interest of {sides} mm is too small: it must hold at least {LEAST_BOX_VOXELS} voxels "
            "of the fixed volume along each side"
        )
    return inside, region.weight(grid, margin)


def _on_grid(fixed: Image, grid: Grid) -> Tensor:
    """The fixed volume's values (z, y, x) on a grid, NaN outside the volume; only voxels near it are touched."""
    near = _cropped(fixed, grid)
    return near.resampled(grid, default=float("nan")).data


def _cropped(image: Image, grid: Grid) -> Image:
    """The part of a volume around another grid, a few voxels larger."""
    corners = image.grid.to_voxel(grid.corners())
    size = np.asarray(image.grid.size)
    lower = np.clip(np.floor(corners.min(axis=0)).astype(int) - 4, 0, size - 1)
    upper = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 5, lower + 1, size)
    x, y, z = (slice(first, last) for first, last in zip(lower.tolist(), upper.tolist(), strict=True))
    return Image(
        image.data[z, y, x], image.grid.cropped(lower.tolist(), upper.tolist()), image.pixel_type, image.modality
    )


def _not_finer(moving: Image, grid: Grid) -> Image:
    """The moving volume at about the spacing of a grid where it is much finer, so that nothing is aliased."""
    coarsest = min(grid.spacing)
    spacing = [max(own, coarsest) for own in moving.grid.spacing]
    if all(wanted < 1.3 * own for wanted, own in zip(spacing, moving.grid.spacing, strict=True)):
        return moving
    return moving.resampled(moving.grid.resampled(spacing))


def _not_too_fine(grid: Grid, volume: float, most_voxels: int) -> Grid:
    coarser: Sequence[float] = grid.spacing
    smallest = (volume / most_voxels) ** (1 / 3)
    if np.prod(coarser) * most_voxels >= volume:
        return grid
    return grid.resampled([max(own, smallest) for own in coarser])
