"""A module `qt` made of PySide6 that behaves as PythonQt's where the difference matters to a module.

PythonQt shows Qt properties as attributes and connects signals by their text. Every class of QObjects gets a
Python subclass that does the same; flat enumerations and everything else come from PySide6 as they are.
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

WIDGETS: dict[str, type] = {}
"""Classes that a .ui file may name, by that name."""

_WRAPPED: dict[type, type] = {}


def install_qt() -> types.ModuleType:
    """The module `qt`, also as `sys.modules["qt"]`; made once per process, with its application."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

    module: Any = types.ModuleType("qt")
    for source in (QtCore, QtGui, QtWidgets):
        for name in dir(source):
            if name.startswith("Q"):
                setattr(module, name, facade_of(getattr(source, name)))
    module.QUiLoader = _ui_loader(QtUiTools.QUiLoader)
    module.QTimer.singleShot = QtCore.QTimer.singleShot
    module.application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["headless"])
    sys.modules["qt"] = module
    return module


def process_events() -> None:
    """Let Qt do what is due."""
    from PySide6 import QtCore

    QtCore.QCoreApplication.processEvents()


def facade_of(kind: Any) -> Any:
    """The subclass of a QObject class with PythonQt's manners; anything else as it is."""
    from PySide6 import QtCore

    if not (isinstance(kind, type) and issubclass(kind, QtCore.QObject)):
        return kind
    if kind in (QtCore.QCoreApplication, *_application_classes()):
        return kind
    if kind not in _WRAPPED:
        members: dict[str, Any] = {"connect": _connect, "disconnect": _disconnect}
        for name in _property_names(kind):
            if isinstance(inspect.getattr_static(kind, name, None), QtCore.Property):
                continue  # already an attribute, as PythonQt shows it
            members[name] = property(_getter(name), _setter(name))
        members["name"] = property(lambda self: self.objectName(), lambda self, text: self.setObjectName(text))
        try:
            _WRAPPED[kind] = type(kind.__name__, (kind,), members)
        except TypeError:  # a class that cannot be derived from
            return kind
        if kind.__name__[0] == "Q":
            WIDGETS[kind.__name__] = _WRAPPED[kind]
    return _WRAPPED[kind]


def _application_classes() -> tuple[type, ...]:
    from PySide6 import QtGui, QtWidgets

    return QtGui.QGuiApplication, QtWidgets.QApplication


def _property_names(kind: type) -> list[str]:
    meta = kind.staticMetaObject  # type: ignore[attr-defined]
    names = [meta.property(index).name() for index in range(meta.propertyCount())]
    return [name for name in names if name != "objectName"]


def _getter(name: str) -> Callable[[Any], Any]:
    return lambda self: self.property(name)


def _setter(name: str) -> Callable[[Any, Any], None]:
    def set_property(self: Any, value: Any) -> None:
        if not self.setProperty(name, value):
            raise ValueError(f"{type(self).__name__}.{name} cannot be {value!r}")

    return set_property


def _connect(self: Any, signal: str, slot: Callable[..., Any]) -> None:
    """Connect by the text of a signal, as in "clicked(bool)"; a signal that is not there is an error."""
    from PySide6 import QtCore

    normalized = bytes(QtCore.QMetaObject.normalizedSignature(signal).data()).decode()
    if self.metaObject().indexOfSignal(normalized) < 0:
        raise ValueError(f"{self.metaObject().className()} has no signal {signal}")
    count = 0 if normalized.endswith("()") else normalized.count(",") + 1
    getattr(self, normalized.partition("(")[0]).connect(lambda *values: _call(slot, values[:count]))


def _disconnect(self: Any, signal: str, slot: Callable[..., Any]) -> None:
    raise NotImplementedError(f"{self}, {signal}, {slot}: keep no connections that must be taken back")


def _call(slot: Callable[..., Any], values: tuple[Any, ...]) -> None:
    """Call with as many arguments as the slot takes, as PythonQt does."""
    code = getattr(slot, "__code__", None)
    if code is not None and not code.co_flags & 0x04:
        takes = code.co_argcount - (1 if hasattr(slot, "__self__") else 0)
        values = values[:takes]
    slot(*values)


def _ui_loader(base: type) -> type:
    """A loader of .ui files that makes the classes of this facade."""

    class UiLoader(base):  # type: ignore[misc, valid-type]
        def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
            if class_name not in WIDGETS:
                raise RuntimeError(f"the .ui file names the unknown class {class_name}")
            widget = WIDGETS[class_name](parent)
            widget.setObjectName(name)
            self._made = [*getattr(self, "_made", []), widget]
            return widget

        def load(self, file: Any, parent: Any = None) -> Any:
            widget = super().load(file, parent)
            # Python objects that Qt does not know would lose their Python side.
            if widget is not None:
                widget._made_by_loader = getattr(self, "_made", [])
            return widget

    return UiLoader
