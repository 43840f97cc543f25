"""Views on a result, one call each, and the place that most deserves a look."""

import slicer
import vtk

from .Flattening import arrayOf, flattenedVolume, reslice
from .Geometry import GridGeometry, matrixFromArray, toWorldTransform, volumeGeometry
from .Lazy import numpy as np
from .RegistrationLogic import applyToMoving
from .TransformNodes import jacobianDeterminant

ROLE = "SAMRegistration.Review."
BLOCK = 8
"""Edge of the blocks, in voxels, in which agreement is looked at."""

DIVISIONS = 6


class Review:
    """Shows a fixed volume, a moving one and the transform between them in the slice views.

    Args:
        fixedVolume, movingVolume: what was registered.
        transformNode: the result.
        keeper: a node that remembers the volumes made here, so that they are updated instead of piling up.
    """

    def __init__(self, fixedVolume, movingVolume, transformNode, keeper) -> None:
        self._fixed, self._moving, self._transform = fixedVolume, movingVolume, transformNode
        self._keeper = keeper
        self._scene = fixedVolume.GetScene()

    def fade(self, share: float) -> None:
        """The fixed volume behind, the moving one through the transform before it."""
        applyToMoving(self._moving, self._transform)
        self.setLayers(self._fixed, self._moving, share)

    def checkerboard(self):
        """Squares of both volumes in turn."""
        fixed, warped, geometry = self._pair()
        k, j, i = np.meshgrid(*(np.arange(n) * DIVISIONS // n for n in fixed.shape), indexing="ij")
        values = np.where((i + j + k) % 2 == 0, fixed, warped)
        node = self._volume("checkerboard", values.astype(np.float32), geometry)
        self.setLayers(node, None, 0.0)
        return node

    def difference(self):
        """Fixed minus registered volume; 0 where the moving volume has no data."""
        fixed, warped, geometry = self._pair()
        known = warped > float(self._moving.GetImageData().GetScalarRange()[0])
        values = np.where(known, fixed.astype(np.float32) - warped, 0).astype(np.float32)
        node = self._volume("difference", values, geometry)
        limit = max(float(np.percentile(np.abs(values), 99)), 1.0)
        display = node.GetDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevel(2 * limit, 0.0)
        self.setLayers(node, None, 0.0)
        return node

    def jacobian(self):
        """The Jacobian determinant in color over the fixed volume."""
        determinant, geometry = jacobianDeterminant(self._transform)
        node = self._volume("Jacobian", determinant.astype(np.float32), geometry)
        display = node.GetDisplayNode()
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileColdToHotRainbow.txt")
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0.0, 2.0)
        self.setLayers(self._fixed, node, 0.5)
        return node

    def deformedGrid(self, visible: bool) -> None:
        """The deformation as a grid in the slice views."""
        if self._transform.GetDisplayNode() is None:
            self._transform.CreateDefaultDisplayNodes()
        display = self._transform.GetDisplayNode()
        display.SetVisualizationMode(display.VIS_MODE_GRID)
        display.SetVisibility(visible)
        display.SetVisibility2D(visible)

    def setLayers(self, background, foreground, share: float) -> None:
        """Put volumes into all slice views; `share` is the foreground's opacity."""
        slicer.util.setSliceViewerLayers(background=background, foreground=foreground, foregroundOpacity=share)

    def worstPlace(self):
        """The RAS position to look at first, and a sentence that says why.

        Where the map folds, if it does; else where the volumes agree least.
        """
        determinant, geometry = jacobianDeterminant(self._transform)
        lowest = float(determinant.min())
        if lowest <= 0:
            place = np.unravel_index(int(determinant.argmin()), determinant.shape)
            position = _positionOf(geometry, place)
            return position, f"Here the map folds (Jacobian determinant {lowest:.2f}): do not trust this place."
        fixed, warped, geometry = self._pair()
        known = warped > float(self._moving.GetImageData().GetScalarRange()[0])
        error = _blockMeans(np.where(known, np.abs(fixed.astype(np.float32) - warped), 0))
        block = np.unravel_index(int(error.argmax()), error.shape)
        place = [(index + 0.5) * BLOCK - 0.5 for index in block]
        sentence = f"Here the volumes differ most: {float(error[block]):.0f} on average over {BLOCK}^3 voxels."
        return _positionOf(geometry, place), sentence

    def jumpTo(self, position) -> None:
        """Center all slice views on a RAS position."""
        mode = slicer.vtkMRMLSliceNode.CenteredJumpSlice
        slicer.vtkMRMLSliceNode.JumpAllSlices(self._scene, *(float(value) for value in position), mode)

    def _pair(self):
        """Voxels of the fixed volume and of the moving one seen through the transform, on the fixed grid."""
        fixed, geometry = flattenedVolume(self._fixed)
        own = toWorldTransform(self._moving, ignoring=self._transform)
        fromFixed = vtk.vtkGeneralTransform()
        fromFixed.PostMultiply()
        throughResult = vtk.vtkGeneralTransform()
        self._transform.GetTransformFromWorld(throughResult)
        fromFixed.Concatenate(throughResult)
        fromFixed.Concatenate(own.GetInverse())
        image = self._moving.GetImageData()
        background = image.GetScalarRange()[0]
        warped = reslice(image, volumeGeometry(self._moving).ijkToRAS, fromFixed, geometry, False, background)
        return fixed, arrayOf(warped), geometry

    def _volume(self, kind: str, values, geometry: GridGeometry):
        node = self._keeper.GetNodeReference(ROLE + kind)
        if node is None:
            name = self._scene.GenerateUniqueName(f"{self._moving.GetName()} {kind}")
            node = self._scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
            self._keeper.SetNodeReferenceID(ROLE + kind, node.GetID())
        slicer.util.updateVolumeFromArray(node, values)
        node.SetIJKToRASMatrix(matrixFromArray(geometry.ijkToRAS))
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        return node


def _positionOf(geometry: GridGeometry, place):
    ijk = np.array([float(value) for value in reversed(list(place))])
    return geometry.ijkToRAS[:3, :3] @ ijk + geometry.ijkToRAS[:3, 3]


def _blockMeans(values):
    """Means over blocks; what is left at the far borders is not looked at, unless there is nothing else."""
    block = [min(BLOCK, n) for n in values.shape]
    counts = [n // b for n, b in zip(values.shape, block)]
    k, j, i = (count * size for count, size in zip(counts, block))
    parts = values[:k, :j, :i].reshape(counts[0], block[0], counts[1], block[1], counts[2], block[2])
    return parts.mean(axis=(1, 3, 5))
