"""A region of interest: an oriented box in world space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .errors import InputError
from .grid import Grid
from .markups import MARKUPS_SUFFIXES, control_point, markup_factors, numbers, read_markups, write_markup
from .sampling import slabs, voxel_mesh

_TOLERANCE = 1e-3  # mm; a voxel center on the face of the box is inside


@dataclass(frozen=True, eq=False)
class RegionOfInterest:
    """An oriented box.

    Args:
        center: (3,) world position, LPS mm.
        half_size: (3,) half the side lengths in mm along the box's own axes.
        axes: 3x3, whose columns are the unit directions of the box's axes in the world.

    Raises:
        ValueError: if a side is not positive, a number not finite or the axes are not orthonormal.
    """

    center: NDArray[np.float64]
    half_size: NDArray[np.float64]
    axes: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    def __post_init__(self) -> None:
        for name, shape in (("center", (3,)), ("half_size", (3,)), ("axes", (3, 3))):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"the {name} of a region must be finite numbers of shape {shape}")
            object.__setattr__(self, name, values)
        if self.half_size.min() <= 0:
            raise ValueError("the sides of a region must be positive")
        if not np.allclose(self.axes.T @ self.axes, np.eye(3), atol=1e-3):
            raise ValueError("the axes of a region must be orthonormal")

    @classmethod
    def from_corners(cls, first: ArrayLike, second: ArrayLike) -> RegionOfInterest:
        """The box along the world axes between two opposite corners (LPS mm, in any order)."""
        first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
        return cls((first + second) / 2, np.abs(second - first) / 2)

    @classmethod
    def from_grid(cls, grid: Grid) -> RegionOfInterest:
        """The box that a grid covers, from outer voxel edge to outer voxel edge."""
        return cls(grid.center, np.asarray(grid.extent) / 2, grid.axes)

    @property
    def volume(self) -> float:
        """Cubic mm."""
        return float(np.prod(2 * self.half_size))

    def corners(self) -> NDArray[np.float64]:
        """World positions (8, 3) of the corners."""
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(-1, 3)
        return self.center + (signs * self.half_size) @ self.axes.T

    def contains(self, world_points: ArrayLike) -> NDArray[np.bool_]:
        """Which of the world positions (..., 3) lie inside, faces included."""
        own = (np.asarray(world_points, dtype=np.float64) - self.center) @ self.axes
        return np.all(np.abs(own) <= self.half_size + _TOLERANCE, axis=-1)

    def grown(self, margin: float) -> RegionOfInterest:
        """The box with `margin` mm more on every side, less if negative.

        Raises:
            ValueError: if nothing would be left.
        """
        return replace(self, half_size=self.half_size + margin)

    def mask(self, grid: Grid, device: torch.device | str = "cpu") -> Tensor:
        """Whether the center of each voxel lies inside: (z, y, x), bool."""
        return self._per_voxel(grid, device, lambda outside: (outside <= _TOLERANCE).all(dim=0))

    def weight(self, grid: Grid, margin: float, device: torch.device | str = "cpu") -> Tensor:
        """A smooth weight per voxel, (z, y, x) float32: 1 inside, falling to 0 at `margin` mm outside.

        The fall is half a cosine of the distance to the box, so that the weight has no kink on either side.

        Raises:
            ValueError: if the margin is not positive.
        """
        if margin <= 0:
            raise ValueError("the margin of a smooth weight must be positive")

        def falling(outside: Tensor) -> Tensor:
            distance = outside.clamp_(min=0).square_().sum(dim=0).sqrt_()
            return 0.5 + 0.5 * torch.cos(torch.pi * (distance / margin).clamp_(max=1))

        return self._per_voxel(grid, device, falling)

    def _per_voxel(self, grid: Grid, device: torch.device | str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of how far, in mm along each own axis, the voxel centers lie beyond the faces: (z, y, x)."""
        world_to_own = np.eye(4)
        world_to_own[:3, :3] = self.axes.T
        world_to_own[:3, 3] = -self.axes.T @ self.center
        half_size = torch.tensor(self.half_size, dtype=torch.float32, device=device).view(3, 1, 1, 1)
        parts = []
        for slab in slabs(grid.shape, device):
            own = voxel_mesh(grid.shape, world_to_own @ grid.voxel_to_world, device, slab)
            parts.append(function(own.abs_() - half_size))
        return torch.cat(parts)

    def overlap(self, grid: Grid) -> float:
        """The fraction of this box's volume that lies inside the grid's box (by sampling, to about 1 %)."""
        box = Grid((1, 1, 1), tuple(2 * self.half_size), tuple(self.center), tuple(self.axes.ravel()))
        return box.overlap(grid)

    def voxel_box(self, grid: Grid, margin: float = 0.0) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest voxel index box of the grid around this box and a margin in mm, as (lower, upper).

        `lower` belongs to it, `upper` does not, as in `Grid.cropped`; it never reaches outside the grid. Where the
        boxes do not overlap, it is empty (some upper <= lower).
        """
        corners = grid.to_voxel(self.grown(margin).corners())
        lower = np.ceil(corners.min(axis=0) - 0.5 - 1e-6).astype(int)
        upper = np.floor(corners.max(axis=0) + 0.5 + 1e-6).astype(int) + 1
        size = np.asarray(grid.size)
        return tuple(np.clip(lower, 0, size).tolist()), tuple(np.clip(upper, 0, size).tolist())


def require_overlap(roi: RegionOfInterest, grid: Grid, what: str = "the fixed image") -> None:
    """Check that a region and an image have some place in common.

    Raises:
        InputError: if not.
    """
    if roi.overlap(grid) == 0 and not roi.mask(grid).any():
        center = ", ".join(f"{value:.0f}" for value in roi.center)
        raise InputError(f"the region of interest around ({center}) mm LPS lies outside {what}")


def read_roi(source: str | Path) -> RegionOfInterest:
    """A region from a Slicer ROI markup (.mrk.json) or from the text "x0,y0,z0,x1,y1,z1" (LPS mm).

    Raises:
        InputError: if the file is missing or holds no ROI, or the text is no box.
    """
    text = str(source)
    if "," in text and not text.lower().endswith(".json"):
        return _from_text(text)
    path = Path(source)
    if path.is_file() and not path.name.lower().endswith(MARKUPS_SUFFIXES):
        raise InputError(f"{path} is not an ROI file: use Slicer .mrk.json, or x0,y0,z0,x1,y1,z1 in LPS mm")
    rois = [markup for markup in read_markups(path) if markup.get("type") == "ROI"]
    if len(rois) != 1:
        raise InputError(f"{path} holds {len(rois)} ROIs; one is needed")
    return _from_markup(rois[0], path)


def write_roi(roi: RegionOfInterest, path: str | Path, name: str = "ROI") -> None:
    """Write a region as a Slicer ROI markup in LPS, complete or not at all.

    Raises:
        InputError: if the name does not end in .mrk.json or the place cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith(MARKUPS_SUFFIXES):
        raise InputError(f"cannot write {path}: the name of an ROI file must end in .mrk.json")
    properties = {
        "roiType": "Box",
        "center": roi.center.tolist(),
        "orientation": roi.axes.ravel().tolist(),
        "size": (2 * roi.half_size).tolist(),
        "insideOut": False,
    }
    write_markup(path, "ROI", [control_point(1, f"{name}-1", roi.center)], properties)


