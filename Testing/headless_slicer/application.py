"""Slicer's Python layer around MRML without its application: `slicer.app`, base classes, parameter nodes.

If SLICER_SOURCE_DIR names a checkout or an installation of Slicer, its own base classes and parameter nodes are
used (but not its installer of packages); else the stand-ins of this folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from .mrml import start_mrml
from .qt_facade import install_qt, process_events
from .unused_widgets import name_unused_widgets
from .widgets import install_widgets

SOURCE_VARIABLE = "SLICER_SOURCE_DIR"
_PYTHON_FOLDERS = ("Base/Python/slicer", "bin/Python/slicer", "lib/Python/slicer", "Python/slicer")


class ModuleManager:
    """What a panel asks of `slicer.app.moduleManager()`; no module is unloaded here."""

    def connect(self, signal: str, slot: Any) -> None:
        if signal != "moduleAboutToBeUnloaded(QString)" or not callable(slot):
            raise ValueError(f"the module manager has no signal {signal} here")


class Application:
    """What a module asks of `slicer.app`."""

    applicationVersion = "headless"

    def __init__(self) -> None:
        self.temporaryPath = tempfile.gettempdir()
        self._at_startup: list[Any] = []
        self._modules = ModuleManager()

    def connect(self, signal: str, slot: Any) -> None:
        if signal != "startupCompleted()":
            raise ValueError(f"slicer.app has no signal {signal} here")
        self._at_startup.append(slot)

    def complete_startup(self) -> None:
        """What the application does when all modules are loaded."""
        for slot in self._at_startup:
            slot()

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def translate(self, _context: str, text: str) -> str:
        return text

    def layoutManager(self) -> None:
        return None

    def testingEnabled(self) -> bool:
        return True

    def processEvents(self) -> None:
        process_events()

    def applicationLogic(self) -> None:
        return None


def slicer_source() -> Path | None:
    """The folder of Slicer's own Python files, if one was named."""
    named = os.environ.get(SOURCE_VARIABLE)
    if not named:
        return None
    for folder in _PYTHON_FOLDERS:
        if (Path(named) / folder / "ScriptedLoadableModule.py").is_file():
            return Path(named) / folder
    raise FileNotFoundError(f"{SOURCE_VARIABLE}={named} holds no slicer/ScriptedLoadableModule.py")


def start_slicer() -> Any:
    """Make modules of Slicer importable; once per process. Returns the module `slicer`."""
    slicer = start_mrml()
    if getattr(slicer, "app", None) is not None:
        return slicer
    install_qt()
    slicer.app = Application()
    install_widgets()
    own = slicer_source()
    if own is not None:
        name_unused_widgets()
        slicer.__path__.append(str(own))
        # No test may install or remove packages of the Python it runs in.
        sys.modules["slicer.packaging"] = None  # type: ignore[assignment]
        import slicer.i18n
        import slicer.parameterNodeWrapper
        import slicer.ScriptedLoadableModule
    else:
        from . import parameter_node, scripted_module

        _provide("slicer.i18n", tr=lambda text, *_: text, translate=lambda _context, text, *_: text)
        _provide("slicer.parameterNodeWrapper", parameterNodeWrapper=parameter_node.parameter_node_wrapper)
        _provide("slicer.ScriptedLoadableModule", **scripted_module.CLASSES)
    return slicer


def _provide(name: str, **members: Any) -> None:
    import slicer

    module = types.ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    sys.modules[name] = module
    setattr(slicer, name.rpartition(".")[2], module)
