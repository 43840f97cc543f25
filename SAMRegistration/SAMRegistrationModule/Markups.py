"""Points and boxes of the scene in the world, and as the markups files that the library reads."""

import json
from pathlib import Path

from .Geometry import InputProblem, toWorldTransform, transformPoints
from .Lazy import numpy as np

_RAS_TO_LPS = (-1.0, -1.0, 1.0)


def markupPoints(node, ignoring=None):
    """World positions (N, 3) in RAS mm and labels of the defined points of a markups node.

    Raises:
        InputProblem: if it holds none.
    """
    positions, labels = [], []
    for index in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(index) != node.PositionDefined:
            continue
        position = [0.0, 0.0, 0.0]
        node.GetNthControlPointPosition(index, position)
        positions.append(position)
        labels.append(node.GetNthControlPointLabel(index))
    if not positions:
        raise InputProblem(f'The list "{node.GetName()}" holds no placed points.')
    return transformPoints(toWorldTransform(node, ignoring), np.array(positions)), labels


def pointPairs(fixedNode, movingNode, ignoring=None):
    """Corresponding points of two lists: by label where both name every point uniquely alike, else by order.

    Args:
        fixedNode, movingNode: markups nodes.
        ignoring: a parent transform node of the moving list to be left out.

    Returns:
        Fixed positions (N, 3), moving positions (N, 3), both in RAS mm, and labels.

    Raises:
        InputProblem: if their numbers differ.
    """
    fixed, fixedLabels = markupPoints(fixedNode)
    moving, movingLabels = markupPoints(movingNode, ignoring)
    if len(fixed) != len(moving):
        raise InputProblem(
            f'"{fixedNode.GetName()}" holds {len(fixed)} points and "{movingNode.GetName()}" {len(moving)}; '
            "every point needs its partner."
        )
    if len(set(fixedLabels)) == len(fixedLabels) and set(fixedLabels) == set(movingLabels):
        moving = moving[[movingLabels.index(label) for label in fixedLabels]]
    return fixed, moving, fixedLabels


def regionBox(roiNode, ignoring=None):
    """A markups ROI in the world: center (3,), axes (3x3, in columns) and side lengths (3,), RAS mm.

    Under linear parents that keep right angles this is the box itself; else it is the box, along the turned axes,
    that holds the deformed one.
    """
    center, size = [0.0, 0.0, 0.0], roiNode.GetSize()
    roiNode.GetCenter(center)
    toNode = roiNode.GetObjectToNodeMatrix()
    own = np.array([[toNode.GetElement(row, column) for column in range(3)] for row in range(3)])
    own = own / np.linalg.norm(own, axis=0)
    half = np.array(size) / 2
    shares = np.linspace(-1.0, 1.0, 5)
    mesh = np.stack(np.meshgrid(shares, shares, shares, indexing="ij"), -1).reshape(-1, 3)
    toWorld = toWorldTransform(roiNode, ignoring)
    tips = transformPoints(toWorld, np.vstack([center, *(np.array(center) + own.T)]))
    u, _, vt = np.linalg.svd((tips[1:] - tips[0]).T)
    axes = u @ vt
    along = transformPoints(toWorld, np.array(center) + (mesh * half) @ own.T) @ axes
    lower, upper = along.min(axis=0), along.max(axis=0)
    if not (upper > lower).all():
        raise InputProblem(f'The box "{roiNode.GetName()}" has no size; draw it first.')
    return axes @ ((lower + upper) / 2), axes, upper - lower


def writePointsFile(path: Path, points, labels) -> Path:
    """Write world positions in RAS mm as a markups file in LPS.

    Raises:
        OSError: if the place cannot be written.
    """
    positions = (np.asarray(points) * np.array(_RAS_TO_LPS)).tolist()
    controls = [_control(label, position) for label, position in zip(labels, positions)]
    return _writeMarkup(path, {"type": "Fiducial", "controlPoints": controls})


def writeRegionFile(path: Path, center, axes, size) -> Path:
    """Write a box of the world (RAS mm) as a markups ROI file in LPS.

    Raises:
        OSError: if the place cannot be written.
    """
    flip = np.array(_RAS_TO_LPS)
    position = (np.asarray(center) * flip).tolist()
    content = {
        "type": "ROI",
        "roiType": "Box",
        "center": position,
        "orientation": (flip[:, None] * np.asarray(axes)).ravel().tolist(),
        "size": np.asarray(size).tolist(),
        "controlPoints": [_control("center", position)],
    }
    return _writeMarkup(path, content)


def _control(label: str, position) -> dict:
    return {"label": label, "position": position, "positionStatus": "defined"}


def _writeMarkup(path: Path, content: dict) -> Path:
    markup = {"coordinateSystem": "LPS", "coordinateUnits": "mm", **content}
    path.write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    return path