def _from_text(text: str) -> RegionOfInterest:
    try:
        values = [float(part) for part in text.split(",")]
        if len(values) != 6:
            raise ValueError("six numbers are needed")
        return RegionOfInterest.from_corners(values[:3], values[3:])
    except ValueError as error:
        raise InputError(
            f"the region {text} is not a box: give x0,y0,z0,x1,y1,z1 in LPS mm with x0 < x1, y0 < y1, z0 < z1"
        ) from error


def _from_markup(markup: dict[str, Any], path: Path) -> RegionOfInterest:
    factors = markup_factors(markup, path)
    center = numbers(markup.get("center"), 3, path, "the ROI's center") * factors
    size = numbers(markup.get("size"), 3, path, "the ROI's size")
    orientation = numbers(markup.get("orientation", np.eye(3).ravel()), 9, path, "the ROI's orientation")
    # Columns are the box's axes. Their lengths, where they are not 1, scale its sides; so does the unit.
    axes = factors[:, None] * orientation.reshape(3, 3)
    lengths = np.linalg.norm(axes, axis=0)
    try:
        return RegionOfInterest(center, size * lengths / 2, axes / np.where(lengths > 0, lengths, 1.0))
    except ValueError as error:
        raise InputError(f"{path} holds no usable ROI: {error}") from error
