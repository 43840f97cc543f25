"""Where a volume shows the body, and where it shows anything at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional

from .image import Image
from .sampling import Interpolation

WORKING_SPACING_MM = 4.0
TISSUE_HU = -500.0
CT_AIR_LIMIT = -200.0
"""A volume of unknown modality that reaches below this many units is taken for a CT."""

LEAST_PIECE = 0.05
"""Of the largest piece's voxels; what is smaller is rather a part of the couch than of a body."""

_OPENING_MM = 6.0
_SKIN_MM = 16.0


def looks_like_ct(image: Image) -> bool:
    """Whether the volume is a CT, by its modality or, where that is not known, by its range of values."""
    if image.modality is not None:
        return image.is_ct
    return float(image.data.min()) < CT_AIR_LIMIT


@dataclass(frozen=True, eq=False)
class Regions:
    """What a volume shows where, on the CPU and all on one grid of about 4 mm with axes closest to L, P, S.

    Args:
        image: the volume at that spacing.
        tissue: (z, y, x) bool, what is dense and not thin; all true where nothing stands out from the background.
        body: (z, y, x) bool, the body; see `body_mask`.
        near: (z, y, x) bool, the body and the measured air along the skin of the same axial slice.
        known: (z, y, x) bool, where the volume was measured; see `data_region`.
    """

    image: Image
    tissue: Tensor
    body: Tensor
    near: Tensor
    known: Tensor

    @cached_property
    def body_image(self) -> Image:
        """The body as a volume, 1 inside and 0 elsewhere."""
        return self.image.with_data(self.body.float())

    @classmethod
    def of(cls, image: Image, spacing: float = WORKING_SPACING_MM) -> Regions:
        """The regions of a volume, at the given spacing in mm or the volume's own where that is coarser.

        Several steps of a registration ask for the same ones, so they are kept as long as the volume is.
        """
        known = _KEPT.setdefault(image, {})
        if spacing not in known:
            known[spacing] = cls._of(image, spacing)
        return known[spacing]

    @classmethod
    def _of(cls, image: Image, spacing: float) -> Regions:
        stored = image.canonical()
        grid = stored.grid.resampled([max(spacing, own) for own in stored.grid.spacing])
        coarse = stored.resampled(grid, default=stored.background)
        tissue = _tissue(coarse)
        body = _body(tissue)
        near = _near(body, coarse)
        fill = float(stored.data.min())
        measured = stored.with_data((stored.data > fill + 0.5).float()).resampled(grid, Interpolation.NEAREST)
        known = (measured.data > 0.5) | near
        return cls(coarse.to("cpu"), tissue.cpu(), body.cpu(), near.cpu(), known.cpu())


_KEPT: WeakKeyDictionary[Image, dict[float, Regions]] = WeakKeyDictionary()


def body_mask(image: Image) -> Tensor:
    """The body without couch and air around it; cavities such as the lungs belong to it.

    Denser than -500 HU in a CT, above half of Otsu's threshold elsewhere; opened, the largest piece, holes of the
    axial slices filled. Worked out at 4 mm.

    Args:
        image: any volume.

    Returns:
        (z, y, x) bool on the volume's grid; all true where nothing stands out from the background.
    """
    regions = Regions.of(image)
    return _nearest_on(regions.body_image, image)


def data_region(image: Image) -> Tensor:
    """Where the volume was measured: not its lowest value, or close to the skin in the same axial slice.

    Published volumes are often masked; beyond the mask lies a constant that looks like air but says nothing. The
    air along the skin is kept, so that the outline of the body counts.

    Returns:
        (z, y, x) bool on the volume's grid.
    """
    regions = Regions.of(image)
    return _nearest_on(regions.image.with_data(regions.known.float()), image)


def surroundings(image: Image) -> Image:
    """1 where a volume shows a body, or several pieces of one such as two legs, and in the air along the skin.

    Beyond it there are air and couch, in a usual CT more than half of the volume, which say nothing.

    Returns:
        A volume of about 4 mm, on the image's device; all 1 where nothing stands out from the background.
    """
    regions = Regions.of(image)
    bodies = _filled_slices(_large_pieces(regions.tissue, LEAST_PIECE))
    return regions.image.with_data(_near(bodies, regions.image).float()).to(image.data.device)


def _near(body: Tensor, coarse: Image) -> Tensor:
    x, y = (max(1, round(_SKIN_MM / own)) for own in coarse.grid.spacing[:2])
    return _grown(body, (x, y, 0))


def _nearest_on(mask: Image, image: Image) -> Tensor:
    inside = mask.resampled(image.grid, Interpolation.NEAREST, default=0).data > 0.5
    return inside.to(image.data.device)


def _body(tissue: Tensor) -> Tensor:
    """The body as (z, y, x) bool, from what is dense in a coarse volume."""
    return tissue if bool(tissue.all()) else _filled_slices(_large_pieces(tissue, 1.0))


def _tissue(coarse: Image) -> Tensor:
    """What is dense and not thin in a coarse volume, (z, y, x) bool; all of it where nothing stands out."""
    values = coarse.data
    dense = values > (TISSUE_HU if looks_like_ct(coarse) else _otsu(values))
    if not bool(dense.any()) or bool(dense.all()):
        return torch.ones_like(values, dtype=torch.bool)
    radius = [max(1, round(_OPENING_MM / own)) for own in coarse.grid.spacing]
    opened = ~_grown(~dense, radius)
    opened = _grown(opened, radius)
    return opened if bool(opened.any()) else dense


def _otsu(values: Tensor) -> float:
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(values.cpu().numpy()))
    # Fat is bright and muscle dark in most MR: half of Otsu's value keeps the muscle.
    low = float(values.min())
    return low + 0.5 * (otsu.GetThreshold() - low)


def _grown(mask: Tensor, radius: Sequence[int]) -> Tensor:
    """A mask (z, y, x) dilated by the ellipsoid of a radius (x, y, z) in voxels, half a voxel wider, as in ITK."""
    axes = [torch.arange(-r, r + 1, device=mask.device) / (r + 0.5) for r in reversed(radius)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    ball = (z.square() + y.square() + x.square() <= 1).float()
    reached = functional.conv3d(mask.float()[None, None], ball[None, None], padding=tuple(reversed(radius)))
    return reached[0, 0] > 0.5


def _large_pieces(mask: Tensor, share: float) -> Tensor:
    """The connected pieces of a mask that have at least a share of the largest one's voxels."""
    pieces = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(_to_sitk(mask))))
    sizes = np.bincount(pieces.ravel())[1:]
    return torch.from_numpy((pieces > 0) & (pieces <= int((sizes >= share * sizes[0]).sum()))).to(mask.device)


def _filled_slices(mask: Tensor) -> Tensor:
    """Without the holes of its axial slices, all filled at once: solid slices in between keep them apart."""
    apart = mask.new_ones(2 * len(mask) + 1, *mask.shape[1:])
    apart[1::2] = mask
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(_to_sitk(apart)))
    return torch.from_numpy(filled[1::2]).to(mask.device) > 0


def _to_sitk(mask: Tensor) -> sitk.Image:
    return sitk.GetImageFromArray(mask.to(torch.uint8).cpu().numpy())
