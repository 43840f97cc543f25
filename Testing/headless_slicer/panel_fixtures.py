"""Pytest fixtures for tests of the panel: a scene with slice views, two volumes, and a worker's field."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import phantom_pair

from .fixtures import add_image, make_module_importable
from .panel import Dialogs, ScriptedTransport, discard, make_panel, result_reply

REPORT = {
    "preset": "default",
    "seconds": 12.0,
    "machine": {"device": "cpu"},
    "similarity": {
        "before": {"normalized_cross_correlation": 0.4},
        "after": {"normalized_cross_correlation": 0.9},
    },
    "field": {"folded_percent": 0.0},
    "warnings": ["the volumes overlap little"],
}


@pytest.fixture
def slicer() -> Iterator[Any]:
    """The module `slicer` with stand-ins around real MRML, and an empty scene."""
    from headless_slicer.application import start_slicer
    from headless_slicer.mrml import clear_scene

    slicer = start_slicer()
    make_module_importable()
    clear_scene()
    for name in ("Red", "Yellow"):
        composite = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", name)
        composite.SetLayoutName(name)
        slice_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", name)
        slice_node.SetLayoutName(name)
    yield slicer
    clear_scene()


@pytest.fixture
def volumes(slicer: Any) -> tuple[Any, Any]:
    pair = phantom_pair(spacing=6.0)
    return add_image(slicer, pair.fixed, "fixed"), add_image(slicer, pair.moving, "moving")


@pytest.fixture
def field(slicer: Any, tmp_path: Path) -> Path:
    """A displacement of 14, 9 and -20 mm (RAS), as a worker writes it."""
    assert slicer.mrmlScene is not None
    from SAMRegistrationModule.Geometry import GridGeometry
    from SAMRegistrationModule.VolumeFiles import writeDisplacementFile

    matrix = np.diag([10.0, 10.0, 10.0, 1.0])
    matrix[:3, 3] = -80
    displacement = np.broadcast_to([-14.0, 9.0, 20.0], (17, 17, 17, 3))
    return writeDisplacementFile(tmp_path / "field.nrrd", displacement, GridGeometry((17, 17, 17), matrix))


@pytest.fixture
def transport(field: Path) -> ScriptedTransport:
    return ScriptedTransport({"register": lambda _: result_reply(field, REPORT)})


@pytest.fixture
def widget(slicer: Any, transport: ScriptedTransport, volumes: tuple[Any, Any]) -> Iterator[Any]:
    """The panel with two volumes and the scripted worker."""
    assert slicer.app is not None and all(volumes)
    from SAMRegistration import SAMRegistrationLogic

    widget = make_panel(SAMRegistrationLogic(makeTransport=lambda: transport), Dialogs())
    yield widget
    discard(widget)


def save_close_and_read(slicer: Any, folder: Path) -> None:
    """Save the scene as MRB, close it, and read it again; without its views, which need an application."""
    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        for node in slicer.util.getNodesByClass(kind):
            slicer.mrmlScene.RemoveNode(node)
    assert slicer.mrmlScene.WriteToMRB(str(folder / "scene.mrb"))
    shutil.unpack_archive(folder / "scene.mrb", folder / "scene", "zip")
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.SetURL(str(next((folder / "scene").rglob("*.mrml"))))
    assert slicer.mrmlScene.Import()
