"""What the user wants to be refined, checked and turned into the parameters of a request, with its files."""

from dataclasses import dataclass, field
from pathlib import Path

from .Geometry import InputProblem
from .Lazy import numpy as np
from .Markups import pointPairs, regionBox
from .Requests import EXTRA_OUTPUTS
from .TransformNodes import writeTransformFile

SIMILARITIES = ("lncc", "mse", "mind", "sam")
SIDE_ATTRIBUTE = "SAMRegistration.DrawnOn"
FIXED, MOVING = "fixed", "moving"
_RAS_TO_LPS = (-1.0, -1.0, 1.0)


@dataclass
class RefinementInputs:
    """Inputs and settings of one refinement.

    Args:
        transformNode: the result to be refined.
        fixedVolume, movingVolume: what it belongs to.
        regions: markups ROIs, worked on one after the other; see `drawnOn`.
        fixedLandmarks, movingLandmarks: pairs of points that shall meet.
        weight: how near they shall meet, in mm.
        exact: they meet exactly.
        similarity: of `SIMILARITIES`.
        iterations: for every box.
        margin: in mm around a box; nothing changes beyond.
        device, allowCPU: as of a registration.
    """

    transformNode: object
    fixedVolume: object
    movingVolume: object
    regions: list = field(default_factory=list)
    fixedLandmarks: object = None
    movingLandmarks: object = None
    weight: float = 1.0
    exact: bool = False
    similarity: str = SIMILARITIES[0]
    iterations: int = 400
    margin: float = 20.0
    device: str = "auto"
    allowCPU: bool = True

    def missing(self) -> "str | None":
        """What keeps the refinement from starting, as a sentence."""
        if self.fixedVolume is None or self.movingVolume is None:
            return "Choose the fixed and the moving volume in the section Inputs."
        if self.transformNode is None or self.transformNode.GetTransformFromParent() is None:
            return "Register first: there is no result to refine yet."
        if (self.fixedLandmarks is None) != (self.movingLandmarks is None):
            return "Landmarks come in pairs: choose the list of the other volume too, or none."
        if not self.regions and self.fixedLandmarks is None:
            return "Draw a box where the result is wrong, or let landmarks take part."
        return None


def drawnOn(regionNode) -> str:
    """Whether a box was drawn on the fixed or on the moving volume."""
    return regionNode.GetAttribute(SIDE_ATTRIBUTE) or FIXED


def refinementParameters(inputs: RefinementInputs, folders, job: Path, wanted: list) -> dict:
    """Write the files of a refinement and give the parameters of its request.

    Args:
        inputs: what the user chose.
        folders: keeps the files of volumes and the worker's own files of results.
        job: folder of this request.
        wanted: names of the outputs.

    Raises:
        InputProblem: if the inputs cannot be used.
        OSError: if the folder cannot be written.
    """
    if problem := inputs.missing():
        raise InputProblem(problem)
    node = inputs.transformNode
    fixed, fixedGeometry = folders.volumeFile(inputs.fixedVolume)
    moving, _ = folders.volumeFile(inputs.movingVolume, node)
    accepted = folders.transformFile(node.GetTransformFromParent()) if node.GetParentTransformNode() is None else None
    return {
        "fixed": str(fixed),
        "moving": str(moving),
        "transform": str(accepted or writeTransformFile(job, node, fixedGeometry)),
        "regions": [_region(region, node) for region in inputs.regions],
        "points": _points(inputs),
        "similarity": inputs.similarity,
        "iterations": inputs.iterations,
        "margin_mm": inputs.margin,
        "device": inputs.device,
        "allow_cpu": inputs.allowCPU,
        "outputs": [name for name in wanted if name in EXTRA_OUTPUTS],
        "output": str(job / "result"),
    }


def _region(regionNode, transformNode) -> dict:
    """A box in LPS mm, as it lies in the world without the result."""
    side = drawnOn(regionNode)
    center, axes, size = regionBox(regionNode, transformNode if side == MOVING else None)
    flip = np.array(_RAS_TO_LPS)
    return {
        "center": (center * flip).tolist(),
        "axes": (flip[:, None] * axes).tolist(),
        "size": [float(length) for length in size],
        "on": side,
    }


def _points(inputs: RefinementInputs) -> list:
    if inputs.fixedLandmarks is None:
        return []
    fixed, moving, labels = pointPairs(inputs.fixedLandmarks, inputs.movingLandmarks, inputs.transformNode)
    flip = np.array(_RAS_TO_LPS)
    shared = {"weight_mm": inputs.weight, "exact": inputs.exact}
    return [
        {"fixed": first.tolist(), "moving": second.tolist(), "label": label, **shared}
        for first, second, label in zip(fixed * flip, moving * flip, labels)
    ]
