"""The panel on PySide6 and real MRML, with stand-ins for Slicer's widgets: not a test in Slicer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from headless_slicer.fixtures import MODULE_FOLDER, add_image, add_points
from headless_slicer.panel import (
    Dialogs,
    ScriptedTransport,
    discard,
    make_module,
    make_panel,
    process_until,
    result_reply,
)
from headless_slicer.panel_fixtures import field, slicer, volumes
from phantoms import phantom_pair

pytest.importorskip("slicer", reason="slicer-core is not installed: the panel is not tested here")
pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

__all__ = ["field", "slicer", "volumes"]

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


def test_every_widget_and_parameter_that_is_named_exists() -> None:
    text = (MODULE_FOLDER / "Resources" / "UI" / "SAMRegistration.ui").read_text()
    there = set(re.findall(r'<widget class="\w+" name="(\w+)"', text))
    used = set()
    for file in [*MODULE_FOLDER.glob("*.py"), *(MODULE_FOLDER / "SAMRegistrationModule").glob("*.py")]:
        used |= set(re.findall(r"\bui\.(\w+)", file.read_text()))
    assert used and used <= there
    parameters = set(re.findall(r'name="SlicerParameterName"[^>]*>\s*<string>(\w+)', text))
    fields = set(re.findall(r"^    (\w+): ", (MODULE_FOLDER / "SAMRegistration.py").read_text(), re.MULTILINE))
    assert parameters and parameters <= fields


def test_the_module_says_what_it_is_and_offers_its_samples(slicer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = make_module()
    assert module.parent.title and module.parent.categories == ["Registration"]
    registered: list[dict] = []
    logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **source: registered.append(source))
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = logic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    slicer.app.complete_startup()
    assert len(registered[0]["uris"]) == len(registered[0]["fileNames"]) == len(registered[0]["nodeNames"]) == 2
    for address in registered[0]["uris"]:
        assert address.startswith("file:") and Path(address.removeprefix("file://")).is_file()
    assert Path(registered[0]["thumbnailFileName"]).is_file()


def test_apply_says_what_is_missing(widget: Any, volumes: tuple[Any, Any]) -> None:
    ui, fixed = widget.ui, volumes[0]
    assert ui.applyButton.enabled, "two volumes are proposed"
    ui.fixedVolumeSelector.setCurrentNode(None)
    assert not ui.applyButton.enabled and "fixed volume" in ui.applyButton.toolTip
    ui.fixedVolumeSelector.setCurrentNode(fixed)
    ui.movingVolumeSelector.setCurrentNode(None)
    assert not ui.applyButton.enabled and "moving volume" in ui.applyButton.toolTip
    ui.movingVolumeSelector.setCurrentNode(fixed)
    assert not ui.applyButton.enabled and ui.applyButton.toolTip == "Choose two different volumes."


def test_landmarks_need_a_partner_and_exclude_an_initial_transform(slicer: Any, widget: Any) -> None:
    points = add_points(slicer, [[0, 0, 0]])
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "start")
    widget.ui.fixedLandmarksSelector.setCurrentNode(points)
    assert "come in pairs" in widget.ui.applyButton.toolTip
    widget.ui.movingLandmarksSelector.setCurrentNode(points)
    assert widget.ui.applyButton.enabled
    widget.ui.initialTransformSelector.setCurrentNode(transform)
    assert not widget.ui.applyButton.enabled and "either" in widget.ui.applyButton.toolTip


def test_choices_are_saved_in_the_scene(slicer: Any, widget: Any, volumes: tuple[Any, Any]) -> None:
    widget.ui.presetComboBox.setCurrentIndex(widget.ui.presetComboBox.findText("affine"))
    widget.ui.wantInverseCheckBox.setChecked(True)
    widget.ui.fixedVolumeSelector.setCurrentNode(volumes[1])
    widget.cleanup()
    again = make_panel(widget.logic)
    assert again.ui.presetComboBox.currentText == "affine"
    assert again.ui.wantInverseCheckBox.checked
    assert again.ui.fixedVolumeSelector.currentNode() is volumes[1]
    parameters = again.logic.getParameterNode()
    parameters.wantInverse = False
    assert not again.ui.wantInverseCheckBox.checked, "the panel follows the node"
    assert len(slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")) == 1
    discard(again)


def test_presets_come_with_a_sentence(widget: Any) -> None:
    from SAMRegistrationLib.presets import load_preset, usable_preset_names

    combo = widget.ui.presetComboBox
    names = [combo.itemText(index) for index in range(combo.count)]
    assert names[0] == "default" and sorted(names) == usable_preset_names()
    for name in names:
        combo.setCurrentIndex(combo.findText(name))
        assert widget.ui.presetLabel.text.startswith(load_preset(name).summary)
        assert "easured" in widget.ui.presetLabel.text


def test_apply_registers_and_undo_takes_it_back(
    slicer: Any, widget: Any, transport: ScriptedTransport, volumes: tuple[Any, Any], tmp_path: Path
) -> None:
    ui = widget.ui
    warped = tmp_path / "warped.nrrd"
    from SAMRegistrationModule.Flattening import flattenedVolume
    from SAMRegistrationModule.VolumeFiles import writeVolumeFile

    writeVolumeFile(warped, *flattenedVolume(volumes[0]))
    field = Path(transport.answers["register"]({})["result"]["field"])
    transport.answers["register"] = lambda _: result_reply(field, REPORT, warped=warped)
    ui.applyButton.click()
    parameters = widget.logic.getParameterNode()
    assert ui.statusLabel.text.startswith("Done in 12 s; correlation 0.40 before and 0.90 after")
    assert "Warning: the volumes overlap little" in ui.statusLabel.text
    assert ui.outputTransformSelector.currentNode() is parameters.outputTransform is not None
    assert parameters.outputWarped is not None and parameters.outputReport is not None
    assert volumes[1].GetParentTransformNode() is parameters.outputTransform
    composite = slicer.util.getNode("vtkMRMLSliceCompositeNode1")
    assert composite.GetForegroundVolumeID() == volumes[1].GetID()
    assert ui.applyButton.text == "Apply" and ui.applyButton.enabled
    assert ui.undoButton.enabled
    ui.undoButton.click()
    assert parameters.outputTransform.GetTransformFromParent() is None or not ui.undoButton.enabled
    assert transport.requests[0]["parameters"]["preset"] == "default"
    assert transport.requests[0]["parameters"]["allow_cpu"] is True


def test_apply_turns_into_cancel(slicer: Any, widget: Any, transport: ScriptedTransport) -> None:
    ui = widget.ui
    transport.answers = {"cancel": lambda _: {"reply": "error", "message": "cancelled", "kind": "cancelled"}}
    nodes = set(slicer.util.getNodes("*"))
    ui.applyButton.click()
    assert ui.applyButton.text == "Cancel" and ui.applyButton.enabled
    number = transport.requests[0]["id"]
    transport.say(
        number, {"reply": "progress", "stage": "message_passing", "fraction": 0.4, "seconds_left": 130.0}
    )
    assert ui.statusLabel.text == "Message passing, about 2 min left" and ui.progressBar.value == 400
    ui.applyButton.click()
    assert ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert ui.applyButton.text == "Apply" and ui.applyButton.enabled
    assert set(slicer.util.getNodes("*")) - nodes <= {"SAMRegistration"}
    assert [request["request"] for request in transport.requests] == ["register", "cancel"]


def test_a_failure_is_told_with_what_to_do(widget: Any, transport: ScriptedTransport) -> None:
    error = {"reply": "error", "message": "memory ran out", "hint": "Crop.", "kind": "memory"}
    transport.answers = {"register": lambda _: error}
    widget.ui.applyButton.click()
    assert "memory ran out" in widget.ui.statusLabel.text and "Free memory" in widget.ui.statusLabel.text
    assert widget.ui.applyButton.enabled


def test_wrong_inputs_are_told_without_asking_the_worker(
    slicer: Any, widget: Any, transport: ScriptedTransport
) -> None:
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    widget.ui.fixedMaskSelector.setCurrentNode(empty)
    widget.ui.applyButton.click()
    assert '"nothing"' in widget.ui.statusLabel.text and not transport.requests


def test_the_log_is_capped(widget: Any, transport: ScriptedTransport) -> None:
    widget.ui.applyButton.click()
    for number in range(700):
        transport.log(f"line {number}")
    lines = widget.ui.logTextEdit.plainText.splitlines()
    assert len(lines) <= 500 and lines[-1] == "line 699"


def test_closing_the_scene_stops_the_work(
    slicer: Any, widget: Any, transport: ScriptedTransport, volumes: tuple[Any, Any]
) -> None:
    from headless_slicer.mrml import clear_scene

    transport.answers = {"cancel": lambda _: {"reply": "error", "message": "cancelled", "kind": "cancelled"}}
    widget.ui.applyButton.click()
    clear_scene()
    assert transport.requests[-1]["request"] == "cancel"
    assert widget.panel.apply.job is None and not widget.ui.applyButton.enabled
    pair = phantom_pair(spacing=6.0)
    add_image(slicer, pair.fixed, "new fixed")
    add_image(slicer, pair.moving, "new moving")
    widget.enter()
    assert widget.ui.applyButton.enabled
    assert volumes[0].GetScene() is None


def test_leaving_the_module_does_not_stop_the_work(
    slicer: Any, widget: Any, transport: ScriptedTransport, field: Path
) -> None:
    transport.answers = {}
    widget.ui.wantWarpedCheckBox.setChecked(False)
    widget.ui.applyButton.click()
    widget.exit()
    transport.say(transport.requests[0]["id"], result_reply(field, REPORT))
    assert slicer.util.getNodesByClass("vtkMRMLTransformNode")
    widget.enter()
    assert widget.ui.outputTransformSelector.currentNode() is not None


def test_the_panel_is_never_empty(slicer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("no such file")

    monkeypatch.setattr(slicer.util, "loadUI", broken)
    widget = make_panel()
    label = widget.layout.itemAt(widget.layout.count() - 1).widget()
    assert "cannot be made: no such file" in label.text
    widget.enter()
    widget.exit()
    discard(widget)


def comparison_reply(request: dict[str, Any], folds: bool = False) -> dict[str, Any]:
    """The answer to a comparison: the fixed volume as every view."""
    parameters = request["parameters"]
    files = {view: parameters["fixed"] for view in parameters["views"]}
    worst = {"position": [-10.0, 10.0, -30.0], "folds": folds, "value": -0.5 if folds else 321.0}
    return {"reply": "result", "result": {**files, "limit": 200.0, "worst": worst}}


def test_a_panel_without_a_parent_makes_its_own_window(slicer: Any) -> None:
    import SAMRegistration

    make_module()
    slicer.modules.samregistration = types.SimpleNamespace(path=str(MODULE_FOLDER / "SAMRegistration.py"))
    widget = SAMRegistration.SAMRegistrationWidget()
    assert widget.panel is not None and widget.ui.applyButton.text == "Apply"
    slicer.mrmlScene.Clear(0)
    discard(widget)


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


def test_the_environment_is_told_by_the_worker(widget: Any, transport: ScriptedTransport) -> None:
    devices = [
        {"name": "cpu", "title": "x86", "free_bytes": 2**33, "total_bytes": 2**34, "capability": None},
        {"name": "cuda:0", "title": "A GPU", "free_bytes": None, "total_bytes": None, "capability": "9.0"},
    ]
    hello = {"torch": "2.13", "cuda": "12.8", "python": "3.12", "devices": devices}
    checks = {
        "cpu": {"works": True, "seconds": 0.002, "error": None},
        "cuda:0": {"works": False, "seconds": 1.0, "error": "no kernel image is available for execution"},
    }
    transport.answers = {
        "hello": lambda _: {"reply": "result", "result": hello},
        "check_device": lambda request: {"reply": "result", "result": checks[request["parameters"]["device"]]},
    }
    widget.ui.checkEnvironmentButton.click()
    text = widget.ui.environmentLabel.text
    assert "PyTorch 2.13, CUDA 12.8" in text and "cpu computes (2 ms)" in text
    assert "8.0 of 16.0 GiB free" in text and "capability 9.0" in text
    assert "cuda:0 FAILS" in text and "press Repair" in text
    combo = widget.ui.deviceComboBox
    assert "cuda:0" in [combo.itemText(index) for index in range(combo.count)]
    widget.ui.copyLogButton.click()
    assert "torch 2" in widget._dialogs.copied and text in widget._dialogs.copied


def checked(transport: ScriptedTransport, error: str | None) -> list[str]:
    """Make every device but the CPU fail with an error; returns the devices that are asked for, as they are."""
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        device = request["parameters"]["device"]
        asked.append(device)
        works = device == "cpu" or error is None
        return {"reply": "result", "result": {"device": device, "works": works, "error": None if works else error}}

    transport.answers["check_device"] = answer
    return asked


def test_the_device_is_tried_before_the_first_registration_only(widget: Any, transport: ScriptedTransport) -> None:
    widget.ui.wantWarpedCheckBox.setChecked(False)
    for _ in range(2):
        widget.ui.applyButton.click()
    assert transport.checks == ["auto"] and len(transport.requests) == 2


def test_a_gpu_that_does_not_compute_is_replaced_where_that_is_allowed(
    widget: Any, transport: ScriptedTransport
) -> None:
    asked = checked(transport, "no kernel image is available")
    widget.ui.wantWarpedCheckBox.setChecked(False)
    widget.ui.deviceComboBox.setCurrentIndex(widget.ui.deviceComboBox.findText("cuda"))
    widget.ui.allowCPUCheckBox.setChecked(False)
    widget.ui.applyButton.click()
    assert "cuda does not compute" in widget.ui.statusLabel.text and "press Repair" in widget.ui.statusLabel.text
    assert widget.ui.applyButton.enabled and asked == ["cuda"]
    widget.ui.allowCPUCheckBox.setChecked(True)
    widget.ui.applyButton.click()
    registered = [each for each in transport.requests if each["request"] == "register"]
    assert [each["parameters"]["device"] for each in registered] == ["cpu"]
    assert "the CPU is used instead" in widget.ui.logTextEdit.plainText


def test_apply_without_what_it_needs_says_so(widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from SAMRegistrationModule import EnvironmentSection
    from SAMRegistrationModule.Environment import MISSING, PackageState

    missing = [PackageState("torch", MISSING, "torch is not installed: press Install.")]
    monkeypatch.setattr(EnvironmentSection, "inspectPackages", lambda: missing)
    widget.ui.applyButton.click()
    assert "5.12 or newer" in widget.ui.statusLabel.text, "there is no slicer.packaging here"
    assert widget.ui.applyButton.enabled


def test_models_are_listed_and_only_the_users_can_be_deleted(
    widget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMREG_MODELS", str(tmp_path))
    entry = {"name": "mine", "file": "mine.safetensors", "licence": "CC BY 4.0", "training_data": "limbs"}
    (tmp_path / "catalogue.json").write_text(json.dumps({"models": [entry]}))
    (tmp_path / "mine.safetensors").write_bytes(b"0" * 1_500_000)
    widget.ui.environmentCollapsibleButton.setCollapsed(False)
    table = widget.ui.modelsTable
    rows = [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]
    assert rows[-1] == ["mine", "CC BY 4.0", "1.5"] and rows[0][0] == "sam-lite"
    table.selectRow(0)
    assert not widget.ui.deleteModelButton.enabled
    table.selectRow(len(rows) - 1)
    widget._dialogs.says_yes = False
    widget.ui.deleteModelButton.click()
    assert (tmp_path / "mine.safetensors").is_file()
    widget._dialogs.says_yes = True
    widget.ui.deleteModelButton.click()
    assert not (tmp_path / "mine.safetensors").exists() and table.rowCount == len(rows) - 1


def test_nothing_is_installed_or_started_before_the_first_use(
    slicer: Any, monkeypatch: pytest.MonkeyPatch, volumes: tuple[Any, Any]
) -> None:
    assert slicer.app is not None and all(volumes)
    from SAMRegistrationModule import Installation

    from SAMRegistration import SAMRegistrationLogic

    def refuse(*_: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(Installation.Installer, "install", refuse)
    widget = make_panel(SAMRegistrationLogic(makeTransport=refuse))
    widget.enter()
    widget.exit()
    discard(widget)


@pytest.fixture
def process_logic(slicer: Any) -> Iterator[Any]:
    """A logic whose worker is a QProcess, below a launcher as in Slicer."""
    assert slicer.app is not None
    if shutil.which("bash") is None:
        pytest.skip("bash is needed to stand for Slicer's launcher")
    from SAMRegistrationModule.ProcessTransport import QProcessTransport

    from SAMRegistration import SAMRegistrationLogic
    from SAMRegistrationLib.worker.command import worker_command, worker_environment

    launcher = ["bash", "-c", '"$@"; exit $?', "launcher", *worker_command(sys.executable)]
    logic = SAMRegistrationLogic(makeTransport=lambda: QProcessTransport(launcher, worker_environment(os.environ)))
    yield logic
    logic.close()


@pytest.mark.slow
def test_the_panel_registers_with_a_real_worker_on_qts_event_loop(
    process_logic: Any, volumes: tuple[Any, Any]
) -> None:
    widget = make_panel(process_logic)
    widget.ui.presetComboBox.setCurrentIndex(widget.ui.presetComboBox.findText("rigid"))
    widget.ui.applyButton.click()
    process_until(lambda: widget.ui.applyButton.text == "Cancel")
    process_until(lambda: widget.panel.apply.job is None)
    assert widget.ui.statusLabel.text.startswith("Done in"), widget.ui.statusLabel.text
    assert volumes[1].GetParentTransformNode() is widget.logic.getParameterNode().outputTransform
    widget.ui.checkEnvironmentButton.click()
    process_until(lambda: "cpu computes" in widget.ui.environmentLabel.text)
    node = process_logic.register(
        *volumes, preset="rigid", outputs={"transform": widget.ui.outputTransformSelector.currentNode()}
    )
    assert node is widget.ui.outputTransformSelector.currentNode(), "a script may wait without the event loop"
    workers = [
        child for child in psutil.Process().children(recursive=True) if "worker" in " ".join(child.cmdline())
    ]
    assert workers
    discard(widget)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


@pytest.mark.slow
def test_killing_the_launcher_kills_the_worker_too(process_logic: Any, volumes: tuple[Any, Any]) -> None:
    errors: list[tuple] = []
    stages: list[str] = []
    process_logic.register(
        *volumes,
        preset="convexadam",
        model="mind",
        onProgress=lambda stage, *_: stages.append(stage),
        onError=lambda *error: errors.append(error),
    )
    process_until(lambda: (process_logic.worker.poll(), stages)[1])
    workers = [
        child for child in psutil.Process().children(recursive=True) if "worker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2, "launcher and worker"
    process_logic.worker._transport.kill()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    process_until(lambda: (process_logic.worker.poll(), errors)[1], 10)
    assert errors[0][2] == "worker-died"


def test_files_of_the_module_load_nothing_but_slicer_and_vtk() -> None:
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(MODULE_FOLDER)!r}]
from headless_slicer.application import start_slicer
start_slicer()
before = set(sys.modules)
import SAMRegistration
print(*{{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    own = {"SAMRegistration", "SAMRegistrationModule"}
    assert own <= loaded <= own | {"vtk", "vtkmodules"}


def test_making_the_panel_is_quick(slicer: Any, volumes: tuple[Any, Any]) -> None:
    assert slicer.app is not None and all(volumes)
    started = time.process_time()
    discard(make_panel())
    assert time.process_time() - started < 1.5
