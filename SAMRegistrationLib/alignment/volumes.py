"""A volume as intensity-based alignment sees it: coarse, isotropic, with what is known marked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..body import Regions, looks_like_ct
from ..grid import Grid
from ..image import Image
from ..sampling import Interpolation

CT_WINDOW = (-500.0, 500.0)
INTERIOR_DEPTH_MM = 12.0
LEAST_INTERIOR = 0.2


@dataclass(frozen=True, eq=False)
class CoarseVolume:
    """A volume at an isotropic spacing with its masks.

    Args:
        values: (z, y, x) intensities between 0 and 1.
        known: (z, y, x) bool, where the volume has data.
        body: (z, y, x) bool, the body.
        near: (z, y, x) bool, the body and the air along the skin, where there is data.
        grid: axes closest to L, P, S.
        is_ct: whether the values are a window of Hounsfield units.
    """

    values: Tensor
    known: Tensor
    body: Tensor
    near: Tensor
    grid: Grid
    is_ct: bool

    @cached_property
    def interior(self) -> CoarseVolume:
        """The same volume without the outline of its body, which may be the edge of the field of view."""
        radius = max(1, round(INTERIOR_DEPTH_MM / self.grid.spacing[0]))
        width = 2 * radius + 1
        outside = (~self.body)[None, None].float()
        grown = functional.max_pool3d(outside, (1, width, width), 1, (0, radius, radius))
        inside = grown[0, 0] < 0.5
        if float(inside.sum()) < LEAST_INTERIOR * float(self.body.sum()):
            inside = self.body
        return replace(self, known=inside, near=inside)

    def cropped(self) -> CoarseVolume:
        """The part that shows anything near the body."""
        if not bool(self.near.any()):
            return self
        ends = [
            self.near.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0].cpu()[[0, -1]].tolist()
            for others in ((1, 2), (0, 2), (0, 1))
        ]
        part = tuple(slice(first, last + 1) for first, last in ends)
        grid = self.grid.cropped([s.start for s in part[::-1]], [s.stop for s in part[::-1]])
        values, known, body, near = (each[part] for each in (self.values, self.known, self.body, self.near))
        return CoarseVolume(values, known, body, near, grid, self.is_ct)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image with its regions at the finest spacing that alignment looks at, ready to be made coarser."""

    scaled: Image
    regions: Regions
    is_ct: bool
    _coarse: dict[float, CoarseVolume] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, image: Image, mask: Tensor | None = None) -> PreparedImage:
        """Prepare an image; a mask (z, y, x) on its grid restricts where it is looked at.

        As the regions of an image, the last one is kept as long as the image is.
        """
        kept = _KEPT.get(image)
        if kept is None or kept[0] is not mask:
            kept = _KEPT[image] = mask, cls._of(image, mask)
        return kept[1]

    @classmethod
    def _of(cls, image: Image, mask: Tensor | None) -> PreparedImage:
        regions = Regions.of(image)
        if mask is not None:
            allowed = image.with_data(mask.to(image.data)).canonical()
            inside = allowed.resampled(regions.image.grid, Interpolation.NEAREST, default=0).data.cpu() > 0.5
            regions = replace(
                regions, body=regions.body & inside, near=regions.near & inside, known=regions.known & inside
            )
        if not bool(regions.body.any()):
            regions = replace(regions, body=regions.known, near=regions.known)
        is_ct = looks_like_ct(image)
        scaled = _scaled(regions.image, is_ct, regions.body).to(image.data.device)
        return cls(scaled, regions, is_ct)

    def at(self, spacing: float) -> CoarseVolume:
        """The volume at an isotropic spacing in mm, on the device of the image."""
        if spacing not in self._coarse:
            self._coarse[spacing] = self._at(spacing)
        return self._coarse[spacing]

    def _at(self, spacing: float) -> CoarseVolume:
        grid = self.scaled.grid.resampled(spacing)
        body, near, known = (
            self.scaled.with_data(part.to(self.scaled.data)).resampled(grid, default=0.0).data > 0.5
            for part in (self.regions.body, self.regions.near, self.regions.known)
        )
        values = self.scaled.resampled(grid, default=0.0).data
        return CoarseVolume(values, known, body, near & known, grid, self.is_ct)


_KEPT: WeakKeyDictionary[Image, tuple[Tensor | None, PreparedImage]] = WeakKeyDictionary()


def _scaled(image: Image, is_ct: bool, body: Tensor) -> Image:
    low, high = CT_WINDOW
    if not is_ct:
        inside = image.data[body]
        low, high = float(image.data.min()), float(_percentile(inside, 0.99))
    return image.with_data(((image.data - low) / max(high - low, 1e-6)).clamp(0, 1))


def _percentile(values: Tensor, share: float) -> Tensor:
    ordered = values.flatten()[:: max(1, values.numel() // 200_000)].sort().values
    return ordered[round(share * (len(ordered) - 1))]


def world_points(volume: CoarseVolume, mask: Tensor, limit: int, seed: int) -> np.ndarray:
    """World positions (n, 3) of the voxels of a mask; at most `limit`, drawn by the seed."""
    index = mask.nonzero().cpu()
    if len(index) > limit:
        generator = torch.Generator().manual_seed(seed)
        index = index[torch.randperm(len(index), generator=generator)[:limit].sort().values]
    return volume.grid.to_world(index.flip(-1).numpy())
