"""Views on a result in the slice views."""

from dataclasses import dataclass, field

import slicer

from .TransformNodes import applyToMoving

ROLE = "SAMRegistration.Review."
TITLES = {"checkerboard": "checkerboard", "difference": "difference", "jacobian": "Jacobian"}
RAS_TO_LPS = (-1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Comparison:
    """What the worker found when it compared two volumes under a transform.

    Args:
        images: (vtkImageData, vtkMatrix4x4) by view.
        limit: below which nearly all differences lie.
        worst: LPS position of the place to look at first.
        folds: whether the map folds there.
        value: the Jacobian determinant there, or the mean difference around.
    """

    images: dict = field(default_factory=dict)
    limit: float = 1.0
    worst: "tuple | list" = (0.0, 0.0, 0.0)
    folds: bool = False
    value: float = 0.0

    @property
    def worstRAS(self) -> tuple:
        """The RAS position to look at first."""
        return tuple(value * sign for value, sign in zip(self.worst, RAS_TO_LPS))

    @property
    def sentence(self) -> str:
        """Why to look there."""
        if self.folds:
            return f"Here the map folds (Jacobian determinant {self.value:.2f}): do not trust this place."
        return f"Here the volumes differ most: {self.value:.0f} on average around this place."


class Review:
    """Shows a fixed volume, a moving one and the transform between them in the slice views.

    Args:
        fixedVolume, movingVolume: what was registered.
        transformNode: the result.
        keeper: a node that remembers the volumes made here, so that they are updated instead of piling up.
    """

    def __init__(self, fixedVolume, movingVolume, transformNode, keeper) -> None:
        self.fixed, self.moving, self.transform = fixedVolume, movingVolume, transformNode
        self._keeper = keeper
        self._scene = fixedVolume.GetScene()

    @property
    def state(self) -> tuple:
        """What the views depend on: they are computed again if this has changed."""
        volumes = (self.fixed, self.moving)
        times = tuple((node.GetID(), node.GetImageData().GetMTime()) for node in volumes)
        return (*times, self.transform.GetID(), self.transform.GetTransformToWorldMTime())

    def fade(self, share: float) -> None:
        """The fixed volume behind, the moving one through the transform before it."""
        applyToMoving(self.moving, self.transform)
        self.setLayers(self.fixed, self.moving, share)

    def show(self, view: str) -> bool:
        """Show a view that was computed before; False if there is none."""
        node = self._keeper.GetNodeReference(ROLE + TITLES[view])
        if node is None or node.GetImageData() is None:
            return False
        if view == "jacobian":
            self.setLayers(self.fixed, node, 0.5)
        else:
            self.setLayers(node, None, 0.0)
        return True

    def take(self, view: str, found: Comparison):
        """Put a computed view into its volume node, and show it."""
        image, matrix = found.images[view]
        node = self._volume(TITLES[view])
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveImageData(image)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        if view == "difference":
            display.AutoWindowLevelOff()
            display.SetWindowLevel(2 * max(found.limit, 1.0), 0.0)
        elif view == "jacobian":
            display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileColdToHotRainbow.txt")
            display.AutoWindowLevelOff()
            display.SetWindowLevelMinMax(0.0, 2.0)
        self.show(view)
        return node

    def deformedGrid(self, visible: bool) -> None:
        """The deformation as a grid in the slice views."""
        if self.transform.GetDisplayNode() is None:
            self.transform.CreateDefaultDisplayNodes()
        display = self.transform.GetDisplayNode()
        display.SetVisualizationMode(display.VIS_MODE_GRID)
        display.SetVisibility(visible)
        display.SetVisibility2D(visible)

    def setLayers(self, background, foreground, share: float) -> None:
        """Put volumes into all slice views; `share` is the foreground's opacity."""
        slicer.util.setSliceViewerLayers(background=background, foreground=foreground, foregroundOpacity=share)

    def jumpTo(self, position) -> None:
        """Center all slice views on a RAS position."""
        mode = slicer.vtkMRMLSliceNode.CenteredJumpSlice
        slicer.vtkMRMLSliceNode.JumpAllSlices(self._scene, *(float(value) for value in position), mode)

    def _volume(self, kind: str):
        node = self._keeper.GetNodeReference(ROLE + kind)
        if node is None:
            name = self._scene.GenerateUniqueName(f"{self.moving.GetName()} {kind}")
            node = self._scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
            self._keeper.SetNodeReferenceID(ROLE + kind, node.GetID())
        return node
