"""A MRML scene with the logics of Slicer's loadable modules, without the application (package slicer-core)."""

from __future__ import annotations

import types
from typing import Any

_KEPT: dict[str, Any] = {}
"""The application logic and the modules' logics: the scene does not keep them alive."""

_LOGICS = {
    "Volumes": "vtkSlicerVolumesLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
}


def start_mrml() -> Any:
    """Make `slicer.mrmlScene` and `slicer.modules` usable, once per process; returns the module `slicer`."""
    import slicer

    if _KEPT:
        return slicer
    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = application.GetColorLogic()
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    logics = {"Colors": colors}
    for name, kind in _LOGICS.items():
        if not hasattr(slicer, kind):
            continue
        logic = getattr(slicer, kind)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        logics[name] = logic
    _KEPT.update(scene=scene, application=application, logics=logics)
    slicer.mrmlScene = scene
    slicer.modules = types.SimpleNamespace(
        **{name.lower(): types.SimpleNamespace(logic=lambda own=logic: own) for name, logic in logics.items()}
    )
    return slicer


def clear_scene() -> None:
    """An empty scene, with the color tables that Slicer always has."""
    import slicer

    slicer.mrmlScene.Clear(0)
    _KEPT["logics"]["Colors"].AddDefaultColorNodes()
