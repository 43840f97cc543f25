"""Which voxels count: the body of a CT, the head of an MR, the points at which a known transform is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..image import Image
from ..image_io import read_labels
from .geometry import FloatArray
from .pairs import Mask, Truth

BoolArray = NDArray[np.bool_]
LabelArray = NDArray[np.int64]
BODY_HU = -500.0


def judged_points(truth: Truth, fixed: Image, moving: Image) -> FloatArray:
    """World positions (n, 3) of the masked fixed voxels whose true partner has data in the moving volume."""
    points = fixed.grid.to_world(np.argwhere(_mask(truth.mask, fixed))[:, ::-1])
    partners = np.rint(moving.grid.to_voxel(truth.transform_points(points))).astype(np.int64)
    judged = np.all((partners >= 0) & (partners < np.asarray(moving.grid.size)), axis=1)
    if truth.mask is Mask.LIMB:
        x, y, z = partners[judged].T
        judged[judged] = moving.data.numpy()[z, y, x] > 0
    return points[judged]


def _mask(mask: Mask | Path, fixed: Image) -> BoolArray:
    if isinstance(mask, Path):
        return whole_numbers(read_labels(mask, fixed)) != 0
    return head(fixed) if mask is Mask.HEAD else body(fixed)


def body(image: Image) -> BoolArray:
    """The body of a CT: denser than -500 HU, holes of each axial slice filled, the largest piece."""
    dense = sitk.GetImageFromArray((image.data.numpy() > BODY_HU).astype(np.uint8))
    slices = [sitk.BinaryFillhole(dense[:, :, z]) for z in range(dense.GetSize()[2])]
    return _largest_piece(sitk.BinaryMorphologicalOpening(sitk.JoinSeries(slices), [2, 2, 1]))


def head(image: Image) -> BoolArray:
    """The head of an MR: above Otsu's threshold, closed and filled, the largest piece."""
    bright = sitk.OtsuThreshold(sitk.GetImageFromArray(image.data.numpy()), 0, 1)
    closed = sitk.BinaryMorphologicalClosing(bright, [3, 3, 3])
    return _largest_piece(sitk.BinaryFillhole(closed))


def _largest_piece(mask: sitk.Image) -> BoolArray:
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
    return sitk.GetArrayFromImage(pieces) == 1


def whole_numbers(image: Image) -> LabelArray:
    """A label map's voxels as integers (z, y, x)."""
    return np.rint(image.data.numpy()).astype(np.int64)
