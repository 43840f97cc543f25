"""The module within a real Slicer, where one is named; nobody has run this yet where none was named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from headless_slicer.fixtures import MODULE_FOLDER, make_module_importable

EXECUTABLE_VARIABLE = "SLICER_EXECUTABLE"
SCRIPT = Path(__file__).parent / "headless_slicer" / "in_slicer.py"
SECONDS = 900


@pytest.mark.slow
def test_the_module_works_in_slicer() -> None:
    executable = os.environ.get(EXECUTABLE_VARIABLE)
    if not executable:
        pytest.skip(f"NOT RUN IN SLICER: set {EXECUTABLE_VARIABLE} to Slicer 5.12 or newer, with PyTorch")
    command = [executable, "--testing", "--no-splash", "--ignore-slicerrc"]
    command += ["--additional-module-paths", str(MODULE_FOLDER), "--python-script", str(SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    told = re.search(r"in Slicer: (\d+) assumptions hold, (\d+) of (\d+) tests passed", result.stdout)
    assert told and int(told[1]) and int(told[2]), result.stdout[-3000:] + result.stderr[-3000:]
    assert told[2] == told[3] and result.returncode == 0


@pytest.fixture
def host() -> Any:
    """Slicer's stand-ins, for what is also run in Slicer."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    pytest.importorskip("PySide6", reason="PySide6 is not installed")
    from headless_slicer.application import start_slicer
    from headless_slicer.mrml import clear_scene

    slicer = start_slicer()
    make_module_importable()
    clear_scene()
    yield slicer
    clear_scene()


def test_the_assumptions_on_pythonqt_hold_on_the_stand_ins(host: Any) -> None:
    assert host.app is not None
    from headless_slicer.conformance import ASSUMPTIONS, check_all

    assert check_all() == len(ASSUMPTIONS) > 5


@pytest.mark.slow
def test_the_self_test_passes_on_the_stand_ins(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import types
    import unittest

    import SAMRegistration

    own = types.SimpleNamespace(path=SAMRegistration.__file__)
    monkeypatch.setattr(host.modules, "samregistration", own, raising=False)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(SAMRegistration.SAMRegistrationTest).run(result)
    assert result.testsRun == 1 and result.wasSuccessful(), result.errors + result.failures


def run_alone(code: str) -> str:
    """The last line that some code prints in a process of its own, with Slicer's stand-ins."""
    preamble = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(MODULE_FOLDER)!r}]
from headless_slicer.application import start_slicer
slicer = start_slicer()
from SAMRegistrationModule.SelfTest import addPhantom
"""
    result = subprocess.run(
        [sys.executable, "-c", preamble + code], capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_slicers_process_loads_no_torch_even_when_it_registers(host: Any) -> None:
    assert host.app is not None
    told = run_alone("""
from headless_slicer.panel import make_panel, process_until
addPhantom("fixed", 0.0), addPhantom("moving", 6.0)
widget = make_panel()
widget.ui.environmentCollapsibleButton.setCollapsed(False)
widget.ui.presetComboBox.setCurrentIndex(widget.ui.presetComboBox.findText("rigid"))
widget.ui.applyButton.click()
process_until(lambda: widget.ui.statusLabel.text.startswith("Done"), 120)
for button in ("checkerboardButton", "differenceButton", "jacobianButton", "worstButton"):
    getattr(widget.ui, button).click()
    process_until(lambda: widget.ui.reviewLabel.text != "Computing...", 120)
assert widget.ui.reviewLabel.text.startswith("Here")
widget.cleanup()
print("loaded:", *{"torch", "SimpleITK", "safetensors", "scipy"} & set(sys.modules))
""")
    assert told.strip() == "loaded:"


@pytest.mark.slow
def test_the_console_example_of_the_readme_works(host: Any) -> None:
    assert host.app is not None
    readme = (MODULE_FOLDER.parent / "README.md").read_text(encoding="utf-8")
    example = re.search(r"### From Slicer's Python console\n\n```python\n(.*?)```", readme, re.DOTALL)
    assert example
    told = run_alone(f"""
addPhantom("SAMRegistrationFixed", 0.0), addPhantom("SAMRegistrationMoving", 6.0)
getNode = slicer.util.getNode
{example[1]}
print(moving.GetParentTransformNode().GetName(), getNode("SAMRegistrationMoving registered").GetClassName())
""")
    assert told == "SAMRegistrationMoving registration vtkMRMLScalarVolumeNode"
