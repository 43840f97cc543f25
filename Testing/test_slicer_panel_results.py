"""The panel's sections that show and measure a result, on PySide6 and real MRML: not a test in Slicer."""

from __future__ import annotations

from typing import Any

import pytest
from headless_slicer.fixtures import add_points
from headless_slicer.panel import (
    ScriptedTransport,
)
from headless_slicer.panel_fixtures import field, slicer, transport, volumes, widget

pytest.importorskip("slicer", reason="slicer-core is not installed: the panel is not tested here")
pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

__all__ = ["field", "slicer", "transport", "volumes", "widget"]


def comparison_reply(request: dict[str, Any], folds: bool = False) -> dict[str, Any]:
    """The answer to a comparison: the fixed volume as every view."""
    parameters = request["parameters"]
    files = {view: parameters["fixed"] for view in parameters["views"]}
    worst = {"position": [-10.0, 10.0, -30.0], "folds": folds, "value": -0.5 if folds else 321.0}
    return {"reply": "result", "result": {**files, "limit": 200.0, "worst": worst}}


def test_review_shows_every_view_and_reuses_its_volumes(
    slicer: Any, widget: Any, volumes: tuple[Any, Any], transport: ScriptedTransport
) -> None:
    ui = widget.ui
    transport.answers["compare"] = comparison_reply
    assert not ui.fadeButton.enabled and "Register first" in ui.reviewLabel.text
    ui.wantWarpedCheckBox.setChecked(False)
    ui.applyButton.click()
    composite = slicer.util.getNode("vtkMRMLSliceCompositeNode1")
    ui.fadeButton.click()
    ui.fadeSliderWidget.setValue(0.25)
    assert composite.GetForegroundOpacity() == pytest.approx(0.25)
    assert composite.GetBackgroundVolumeID() == volumes[0].GetID()
    for button in (ui.checkerboardButton, ui.differenceButton, ui.jacobianButton):
        button.click()
        shown = {composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()}
        assert shown - {None, volumes[0].GetID(), volumes[1].GetID()}, "a volume of its own"
        count, asked = slicer.mrmlScene.GetNumberOfNodes(), len(transport.requests)
        ui.fadeButton.click()
        button.click()
        assert shown == {composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()}
        assert slicer.mrmlScene.GetNumberOfNodes() == count and len(transport.requests) == asked, "known"
        assert button.checked and not ui.fadeButton.checked
    transform = widget.logic.getParameterNode().outputTransform
    ui.gridButton.click()
    assert transform.GetDisplayNode().GetVisibility() and transform.GetDisplayNode().GetVisibility2D()
    ui.gridButton.click()
    assert not transform.GetDisplayNode().GetVisibility()


@pytest.mark.parametrize(("folds", "words"), [(True, "folds"), (False, "differ most: 321")])
def test_the_worst_place_is_shown_with_the_reason(
    slicer: Any, widget: Any, transport: ScriptedTransport, folds: bool, words: str
) -> None:
    transport.answers["compare"] = lambda request: comparison_reply(request, folds)
    widget.ui.wantWarpedCheckBox.setChecked(False)
    widget.ui.applyButton.click()
    widget.ui.worstButton.click()
    assert words in widget.ui.reviewLabel.text
    slice_node = slicer.util.getNode("vtkMRMLSliceNode1")
    position = [slice_node.GetSliceToRAS().GetElement(row, 3) for row in range(3)]
    assert position == pytest.approx([10, -10, -30])


def test_a_view_asked_for_meanwhile_replaces_the_one_before(
    slicer: Any, widget: Any, transport: ScriptedTransport
) -> None:
    ui = widget.ui
    ui.wantWarpedCheckBox.setChecked(False)
    ui.applyButton.click()
    transport.answers["compare"] = lambda _: None
    ui.checkerboardButton.click()
    assert ui.reviewLabel.text == "Computing..."
    waiting = transport.requests[-1]["id"]
    transport.answers["compare"] = comparison_reply
    ui.differenceButton.click()
    assert {"request": "cancel", "id": waiting} in transport.requests
    assert slicer.mrmlScene.GetFirstNodeByName("moving checkerboard") is None
    assert slicer.mrmlScene.GetFirstNodeByName("moving difference") is not None


def test_evaluate_fills_a_table_and_a_plot(slicer: Any, widget: Any, transport: ScriptedTransport) -> None:
    ui = widget.ui
    assert not ui.evaluateButton.enabled
    ui.wantWarpedCheckBox.setChecked(False)
    ui.applyButton.click()
    points = [add_points(slicer, [[0, 0, 0], [9, 9, 9]]) for _ in range(2)]
    ui.evaluationFixedLandmarksSelector.setCurrentNode(points[0])
    ui.evaluationMovingLandmarksSelector.setCurrentNode(points[1])
    means = {"mean_mm": 5.0, "median_mm": 5.0, "p95_mm": 5.0, "max_mm": 5.0}
    found = {
        "field": {"folded_percent": 0.0},
        "landmarks": {
            "count": 1,
            "per_landmark": [{"name": "a", "before_mm": 9.0, "after_mm": 5.0}],
            "mean": {"before": {name: 9.0 for name in means}, "after": means},
        },
    }
    transport.answers["evaluate"] = lambda _: {"reply": "result", "result": {"report": found}}
    ui.evaluateButton.click()
    assert ui.evaluateLabel.text == "mean landmark error 9.0 mm before, 5.0 mm after."
    table = widget.logic.getParameterNode().evaluationTable
    assert table.GetTable().GetValue(0, 0).ToString() == "a"
    ui.evaluateButton.click()
    assert widget.logic.getParameterNode().evaluationTable is table, "updated in place"
    assert len(slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode")) == 2
