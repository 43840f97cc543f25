"""Volumes as they lie in the world: every chain of parent transforms is applied, none is ignored."""

import vtk

from .Geometry import (
    GridGeometry,
    InputProblem,
    isLinearToWorld,
    linearToWorld,
    matrixFromArray,
    toWorldTransform,
    transformPoints,
    volumeGeometry,
)
from .Lazy import numpy as np
from .Lazy import numpySupport

MOST_VOXELS = 1024**3
"""A flattened volume with more voxels is refused: a transform spread it over an absurd distance."""


def flattenedVolume(volumeNode, ignoring=None, labels: bool = False):
    """The voxels (k, j, i) of a volume and their `GridGeometry` in the world.

    Parents that turn, move or stretch along the axes change the grid only. Under any other chain the volume is
    resampled, with its own spacing, onto the box that it fills in the world.

    Args:
        volumeNode: scalar volume or label map.
        ignoring: a parent transform node to be left out.
        labels: take the nearest voxel instead of interpolating, and 0 outside.

    Raises:
        InputProblem: if it holds no voxels, or more than one number per voxel.
    """
    image = _imageOf(volumeNode)
    own = volumeGeometry(volumeNode)
    if isLinearToWorld(volumeNode, ignoring):
        moved = GridGeometry(own.dimensions, linearToWorld(volumeNode, ignoring) @ own.ijkToRAS)
        if moved.isOrthogonal:
            return arrayOf(image), moved
    toWorld = toWorldTransform(volumeNode, ignoring)
    target = _boxInWorld(own, toWorld, volumeNode.GetName())
    background = 0.0 if labels else image.GetScalarRange()[0]
    resampled = reslice(image, own.ijkToRAS, toWorld.GetInverse(), target, labels, background)
    return arrayOf(resampled), target


def reslice(image, ijkToLocal, localFromWorld, target: GridGeometry, labels: bool, background: float):
    """An image on the voxels of another grid.

    Args:
        image: vtkImageData indexed by its extent; its own origin and spacing are not looked at.
        ijkToLocal: 4x4 from its indices to its node's coordinates.
        localFromWorld: VTK transform from the world of `target` to these coordinates.
        target: the grid wanted.
        labels: nearest voxel instead of linear interpolation.
        background: the value where the image is not.
    """
    toIndices = vtk.vtkGeneralTransform()
    toIndices.PostMultiply()
    toIndices.Concatenate(matrixFromArray(target.ijkToRAS))
    toIndices.Concatenate(localFromWorld)
    toIndices.Concatenate(matrixFromArray(np.linalg.inv(ijkToLocal)))
    plain = vtk.vtkImageData()
    plain.ShallowCopy(image)
    plain.SetOrigin(0, 0, 0)
    plain.SetSpacing(1, 1, 1)
    plain.SetDirectionMatrix(1, 0, 0, 0, 1, 0, 0, 0, 1)
    filter_ = vtk.vtkImageReslice()
    filter_.SetInputData(plain)
    filter_.SetResliceTransform(toIndices)
    filter_.SetOutputOrigin(0, 0, 0)
    filter_.SetOutputSpacing(1, 1, 1)
    filter_.SetOutputExtent(*(bound for size in target.dimensions for bound in (0, size - 1)))
    filter_.SetBackgroundLevel(background)
    if labels:
        filter_.SetInterpolationModeToNearestNeighbor()
    else:
        filter_.SetInterpolationModeToLinear()
    filter_.Update()
    return filter_.GetOutput()


def arrayOf(image):
    """The voxels of a one-component vtkImageData as (k, j, i), not copied."""
    scalars = numpySupport.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(tuple(reversed(image.GetDimensions())))


def displacementOf(transform: vtk.vtkAbstractTransform, geometry: GridGeometry):
    """Displacements (k, j, i, 3) in RAS mm of a VTK transform at the voxels of a grid."""
    nodes = voxelPositions(geometry)
    return (transformPoints(transform, nodes) - nodes).reshape(*reversed(geometry.dimensions), 3)


def voxelPositions(geometry: GridGeometry):
    """RAS positions of all voxels, i fastest: (N, 3)."""
    k, j, i = np.meshgrid(*(np.arange(size) for size in reversed(geometry.dimensions)), indexing="ij")
    ijk = np.stack([i, j, k], axis=-1).reshape(-1, 3)
    return ijk @ geometry.ijkToRAS[:3, :3].T + geometry.ijkToRAS[:3, 3]


def coarser(geometry: GridGeometry, spacing: float) -> GridGeometry:
    """A grid over the same box, and a node beyond it on every side, with voxels of about `spacing` mm."""
    extent = geometry.spacing * np.array(geometry.dimensions)
    counts = np.maximum(np.ceil(extent / spacing), 1).astype(int)
    steps = extent / counts
    return _centered(geometry.center(), geometry.directions, counts + 2, steps)


def _imageOf(volumeNode):
    image = volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputProblem(f'The volume "{volumeNode.GetName()}" is empty; load it or choose another one.')
    if image.GetNumberOfScalarComponents() != 1:
        raise InputProblem(
            f'The volume "{volumeNode.GetName()}" holds {image.GetNumberOfScalarComponents()} numbers per voxel; '
            "convert it with the module Vector to Scalar Volume first."
        )
    return image


def _boxInWorld(own: GridGeometry, toWorld, name: str) -> GridGeometry:
    """The grid of the own spacing, along the own axes as turned in the middle, that holds the moved volume."""
    middle = own.center()
    tips = transformPoints(toWorld, np.vstack([middle, *(middle + own.directions.T)]))
    u, _, vt = np.linalg.svd((tips[1:] - tips[0]).T)
    axes = u @ vt
    along = transformPoints(toWorld, own.surfacePoints()) @ axes
    lower, upper = along.min(axis=0), along.max(axis=0)
    spacing = own.spacing
    counts = np.maximum(np.ceil((upper - lower) / spacing - 1e-6), 1).astype(int)
    if not np.isfinite(along).all() or np.prod(counts.astype(float)) > MOST_VOXELS:
        raise InputProblem(f'The transforms above the volume "{name}" spread it too far; check them.')
    return _centered(axes @ ((lower + upper) / 2), axes, counts, spacing)


def _centered(center, axes, counts, spacing) -> GridGeometry:
    ijkToRAS = np.eye(4)
    ijkToRAS[:3, :3] = axes * spacing
    ijkToRAS[:3, 3] = center - ijkToRAS[:3, :3] @ ((np.array(counts) - 1) / 2.0)
    return GridGeometry(tuple(int(count) for count in counts), ijkToRAS)
