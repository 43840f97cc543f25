"""Results into the scene: all at once, into existing nodes where there are some, and back again."""

from dataclasses import dataclass, field

import slicer
import vtk

from .TransformNodes import markLinear

TRANSFORM, INVERSE = "transform", "inverse"
VOLUMES = ("warped", "jacobian", "displacement")
REPORT = "report"

_CLASSES = {
    TRANSFORM: "vtkMRMLTransformNode",
    INVERSE: "vtkMRMLTransformNode",
    **dict.fromkeys(VOLUMES, "vtkMRMLScalarVolumeNode"),
    REPORT: "vtkMRMLTableNode",
}
_TITLES = {
    TRANSFORM: "registration",
    INVERSE: "registration inverse",
    "warped": "registered",
    "jacobian": "Jacobian determinant",
    "displacement": "displacement magnitude",
    REPORT: "registration report",
}


@dataclass
class LoadedResult:
    """Everything of a result, read completely before the scene is touched.

    Args:
        transforms: vtkOrientedGridTransform by output name.
        volumes: (vtkImageData, vtkMatrix4x4) by output name.
        tables: vtkTable by output name.
        report: the content of the report.
    """

    transforms: dict
    volumes: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    report: dict = field(default_factory=dict)


def commitResult(result: LoadedResult, nodes: dict, fixedVolume, movingVolume) -> "tuple[dict, list]":
    """Put a complete result into the scene.

    Args:
        result: what was read.
        nodes: existing output nodes by name; missing ones are created.
        fixedVolume, movingVolume: what was registered, for references and names.

    Returns:
        All output nodes by name, and what they held before, for `restore`.
    """
    wanted = [*result.transforms, *result.volumes, *result.tables]
    scene = fixedVolume.GetScene()
    complete = {name: nodes.get(name) or _newNode(scene, name, movingVolume) for name in wanted}
    before = [_snapshot(node) for node in complete.values()]
    for name, transform in result.transforms.items():
        complete[name].SetAndObserveTransformFromParent(transform)
        markLinear(complete[name])
    for name, (image, matrix) in result.volumes.items():
        complete[name].SetIJKToRASMatrix(matrix)
        complete[name].SetAndObserveImageData(image)
        _showDefault(complete[name])
    for name, table in result.tables.items():
        complete[name].SetAndObserveTable(table)
    for name in (*result.transforms, *result.volumes):
        _refer(complete[name], fixedVolume, movingVolume)
    return complete, before


def restore(snapshots: list) -> list:
    """Give output nodes back what they held; returns snapshots of what they held until now."""
    current = []
    for snapshot in snapshots:
        node = snapshot["node"]
        if node.GetScene() is None:
            continue
        current.append(_snapshot(node))
        snapshot["apply"](node)
    return current


def _newNode(scene, name: str, movingVolume):
    title = scene.GenerateUniqueName(f"{movingVolume.GetName()} {_TITLES[name]}")
    return scene.AddNewNodeByClass(_CLASSES[name], title)


def _snapshot(node) -> dict:
    """What a node holds; new objects replace old ones at a commit, so references suffice."""
    if node.IsA("vtkMRMLTransformNode"):
        transform = node.GetTransformFromParent()
        return {"node": node, "apply": lambda target: target.SetAndObserveTransformFromParent(transform)}
    if node.IsA("vtkMRMLVolumeNode"):
        image, matrix = node.GetImageData(), vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        return {"node": node, "apply": lambda target: _setVolume(target, image, matrix)}
    table = node.GetTable()
    return {"node": node, "apply": lambda target: target.SetAndObserveTable(table)}


def _setVolume(node, image, matrix) -> None:
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(image)


def _refer(node, fixedVolume, movingVolume) -> None:
    """Say what was registered, as Slicer's registration modules do."""
    transformNode = slicer.vtkMRMLTransformNode
    node.SetNodeReferenceID(transformNode.GetFixedNodeReferenceRole(), fixedVolume.GetID())
    node.SetNodeReferenceID(transformNode.GetMovingNodeReferenceRole(), movingVolume.GetID())


def _showDefault(volumeNode) -> None:
    if volumeNode.GetDisplayNode() is None:
        volumeNode.CreateDefaultDisplayNodes()
