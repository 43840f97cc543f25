"""The panel on PySide6 and real MRML, with stand-ins for Slicer's widgets: not a test in Slicer."""

from __future__ import annotations

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
    ScriptedTransport,
    discard,
    make_module,
    make_panel,
    process_until,
    result_reply,
)
from headless_slicer.panel_fixtures import REPORT, field, slicer, transport, volumes, widget
from phantoms import phantom_pair

pytest.importorskip("slicer", reason="slicer-core is not installed: the panel is not tested here")
pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

__all__ = ["field", "slicer", "transport", "volumes", "widget"]


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


def test_an_automatic_preset_says_what_it_took_and_why(widget: Any, transport: ScriptedTransport) -> None:
    ui = widget.ui
    reasons = ["preset rigid: nothing has bent.", "levels: none, a linear map only."]
    field = Path(transport.answers["register"]({})["result"]["field"])
    report = {**REPORT, "preset": "auto", "details": {"choice": {"preset": "rigid", "reasons": reasons}}}
    transport.answers["register"] = lambda _: result_reply(field, report)
    ui.wantWarpedCheckBox.setChecked(False)
    ui.presetComboBox.setCurrentIndex(ui.presetComboBox.findText("auto"))
    ui.applyButton.click()
    assert transport.requests[0]["parameters"]["preset"] == "auto"
    assert "Chosen was the preset rigid: nothing has bent." in ui.statusLabel.text
    rows = widget.logic.getParameterNode().outputReport.GetTable()
    found = [rows.GetValue(row, 1).ToString() for row in range(rows.GetNumberOfRows())]
    assert set(reasons) <= set(found)


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


def test_a_panel_without_a_parent_makes_its_own_window(slicer: Any) -> None:
    import SAMRegistration

    make_module()
    slicer.modules.samregistration = types.SimpleNamespace(path=str(MODULE_FOLDER / "SAMRegistration.py"))
    widget = SAMRegistration.SAMRegistrationWidget()
    assert widget.panel is not None and widget.ui.applyButton.text == "Apply"
    slicer.mrmlScene.Clear(0)
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
