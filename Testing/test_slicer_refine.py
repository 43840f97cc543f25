"""The section Refine on stand-ins for Slicer's widgets and real MRML: steps, undo, history in the scene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless_slicer.fixtures import LPS, add_points, rotation_about_z
from headless_slicer.panel import Dialogs, ScriptedTransport, discard, make_panel
from headless_slicer.panel_fixtures import field, save_close_and_read, slicer, volumes

__all__ = ["field", "slicer", "volumes"]

pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

BEFORE, AFTER = np.array([-14.0, 9.0, 20.0]), np.array([-10.0, 9.0, 20.0])
"""Displacements in RAS of the result and of its refinement."""

REGION = {"rmse_before": 210.0, "rmse_after": 131.0, "loss": [1.0, 0.5]}


@pytest.fixture
def refined(slicer: Any, tmp_path: Path) -> Path:
    """The refined field, as a worker writes it."""
    assert slicer.mrmlScene is not None
    from SAMRegistrationModule.Geometry import GridGeometry
    from SAMRegistrationModule.VolumeFiles import writeDisplacementFile

    matrix = np.diag([10.0, 10.0, 10.0, 1.0])
    matrix[:3, 3] = -80
    displacement = np.broadcast_to(AFTER, (17, 17, 17, 3))
    return writeDisplacementFile(tmp_path / "refined.nrrd", displacement, GridGeometry((17, 17, 17), matrix))


@pytest.fixture
def transport(field: Path, refined: Path) -> ScriptedTransport:
    def answer(file: Path, **more: Any) -> dict[str, Any]:
        return {"reply": "result", "result": {"field": str(file), "transform": str(file), "report": {}, **more}}

    landmarks = {"tre_before_mm": [6.0, 4.0], "tre_after_mm": [0.5, 0.5], "suspicious": []}
    return ScriptedTransport(
        {
            "register": lambda _: answer(field),
            "refine": lambda request: answer(
                refined, regions=[REGION] * len(request["parameters"]["regions"]), landmarks=landmarks
            ),
        }
    )


@pytest.fixture
def widget(transport: ScriptedTransport, volumes: tuple[Any, Any]) -> Iterator[Any]:
    """The panel after a registration."""
    assert all(volumes)
    from SAMRegistration import SAMRegistrationLogic

    widget = make_panel(SAMRegistrationLogic(makeTransport=lambda: transport), Dialogs())
    assert "Register first" in widget.ui.refineButton.toolTip
    widget.ui.wantWarpedCheckBox.setChecked(False)
    widget.ui.applyButton.click()
    yield widget
    discard(widget)


def add_box(slicer: Any, widget: Any, name: str = "box", matrix: np.ndarray | None = None) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    if matrix is not None:
        node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.SetSize(20, 30, 40)
    widget.ui.regionSelector.setCurrentNode(node)
    widget.ui.addBoxButton.click()
    return node


def displacement(widget: Any) -> np.ndarray:
    transform = widget.logic.getParameterNode().outputTransform.GetTransformFromParent()
    return np.array(transform.TransformPoint(0.0, 0.0, 0.0))


def history(widget: Any) -> list[list[str]]:
    table = widget.ui.historyTable
    return [[table.item(row, column).text() for column in range(4)] for row in range(table.rowCount)]


def test_a_box_is_refined_compared_undone_and_accepted(slicer: Any, widget: Any) -> None:
    ui = widget.ui
    assert "Draw a box" in ui.refineButton.toolTip and not ui.refineButton.enabled
    add_box(slicer, widget)
    ui.refineButton.click()
    assert displacement(widget) == pytest.approx(AFTER)
    assert ui.refineLabel.text == "Done; error in the boxes 210.0 HU before, 131.0 HU after."
    assert history(widget) == [["box", "210.0 HU", "131.0 HU", "to be accepted"]]
    ui.showBeforeButton.click()
    assert displacement(widget) == pytest.approx(BEFORE)
    ui.showBeforeButton.click()
    assert displacement(widget) == pytest.approx(AFTER)
    ui.acceptButton.click()
    assert history(widget)[0][3] == "accepted" and not ui.acceptButton.enabled
    ui.undoRefineButton.click()
    assert displacement(widget) == pytest.approx(BEFORE) and history(widget) == []
    assert not ui.undoRefineButton.enabled


def test_a_rotated_box_on_either_volume_is_told_as_it_lies(
    slicer: Any, widget: Any, transport: ScriptedTransport
) -> None:
    matrix = rotation_about_z(30)
    matrix[:3, 3] = [10, 20, 30]
    add_box(slicer, widget, "first", matrix)
    widget.ui.drawnOnComboBox.setCurrentIndex(1)
    second = add_box(slicer, widget, "second")
    second.SetAndObserveTransformNodeID(widget.logic.getParameterNode().outputTransform.GetID())
    widget.ui.refineButton.click()
    first, other = transport.requests[-1]["parameters"]["regions"]
    assert first["center"] == pytest.approx([-10, -20, 30]) and first["size"] == pytest.approx([20, 30, 40])
    assert np.abs(np.array(first["axes"]) - LPS[:, None] * matrix[:3, :3]).max() < 1e-6
    assert first["on"] == "fixed"
    assert other["on"] == "moving" and other["center"] == pytest.approx([0, 0, 0], abs=1e-6), "without the result"
    assert [row[0] for row in history(widget)] == ["first, second"]
    widget.ui.regionsTable.setCurrentCell(0, 0)
    widget.ui.removeBoxButton.click()
    assert [node.GetName() for node in widget.panel.refine.regions.nodes()] == ["second"]


def test_steps_follow_each_other_and_are_undone_one_by_one(
    slicer: Any, widget: Any, transport: ScriptedTransport, field: Path
) -> None:
    add_box(slicer, widget)
    widget.ui.refineButton.click()
    known = transport.requests[-1]["parameters"]["transform"]
    assert known.endswith(".nrrd") and Path(known).read_bytes() == field.read_bytes(), "the worker's own file"
    widget.ui.refineButton.click()
    assert [row[3] for row in history(widget)] == ["accepted", "to be accepted"]
    widget.ui.undoRefineButton.click()
    assert len(history(widget)) == 1 and displacement(widget) == pytest.approx(AFTER)
    widget.ui.undoRefineButton.click()
    assert displacement(widget) == pytest.approx(BEFORE)
    widget.ui.applyButton.click()
    assert history(widget) == []


def test_landmarks_of_inputs_take_part(slicer: Any, widget: Any, transport: ScriptedTransport) -> None:
    parameters = widget.logic.getParameterNode()
    parameters.fixedLandmarks = add_points(slicer, [[1, 2, 3], [4, 5, 6]], ["a", "b"])
    parameters.movingLandmarks = add_points(slicer, [[4, 5, 7], [1, 2, 4]], ["b", "a"])
    assert not widget.ui.refineButton.enabled
    widget.ui.refineWithLandmarksCheckBox.setChecked(True)
    widget.ui.landmarkWeightSpinBox.setValue(2.5)
    widget.ui.iterationsSpinBox.setValue(150)
    widget.ui.refineButton.click()
    sent = transport.requests[-1]["parameters"]
    assert sent["iterations"] == 150 and sent["regions"] == []
    pair = {"fixed": [-1, -2, 3], "moving": [-1, -2, 4], "label": "a", "weight_mm": 2.5, "exact": False}
    assert sent["points"][0] == pair
    assert "error at the landmarks 5.0 mm before, 0.5 mm after" in widget.ui.refineLabel.text


def test_cancelling_leaves_the_result_and_the_history(
    slicer: Any, widget: Any, transport: ScriptedTransport
) -> None:
    add_box(slicer, widget)
    transport.answers["refine"] = lambda _: None
    count = slicer.mrmlScene.GetNumberOfNodes()
    widget.ui.refineButton.click()
    waiting = transport.requests[-1]["id"]
    assert widget.ui.refineButton.text == "Cancel"
    widget.ui.refineButton.click()
    cancelled = {"reply": "error", "message": "cancelled", "hint": None, "kind": "cancelled"}
    transport.say(waiting, cancelled)
    assert widget.ui.refineLabel.text == "Cancelled; the result is as it was."
    assert displacement(widget) == pytest.approx(BEFORE) and history(widget) == []
    assert slicer.mrmlScene.GetNumberOfNodes() == count and widget.ui.refineButton.text == "Refine"


def test_boxes_and_history_are_saved_with_the_scene_and_undone_afterwards(
    slicer: Any, widget: Any, tmp_path: Path
) -> None:
    widget.ui.drawnOnComboBox.setCurrentIndex(1)
    add_box(slicer, widget)
    widget.ui.refineButton.click()
    save_close_and_read(slicer, tmp_path)
    widget.enter()
    assert history(widget) == [["box", "210.0 HU", "131.0 HU", "to be accepted"]]
    assert widget.ui.regionsTable.item(0, 1).text() == "moving volume"
    assert displacement(widget) == pytest.approx(AFTER)
    widget.ui.undoRefineButton.click()
    assert displacement(widget) == pytest.approx(BEFORE) and history(widget) == []


def test_a_box_outside_the_volumes_is_answered_by_a_sentence(
    slicer: Any, widget: Any, transport: ScriptedTransport
) -> None:
    add_box(slicer, widget)
    error = {"reply": "error", "message": "the box lies outside", "hint": "Draw it anew.", "kind": "input"}
    transport.answers["refine"] = lambda _: error
    widget.ui.refineButton.click()
    assert widget.ui.refineLabel.text == "the box lies outside\nDraw it anew."
    assert widget.ui.refineButton.enabled and history(widget) == []
