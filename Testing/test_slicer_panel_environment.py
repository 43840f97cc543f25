"""The panel's section about packages, devices and models, on PySide6 and real MRML: not a test in Slicer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from headless_slicer.panel import (
    ScriptedTransport,
    discard,
    make_panel,
)
from headless_slicer.panel_fixtures import field, slicer, transport, volumes, widget

pytest.importorskip("slicer", reason="slicer-core is not installed: the panel is not tested here")
pytest.importorskip("PySide6", reason="PySide6 is not installed: the panel is not tested here")

__all__ = ["field", "slicer", "transport", "volumes", "widget"]


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
