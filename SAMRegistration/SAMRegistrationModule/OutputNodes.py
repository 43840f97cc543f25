"""Results into the scene: all at once, into existing nodes where there are some, and back again."""

from dataclasses import dataclass, field

import slicer
import vtk

from .TransformNodes import noteRefinement

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
        transforms: vtkOrientedGridTransform by output name, all from the fixed to the moving world.
        volumes: (vtkImageData, vtkMatrix4x4) by output name.
        tables: vtkTable by output name.
        report: the content of the report.
        refinement: how many times finer the field is sampled than it was solved.
    """

    transforms: dict
    volumes: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    report: dict = field(default_factory=dict)
    refinement: int = 1


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
    before = [_snapshot(name, node) for name, node in complete.items()]
    for name, transform in result.transforms.items():
        _setTransform(complete[name], name, transform)
        if name == TRANSFORM:
            noteRefinement(complete[name], result.refinement)
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
        current.append(_snapshot(snapshot["name"], node))
        snapshot["apply"]()
    return current


def _newNode(scene, name: str, movingVolume):
    title = scene.GenerateUniqueName(f"{movingVolume.GetName()} {_TITLES[name]}")
    return scene.AddNewNodeByClass(_CLASSES[name], title)


def _snapshot(name: str, node) -> dict:
    """What an output node holds; new objects replace old ones at a commit, so references suffice."""
    if node.IsA("vtkMRMLTransformNode"):
        held = (node.GetTransformToParent() if name == INVERSE else node.GetTransformFromParent(),)
        give = _setTransform
    elif node.IsA("vtkMRMLVolumeNode"):
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        held, give = (node.GetImageData(), matrix), _setVolume
    else:
        held, give = (node.GetTable(),), _setTable
    return {"name": name, "node": node, "apply": lambda: give(node, name, *held)}


def _setTransform(node, name: str, transform) -> None:
    """The inverse is the same map in the other direction, inverted by VTK where it is needed."""
    if name == INVERSE:
        node.SetAndObserveTransformToParent(transform)
    else:
        node.SetAndObserveTransformFromParent(transform)


def _setTable(node, _name: str, table) -> None:
    node.SetAndObserveTable(table)


def _setVolume(node, _name: str, image, matrix) -> None:
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
