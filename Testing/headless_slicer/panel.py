"""The panel on the stand-ins, and a worker that says what a test wants."""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .fixtures import MODULE_FOLDER


class ScriptedTransport:
    """A worker without a process: keeps what it is told, and says what a test makes it say.

    Args:
        answers: gives the reply to a request by its name, or None to stay silent.
    """

    def __init__(self, answers: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]]) -> None:
        self.answers = answers
        self.requests: list[dict[str, Any]] = []
        self.checks: list[str] = []
        self.is_running = False

    def start(self, on_output: Any, on_log: Any, _on_exit: Any) -> None:
        self._say, self.log, self.is_running = on_output, on_log, True

    def write(self, data: bytes) -> None:
        request = json.loads(data)
        if request["request"] == "check_device" and "check_device" not in self.answers:
            self.checks.append(request["parameters"]["device"])
            self.say(request["id"], {"reply": "result", "result": {"works": True}})
            return
        self.requests.append(request)
        answer = self.answers.get(request["request"])
        reply = answer(request) if answer is not None else None
        if reply is not None:
            self.say(request["id"], reply)

    def say(self, number: int, reply: dict[str, Any]) -> None:
        """A reply to the request of that number."""
        self._say(json.dumps({"id": number, **reply}).encode() + b"\n")

    def close_input(self) -> None:
        self.is_running = False

    def kill(self) -> None:
        self.is_running = False

    def pump(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)


class Dialogs:
    """Answers for the user, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.says_yes = True
        self.folder = ""
        self.copied = ""
        self.file = ""

    def confirm(self, text: str) -> bool:
        self.asked.append(text)
        return self.says_yes

    def chooseFolder(self) -> str:
        return self.folder

    def saveFile(self, _title: str, _kind: str) -> str:
        return self.file

    def copy(self, text: str) -> None:
        self.copied = text


def result_reply(field: Path, report: dict[str, Any] | None = None, **files: Path) -> dict[str, Any]:
    """The answer to a registration, with files that lie there already."""
    paths = {name: str(path) for name, path in files.items()}
    return {"reply": "result", "result": {"field": str(field), "report": report or {}, **paths}}


def make_panel(logic: Any = None, dialogs: Any = None) -> Any:
    """The module's widget, set up in a window."""
    import qt
    import slicer

    import SAMRegistration

    slicer.modules.samregistration = _description()
    parent = slicer.qMRMLWidget()
    parent.setLayout(qt.QVBoxLayout())
    parent.setMRMLScene(slicer.mrmlScene)
    parent.isEntered = True
    widget = SAMRegistration.SAMRegistrationWidget(parent, logic, dialogs or Dialogs())
    widget.setup()
    return widget


def make_module() -> Any:
    """The module itself, as Slicer makes it."""
    import SAMRegistration

    return SAMRegistration.SAMRegistration(_description())


def _description() -> types.SimpleNamespace:
    """What Slicer knows of the module before it makes it: where its file lies."""
    return types.SimpleNamespace(path=str(MODULE_FOLDER / "SAMRegistration.py"))


def process_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Run Qt's event loop until a condition holds."""
    from .qt_facade import process_events

    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail("it hangs")
        process_events()
        time.sleep(0.005)


def discard(widget: Any) -> None:
    """End a panel, and its window with it."""
    import qt

    widget.cleanup()
    widget.parent.deleteLater()
    qt.application.sendPostedEvents(None, qt.QEvent.DeferredDelete)
