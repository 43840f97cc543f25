"""The section Points on stand-ins for Slicer's widgets and real MRML: live, editable on both sides, saved."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless_slicer.fixtures import LPS, add_points
from headless_slicer.panel import Dialogs, ScriptedTransport, discard, make_panel
from headless_slicer.panel_fixtures import field, save_close_and_read, slicer, volumes

__all__ = ["field", "slicer", "volumes"]

pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

SHIFT = np.array([5.0, -3.0, 2.0])
"""From a point to its partner in the answers of the scripted worker, LPS mm."""


def matched(request: dict[str, Any]) -> dict[str, Any]:
    """Partners at a fixed distance; those with x > 50 (LPS) are doubtful."""
    points = np.array(request["parameters"]["points"])
    doubtful = points[:, 0] > 50
    result = {
        "matched": (points + SHIFT).tolist(),
        "score": np.where(doubtful, 0.2, 0.9).tolist(),
        "support": [0.5] * len(points),
        "cycle_mm": [1.5] * len(points),
        "reason": ["the neighbors do not agree" if bad else "" for bad in doubtful],
    }
    return {"reply": "result", "result": result}


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport({"match": matched})


@pytest.fixture
def widget(slicer: Any, transport: ScriptedTransport, volumes: tuple[Any, Any]) -> Iterator[Any]:
    """The panel with two volumes and two empty lists."""
    assert all(volumes)
    from SAMRegistration import SAMRegistrationLogic

    widget = make_panel(SAMRegistrationLogic(makeTransport=lambda: transport), Dialogs())
    parameters = widget.logic.getParameterNode()
    parameters.fixedPoints, parameters.movingPoints = (add_points(slicer, [], name=name) for name in "fm")
    yield widget
    discard(widget)


def positions(node: Any) -> np.ndarray:
    places = np.zeros((node.GetNumberOfControlPoints(), 3))
    for index, row in enumerate(places):
        node.GetNthControlPointPositionWorld(index, row)
    return places


def lists(widget: Any) -> tuple[Any, Any]:
    parameters = widget.logic.getParameterNode()
    return parameters.fixedPoints, parameters.movingPoints


def test_a_point_is_found_as_soon_as_it_is_put_and_while_it_is_dragged(widget: Any) -> None:
    fixed, moving = lists(widget)
    fixed.AddControlPoint(10, 20, 30, "tip")
    assert positions(moving) == pytest.approx((np.array([[10, 20, 30]]) * LPS + SHIFT) * LPS)
    for step in range(5):
        fixed.SetNthControlPointPosition(0, 10 + step, 20, 30)
        assert positions(moving)[0] == pytest.approx((np.array([10 + step, 20, 30]) * LPS + SHIFT) * LPS)
    assert moving.GetNthControlPointLabel(0) == "tip (90 %)"
    assert "Likeness 0.90" in moving.GetNthControlPointDescription(0)


def test_confidence_is_shown_as_color_and_text(widget: Any) -> None:
    fixed, moving = lists(widget)
    fixed.AddControlPoint(0, 0, 0, "good")
    fixed.AddControlPoint(-60, 0, 0, "bad")
    assert [bool(moving.GetNthControlPointSelected(index)) for index in (0, 1)] == [True, False]
    display = moving.GetDisplayNode()
    assert display.GetSelectedColor()[1] > display.GetColor()[1] > 0 and display.GetColor()[0] > 0.9
    assert moving.GetNthControlPointLabel(1) == "bad (20 %)"
    table = widget.ui.pointsTable
    assert table.rowCount == 2 and table.item(1, 2).text().endswith("the neighbors do not agree.")
    assert table.item(0, 1).background().color() != table.item(1, 1).background().color()
    assert widget.ui.pointsLabel.text == "2 points, 1 of them doubtful"


def test_while_an_answer_is_awaited_only_the_newest_place_counts(
    widget: Any, transport: ScriptedTransport
) -> None:
    fixed, moving = lists(widget)
    transport.answers["match"] = lambda _: None
    fixed.AddControlPoint(0, 0, 0, "a")
    waiting = transport.requests[-1]
    for x in range(1, 20):
        fixed.SetNthControlPointPosition(0, x, 0, 0)
    assert len(transport.requests) == 1, "no queue of outdated questions"
    transport.answers["match"] = matched
    transport.say(waiting["id"], matched(waiting))
    assert len(transport.requests) == 2
    assert positions(moving)[0] == pytest.approx((np.array([19, 0, 0]) * LPS + SHIFT) * LPS)


def test_a_partner_that_was_moved_by_hand_stays(widget: Any) -> None:
    fixed, moving = lists(widget)
    fixed.AddControlPoint(0, 0, 0, "a")
    fixed.AddControlPoint(9, 0, 0, "b")
    moving.SetNthControlPointPosition(0, 1, 2, 3)
    assert moving.GetNthControlPointLabel(0) == "a (set by hand)"
    widget.ui.matchPointsButton.click()
    assert positions(moving)[0] == pytest.approx([1, 2, 3])
    fixed.SetNthControlPointPosition(0, 5, 0, 0)
    assert moving.GetNthControlPointLabel(0) == "a (90 %)", "its point was moved: it is looked for again"


@pytest.mark.parametrize("side", [0, 1])
def test_a_point_that_is_deleted_takes_its_partner_with_it(widget: Any, side: int) -> None:
    both = lists(widget)
    for x in (0, 9, 18):
        both[0].AddControlPoint(x, 0, 0, f"p{x}")
    both[side].RemoveNthControlPoint(1)
    assert [node.GetNumberOfControlPoints() for node in both] == [2, 2]
    assert positions(both[0])[:, 0].tolist() == [0, 18]
    assert positions(both[1])[:, 0] == pytest.approx([-5, 13])
    both[0].AddControlPoint(30, 0, 0, "p30")
    assert positions(both[1])[:, 0] == pytest.approx([-5, 13, 25])


def test_without_live_matching_points_wait_for_the_button(widget: Any, transport: ScriptedTransport) -> None:
    fixed, moving = lists(widget)
    widget.ui.livePointsCheckBox.setChecked(False)
    fixed.AddControlPoint(0, 0, 0, "a")
    assert not transport.requests and moving.GetNumberOfControlPoints() == 0
    widget.ui.matchPointsButton.click()
    assert moving.GetNumberOfControlPoints() == 1
    widget.ui.pointMethodComboBox.setCurrentIndex(2)
    widget.ui.matchPointsButton.click()
    assert transport.requests[-1]["parameters"]["method"] == "joint"


def test_under_the_result_partners_lie_where_the_moving_volume_is_seen(
    slicer: Any, widget: Any, volumes: tuple[Any, Any], field: Path
) -> None:
    from SAMRegistrationModule.TransformNodes import applyToMoving, readFieldFile

    parameters = widget.logic.getParameterNode()
    result = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    result.SetAndObserveTransformFromParent(readFieldFile(field))
    parameters.outputTransform = result
    applyToMoving(volumes[1], result)
    widget.ui.placePointsButton.click()
    fixed, moving = lists(widget)
    fixed.AddControlPoint(0, 0, 0, "a")
    assert moving.GetParentTransformNode() is result
    local = np.zeros(3)
    moving.GetNthControlPointPosition(0, local)
    assert local == pytest.approx(SHIFT * LPS)
    assert positions(moving)[0] == pytest.approx(SHIFT * LPS - [-14.0, 9.0, 20.0], abs=0.05)


def test_points_become_landmarks_for_start_evaluation_and_refinement(widget: Any) -> None:
    for place in ((0, 0, 0), (30, 0, 0), (0, 30, 0)):
        lists(widget)[0].AddControlPoint(*place, str(place))
    widget.ui.pointsAsLandmarksButton.click()
    parameters = widget.logic.getParameterNode()
    assert (parameters.fixedLandmarks, parameters.movingLandmarks) == lists(widget)
    inputs = widget.panel.evaluate._inputs()
    assert inputs.fixedLandmarks is parameters.fixedLandmarks


def test_points_give_a_rigid_start_that_does_not_replace_the_users_own(slicer: Any, widget: Any) -> None:
    parameters = widget.logic.getParameterNode()
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "own")
    parameters.initialTransform = own
    for place in ((0, 0, 0), (30, 0, 0), (0, 30, 0), (0, 0, 30), (-60, 0, 0)):
        lists(widget)[0].AddControlPoint(*place, str(place))
    widget.ui.pointsAsStartButton.click()
    start = parameters.initialTransform
    assert start is not own and "Started from 4 pairs" in widget.ui.pointsLabel.text, (
        "the doubtful one is left out"
    )
    assert start.GetTransformToParent().TransformPoint(*(SHIFT * LPS).tolist()) == pytest.approx((0, 0, 0))
    widget.ui.pointsAsStartButton.click()
    assert parameters.initialTransform is start


def test_points_are_exported_in_lps(widget: Any, tmp_path: Path) -> None:
    lists(widget)[0].AddControlPoint(10, 20, 30, "tip")
    widget._dialogs.file = str(tmp_path / "points.csv")
    widget.ui.exportPointsButton.click()
    (row,) = csv.DictReader((tmp_path / "points.csv").read_text().splitlines())
    assert row["label"] == "tip" and float(row["score"]) == 0.9
    assert [float(row[f"fixed_{axis}"]) for axis in "xyz"] == [-10, -20, 30]
    assert [float(row[f"moving_{axis}"]) for axis in "xyz"] == pytest.approx([-5, -23, 32])


def test_a_heat_map_lies_over_the_moving_volume(
    slicer: Any, widget: Any, transport: ScriptedTransport, volumes: tuple[Any, Any]
) -> None:
    def heat(request: dict[str, Any]) -> dict[str, Any]:
        shutil.copy(request["parameters"]["moving"], request["parameters"]["output"])
        return {"reply": "result", "result": {"output": request["parameters"]["output"], "highest": 0.8}}

    transport.answers["heat_map"] = heat
    lists(widget)[0].AddControlPoint(10, 20, 30, "tip")
    widget.ui.heatMapButton.click()
    assert transport.requests[-1]["parameters"]["point"] == [-10, -20, 30]
    parameters = widget.logic.getParameterNode()
    assert parameters.heatMap.GetName() == "moving likeness" and "0.80" in widget.ui.pointsLabel.text
    composite = slicer.util.getNode("vtkMRMLSliceCompositeNode1")
    assert composite.GetForegroundVolumeID() == parameters.heatMap.GetID()
    assert composite.GetBackgroundVolumeID() == volumes[1].GetID()
    widget.ui.heatMapButton.click()
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 3, "updated in place"


def test_points_and_what_is_known_of_them_are_saved_with_the_scene(
    slicer: Any, widget: Any, tmp_path: Path
) -> None:
    fixed, moving = lists(widget)
    for x in (0, 9, -60):
        fixed.AddControlPoint(x, 0, 0, f"p{x}")
    moving.SetNthControlPointPosition(1, 1, 2, 3)
    before = positions(moving)
    save_close_and_read(slicer, tmp_path)
    widget.enter()
    read = lists(widget)
    assert None not in read and read[1] is not moving
    pairs = widget.panel.points._points.pairs
    assert [pair.text for pair in pairs] == ["90 %", "set by hand", "20 %"]
    ids = [[node.GetNthControlPointID(index) for index in range(3)] for node in read]
    assert [[pair.fixedID for pair in pairs], [pair.movingID for pair in pairs]] == ids
    assert positions(read[1]) == pytest.approx(before)
    assert widget.ui.pointsTable.rowCount == 3
    read[0].SetNthControlPointPosition(2, 20, 0, 0)
    assert [pair.text for pair in pairs] == ["90 %", "set by hand", "90 %"], "it goes on as before"


def test_a_failure_is_told_and_the_next_point_is_asked_for_again(
    widget: Any, transport: ScriptedTransport
) -> None:
    fixed, moving = lists(widget)
    error = {"reply": "error", "message": "the weights are missing", "hint": "Press Install.", "kind": "input"}
    transport.answers["match"] = lambda _: error
    fixed.AddControlPoint(0, 0, 0, "a")
    assert widget.ui.pointsLabel.text == "the weights are missing\nPress Install."
    transport.answers["match"] = matched
    fixed.AddControlPoint(9, 0, 0, "b")
    assert moving.GetNumberOfControlPoints() == 1
    widget.ui.matchPointsButton.click()
    assert moving.GetNthControlPointLabel(0) == "a (90 %)" and moving.GetNumberOfControlPoints() == 2
