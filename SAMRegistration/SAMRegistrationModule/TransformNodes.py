"""Displacement fields and starts as MRML transform nodes, and transform nodes as files."""

from pathlib import Path

import slicer
import vtk

from .Flattening import coarser, displacementOf
from .Geometry import GridGeometry, InputProblem, arrayFromMatrix, fromWorldOfTransform, matrixFromArray
from .Lazy import numpy as np
from .Lazy import numpySupport
from .VolumeFiles import writeDisplacementFile, writeMatrixFile

START_ATTRIBUTE = "SAMRegistration.Start"
FIELD_ATTRIBUTE = "SAMRegistration.Field"
INITIAL_SPACING_MM = 4.0
"""Sampling of a start that is not linear; it only has to lead near."""


def readFieldFile(path: Path):
    """A displacement file (LPS mm, from fixed to moving) as vtkOrientedGridTransform in RAS.

    It is interpolated cubically, as Slicer interpolates every field that it reads: what is saved reads back the same.

    Raises:
        InputProblem: if the file cannot be read or holds values that are not finite.
    """
    node = slicer.vtkMRMLTransformNode()
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(path))
    if not Path(path).is_file() or not storage.ReadData(node):
        raise InputProblem(f"The result {Path(path).name} cannot be read back; see the log.")
    grid = node.GetTransformFromParentAs("vtkOrientedGridTransform", False, False)
    if grid is None or grid.GetDisplacementGrid() is None:
        raise InputProblem(f"The result {Path(path).name} holds no displacement field; see the log.")
    bounds = grid.GetDisplacementGrid().GetScalarRange()
    if not all(abs(bound) < float("inf") for bound in bounds):
        raise InputProblem(f"The result {Path(path).name} holds numbers that are not finite; see the log.")
    return grid


def inverseOf(gridTransform):
    """The same field, to be set in the other direction: VTK inverts it point by point where it is asked."""
    copy = slicer.vtkOrientedGridTransform()
    copy.DeepCopy(gridTransform)
    return copy


def gridGeometry(gridTransform) -> GridGeometry:
    """The grid that a displacement is given on."""
    image = gridTransform.GetDisplacementGrid()
    matrix = np.eye(4)
    directions = arrayFromMatrix(gridTransform.GetGridDirectionMatrix())[:3, :3]
    matrix[:3, :3] = directions * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return GridGeometry(tuple(image.GetDimensions()), matrix)


def writeInitialFile(folder: Path, transformNode, fixedGeometry: GridGeometry) -> Path:
    """Write a transform node with all its parents as a start for the library, from fixed to moving space.

    The node is meant as Slicer means it: applied to the moving volume, it brings it near the fixed one.

    Raises:
        InputProblem: if it cannot be inverted.
        OSError: if the place cannot be written.
    """
    if transformNode.IsTransformToWorldLinear():
        matrix = vtk.vtkMatrix4x4()
        transformNode.GetMatrixTransformFromWorld(matrix)
        array = arrayFromMatrix(matrix)
        if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < 1e-9:
            raise InputProblem(f'The transform "{transformNode.GetName()}" cannot be inverted.')
        return writeMatrixFile(folder / "initial.tfm", array)
    geometry = coarser(fixedGeometry, INITIAL_SPACING_MM)
    displacement = displacementOf(fromWorldOfTransform(transformNode), geometry)
    return writeDisplacementFile(folder / "initial.nrrd", displacement, geometry)


def newStart(movingVolume, fixedToMoving, node=None):
    """A linear transform node that brings the moving volume near the fixed one.

    Args:
        movingVolume: gives the scene and the name.
        fixedToMoving: 4x4 from the fixed to the moving world, RAS.
        node: what was made so before and is to be updated; other nodes stay as they are.
    """
    if node is None or node.GetAttribute(START_ATTRIBUTE) is None:
        scene = movingVolume.GetScene()
        name = scene.GenerateUniqueName(f"{movingVolume.GetName()} start")
        node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
        node.SetAttribute(START_ATTRIBUTE, "points")
    node.SetMatrixTransformToParent(matrixFromArray(np.linalg.inv(fixedToMoving)))
    return node


def noteRefinement(transformNode, refinement: int) -> None:
    """Note how many times finer the node's field is sampled than it was solved, so that it need not grow."""
    grid = transformNode.GetTransformFromParentAs("vtkOrientedGridTransform", False, False)
    dimensions = gridGeometry(grid).dimensions if grid is not None else ()
    transformNode.SetAttribute(FIELD_ATTRIBUTE, " ".join(map(str, (refinement, *dimensions))))


def _solvedField(transformNode, grid) -> tuple:
    """The field of a node at the samples that it was solved for, and their grid."""
    field, geometry = fieldOf(grid), gridGeometry(grid)
    step, *dimensions = (int(word) for word in (transformNode.GetAttribute(FIELD_ATTRIBUTE) or "1").split())
    if tuple(dimensions) != geometry.dimensions or any((size - 1) % step for size in dimensions):
        return field, geometry
    matrix = geometry.ijkToRAS.copy()
    matrix[:3, :3] *= step
    solved = np.ascontiguousarray(field[::step, ::step, ::step])
    return solved, GridGeometry(tuple(reversed(solved.shape[:3])), matrix)


def fieldOf(gridTransform):
    """The displacements (k, j, i, 3) of a grid transform in RAS mm, as they are stored."""
    image = gridTransform.GetDisplacementGrid()
    scalars = numpySupport.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(*reversed(image.GetDimensions()), 3) * gridTransform.GetDisplacementScale()


def writeTransformFile(folder: Path, transformNode, fixedGeometry: GridGeometry) -> Path:
    """Write a transform node with all its parents as the library's transform from fixed to moving space.

    A displacement field keeps its own grid; whatever else is not linear is sampled at the fixed volume's voxels.

    Raises:
        InputProblem: if it cannot be inverted.
        OSError: if the place cannot be written.
    """
    grid = transformNode.GetTransformFromParentAs("vtkOrientedGridTransform", False, False)
    isPlainField = grid is not None and transformNode.GetParentTransformNode() is None
    if isPlainField and not transformNode.IsAbstractTransformComputedFromInverse(grid):
        return writeDisplacementFile(folder / "transform.nrrd", *_solvedField(transformNode, grid))
    if transformNode.IsTransformToWorldLinear():
        return writeInitialFile(folder, transformNode, fixedGeometry)
    displacement = displacementOf(fromWorldOfTransform(transformNode), fixedGeometry)
    return writeDisplacementFile(folder / "transform.nrrd", displacement, fixedGeometry)


def applyToMoving(movingNode, transformNode) -> None:
    """Show a node of the moving side through a result: the topmost of its own parents goes under the result."""
    topmost = movingNode
    while topmost.GetParentTransformNode() is not None:
        if topmost.GetParentTransformNode() is transformNode:
            return
        topmost = topmost.GetParentTransformNode()
    topmost.SetAndObserveTransformNodeID(transformNode.GetID())


def removeFromMoving(movingNode, transformNode) -> None:
    """Undo `applyToMoving`."""
    node = movingNode
    while node is not None:
        if node.GetParentTransformNode() is transformNode:
            node.SetAndObserveTransformNodeID(None)
            return
        node = node.GetParentTransformNode()
