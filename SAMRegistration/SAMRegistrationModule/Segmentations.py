"""Segmentations, label maps and boxes as voxels on the grid of a volume."""

import slicer
import vtk

from .Flattening import arrayOf, flattenedVolume, reslice, voxelPositions
from .Geometry import GridGeometry, InputProblem, arrayFromMatrix, toWorldTransform
from .Lazy import numpy as np
from .Markups import regionBox

BINARY_LABELMAP = "Binary labelmap"


def labelsOnGrid(node, geometry: GridGeometry, ignoring=None, names=None):
    """The labels of a node on a grid of the world, and what they mean.

    Args:
        node: segmentation, label map or markups ROI.
        geometry: the grid wanted.
        ignoring: a parent transform node to be left out.
        names: names of segments in the order of their labels, so that two segmentations get the same numbers.

    Returns:
        The labels (k, j, i) as 16-bit numbers, and a dictionary from label to name.

    Raises:
        InputProblem: if no label lies on the grid.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        labels, meaning = _segmentsOnGrid(node, geometry, ignoring, names)
    elif node.IsA("vtkMRMLMarkupsROINode"):
        center, axes, size = regionBox(node, ignoring)
        along = np.abs((voxelPositions(geometry) - center) @ axes)
        inside = (along <= size / 2 + 1e-3).all(axis=1)
        labels = inside.reshape(tuple(reversed(geometry.dimensions))).astype(np.int16)
        meaning = {1: node.GetName()}
    else:
        labels, meaning = _labelMapOnGrid(node, geometry, ignoring), {}
    if not labels.any():
        raise InputProblem(f'Nothing of "{node.GetName()}" lies inside the volume that it belongs to.')
    return labels, meaning


def segmentNames(node) -> list:
    """The names of a segmentation's segments, in their order."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]


def commonSegmentNames(first, second) -> list:
    """Names that segments of both segmentations have.

    Raises:
        InputProblem: if there are none.
    """
    others = set(segmentNames(second))
    common = [name for name in segmentNames(first) if name in others]
    if not common:
        raise InputProblem(
            f'No segment of "{first.GetName()}" has the name of a segment of "{second.GetName()}"; '
            "name corresponding segments alike."
        )
    return common


def _segmentsOnGrid(node, geometry, ignoring, names):
    segmentation = _withBinaryLabelmaps(node)
    names = names if names is not None else segmentNames(node)
    localFromWorld = toWorldTransform(node, ignoring).GetInverse()
    labels = np.zeros(tuple(reversed(geometry.dimensions)), dtype=np.int16)
    for index in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(index)
        if segment.GetName() not in names:
            continue
        image = segment.GetRepresentation(BINARY_LABELMAP)
        if image is None or image.GetNumberOfPoints() == 0:
            continue
        indexToLocal = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(indexToLocal)
        resampled = reslice(image, arrayFromMatrix(indexToLocal), localFromWorld, geometry, True, 0)
        labels[arrayOf(resampled) == segment.GetLabelValue()] = names.index(segment.GetName()) + 1
    return labels, dict(enumerate(names, start=1))


def _withBinaryLabelmaps(node):
    """A segmentation whose segments are voxels; the node's own one is not changed."""
    own = node.GetSegmentation()
    if own.ContainsRepresentation(BINARY_LABELMAP):
        return own
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(own)
    if not copy.CreateRepresentation(BINARY_LABELMAP):
        raise InputProblem(f'The segmentation "{node.GetName()}" cannot be turned into voxels; it may be empty.')
    return copy


def _labelMapOnGrid(node, geometry, ignoring):
    array, own = flattenedVolume(node, ignoring, labels=True)
    if own.dimensions == geometry.dimensions and np.allclose(own.ijkToRAS, geometry.ijkToRAS, atol=1e-4):
        return array.astype(np.int16)
    localFromWorld = toWorldTransform(node, ignoring).GetInverse()
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    resampled = reslice(node.GetImageData(), arrayFromMatrix(matrix), localFromWorld, geometry, True, 0)
    return arrayOf(resampled).astype(np.int16)
