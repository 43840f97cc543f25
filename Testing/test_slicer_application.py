"""The module within a real Slicer, where one is named; nobody has run this yet where none was named."""

from __future__ import annotations

import os
import re
import subprocess
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
