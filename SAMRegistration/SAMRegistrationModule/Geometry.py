"""Grids, matrices and chains of parent transforms of MRML nodes, all in RAS millimeters."""

from dataclasses import dataclass

import slicer
import vtk

from .Lazy import numpy as np

LARGEST_SHEAR = 1e-4
"""Axes whose cosine is larger are not perpendicular; image files cannot hold such a grid."""


class InputProblem(Exception):
    """Inputs that cannot be used as they are; the message is a sentence for the user."""


@dataclass(frozen=True, eq=False)
class GridGeometry:
    """Where the voxels of a volume lie: their number along i, j, k and the 4x4 matrix from IJK to RAS."""

    dimensions: tuple
    ijkToRAS: object

    @property
    def spacing(self):
        """Voxel sizes along i, j, k in mm."""
        return np.linalg.norm(self.ijkToRAS[:3, :3], axis=0)

    @property
    def directions(self):
        """3x3, whose columns are the unit directions of i, j, k in RAS."""
        return self.ijkToRAS[:3, :3] / self.spacing

    @property
    def isOrthogonal(self) -> bool:
        """Whether the axes are perpendicular, as image files demand."""
        cosines = self.directions.T @ self.directions - np.eye(3)
        return bool(np.abs(cosines).max() < LARGEST_SHEAR)

    def surfacePoints(self, steps: int = 8):
        """RAS positions (N, 3) on the faces of the box of voxels, from outer edge to outer edge."""
        shares = np.linspace(0.0, 1.0, steps + 1)
        mesh = np.stack(np.meshgrid(shares, shares, shares, indexing="ij"), -1).reshape(-1, 3)
        onFace = ((mesh == 0.0) | (mesh == 1.0)).any(axis=1)
        ijk = mesh[onFace] * np.array(self.dimensions) - 0.5
        return ijk @ self.ijkToRAS[:3, :3].T + self.ijkToRAS[:3, 3]

    def center(self):
        """RAS position of the middle of the box."""
        ijk = (np.array(self.dimensions) - 1) / 2.0
        return self.ijkToRAS[:3, :3] @ ijk + self.ijkToRAS[:3, 3]


def arrayFromMatrix(matrix: vtk.vtkMatrix4x4):
    """A vtkMatrix4x4 as a numpy array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrixFromArray(array) -> vtk.vtkMatrix4x4:
    """A 4x4 numpy array as vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, dtype=float).ravel().tolist())
    return matrix


def volumeGeometry(volumeNode) -> GridGeometry:
    """The grid of a volume in its own coordinates, parent transforms left aside."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return GridGeometry(tuple(volumeNode.GetImageData().GetDimensions()), arrayFromMatrix(matrix))


def parentTransforms(node, ignoring=None) -> list:
    """The transform nodes that a node lies under, the nearest first, without the node `ignoring`.

    The result of an earlier registration is ignored when the same result is computed again: the volume would
    otherwise be registered as it looks after the first time.
    """
    chain = []
    parent = node.GetParentTransformNode()
    while parent is not None:
        if ignoring is None or parent.GetID() != ignoring.GetID():
            chain.append(parent)
        parent = parent.GetParentTransformNode()
    return chain


def toWorldTransform(node, ignoring=None) -> vtk.vtkGeneralTransform:
    """The map from a node's own coordinates to the world: its whole chain of parents, linear or not."""
    chain = vtk.vtkGeneralTransform()
    chain.PostMultiply()
    for parent in parentTransforms(node, ignoring):
        copy = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(parent, parent.GetParentTransformNode(), copy)
        chain.Concatenate(copy)
    return chain


def fromWorldOfTransform(transformNode) -> vtk.vtkGeneralTransform:
    """The map from the world to the coordinates below a transform node, its own parents included."""
    transform = vtk.vtkGeneralTransform()
    transformNode.GetTransformFromWorld(transform)
    return transform


def isLinearToWorld(node, ignoring=None) -> bool:
    """Whether all parents of a node are linear."""
    return all(parent.IsLinear() for parent in parentTransforms(node, ignoring))


def linearToWorld(node, ignoring=None):
    """The 4x4 matrix from a node's own coordinates to the world; all parents must be linear."""
    total = np.eye(4)
    for parent in parentTransforms(node, ignoring):
        matrix = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToParent(matrix)
        total = arrayFromMatrix(matrix) @ total
    return total


def transformPoints(transform: vtk.vtkAbstractTransform, points):
    """Positions (N, 3) mapped by a VTK transform, in double precision."""
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for each in (source, target):
        each.SetDataTypeToDouble()
    source.SetData(numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float64), deep=True))
    transform.TransformPoints(source, target)
    return vtk_to_numpy(target.GetData()).copy()
