"""Stand-ins for the widgets of CTK and of Slicer that the panel uses, drawn simply."""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any

from . import qt_facade

HEADER_HEIGHT = 24


def install_widgets() -> None:
    """Make the classes known to .ui files and to the modules `ctk` and `slicer`."""
    if "ctk" in sys.modules:
        return
    qt_facade.install_qt()
    from PySide6 import QtCore, QtGui, QtWidgets

    class ctkCollapsibleButton(QtWidgets.QWidget):  # noqa: N801
        contentsCollapsed = QtCore.Signal(bool)

        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._text, self._collapsed = "", False
            self.setContentsMargins(0, HEADER_HEIGHT, 0, 0)
            self.setMinimumHeight(HEADER_HEIGHT)

        def _get_text(self) -> str:
            return self._text

        def setText(self, text: str) -> None:
            self._text = text
            self.update()

        def _get_collapsed(self) -> bool:
            return self._collapsed

        def setCollapsed(self, collapsed: bool) -> None:
            self._collapsed = collapsed
            self._show_contents()
            self.contentsCollapsed.emit(collapsed)

        text = QtCore.Property(str, _get_text, setText)
        collapsed = QtCore.Property(bool, _get_collapsed, setCollapsed)

        def childEvent(self, event: Any) -> None:
            super().childEvent(event)
            QtCore.QTimer.singleShot(0, self._show_contents)

        def showEvent(self, event: Any) -> None:
            super().showEvent(event)
            self._show_contents()

        def _show_contents(self) -> None:
            for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
                child.setVisible(not self._collapsed)
            self.setMaximumHeight(HEADER_HEIGHT if self._collapsed else 16777215)

        def mousePressEvent(self, event: Any) -> None:
            if event.position().y() < HEADER_HEIGHT:
                self.setCollapsed(not self._collapsed)

        def paintEvent(self, _: Any) -> None:
            painter = QtGui.QPainter(self)
            area = QtCore.QRect(0, 0, QtWidgets.QWidget.width(self) - 1, HEADER_HEIGHT - 3)
            painter.setPen(QtGui.QColor(170, 170, 170))
            painter.setBrush(QtGui.QColor(226, 230, 234))
            painter.drawRoundedRect(area, 3, 3)
            painter.setPen(QtGui.QColor(30, 30, 30))
            arrow = "\u25b8" if self._collapsed else "\u25be"
            painter.drawText(area.adjusted(8, 0, 0, 0), QtCore.Qt.AlignVCenter, f"{arrow}  {self._text}")

    class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):  # noqa: N801
        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._collapsed = False
            self.setCheckable(True)
            self.toggled.connect(lambda on: self.setCollapsed(not on))

        def _get_collapsed(self) -> bool:
            return self._collapsed

        def setCollapsed(self, collapsed: bool) -> None:
            self._collapsed = collapsed
            if self.isChecked() == collapsed:
                self.setChecked(not collapsed)
            self._show_contents()

        collapsed = QtCore.Property(bool, _get_collapsed, setCollapsed)

        def showEvent(self, event: Any) -> None:
            super().showEvent(event)
            self._show_contents()

        def _show_contents(self) -> None:
            for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
                child.setVisible(not self._collapsed)
            self.setMaximumHeight(22 if self._collapsed else 16777215)

    class ctkSliderWidget(QtWidgets.QWidget):  # noqa: N801
        valueChanged = QtCore.Signal(float)

        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._minimum, self._maximum, self._step, self._value = 0.0, 100.0, 1.0, 0.0
            layout = QtWidgets.QHBoxLayout(self)
            layout.setContentsMargins(0, 0, 0, 0)
            self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal)
            self._slider.setMaximum(1000)
            self._box = QtWidgets.QDoubleSpinBox()
            layout.addWidget(self._slider)
            layout.addWidget(self._box)
            self._box.valueChanged.connect(self.setValue)
            self._slider.sliderMoved.connect(
                lambda place: self.setValue(self._minimum + place / 1000 * (self._maximum - self._minimum))
            )

        def setValue(self, value: float) -> None:
            value = min(max(value, self._minimum), self._maximum)
            if value == self._value:
                return
            self._value = value
            self._slider.setValue(round(1000 * (value - self._minimum) / (self._maximum - self._minimum)))
            self._box.setValue(value)
            self.valueChanged.emit(value)

        def _set_minimum(self, value: float) -> None:
            self._minimum = value
            self._box.setMinimum(value)

        def _set_maximum(self, value: float) -> None:
            self._maximum = value
            self._box.setMaximum(value)

        def _set_step(self, value: float) -> None:
            self._step = value
            self._box.setSingleStep(value)

        value = QtCore.Property(float, lambda self: self._value, setValue)
        minimum = QtCore.Property(float, lambda self: self._minimum, _set_minimum)
        maximum = QtCore.Property(float, lambda self: self._maximum, _set_maximum)
        singleStep = QtCore.Property(float, lambda self: self._step, _set_step)

    ctk: Any = types.ModuleType("ctk")
    for kind in (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget):
        facade = qt_facade.facade_of(kind)
        setattr(ctk, kind.__name__, facade)
        qt_facade.WIDGETS[kind.__name__] = facade
    sys.modules["ctk"] = ctk
    _install_mrml_widgets()


def _observe(scene: Any, event: int, widget: Any, method: str) -> None:
    """Call a widget's method at an event, for as long as the widget lives."""
    from shiboken6 import isValid

    reference = weakref.ref(widget)

    def called(*_: Any) -> None:
        living = reference()
        if living is None or not isValid(living):
            scene.RemoveObserver(tag)
        else:
            getattr(living, method)()

    tag = scene.AddObserver(event, called)


def _install_mrml_widgets() -> None:
    import slicer
    from PySide6 import QtCore, QtWidgets

    class qMRMLNodeComboBox(QtWidgets.QComboBox):  # noqa: N801
        """Lists the nodes of some classes; follows the scene."""

        currentNodeChanged = QtCore.Signal(object)

        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._scene: Any = None
            self._types: list[str] = []
            self._flags = {"noneEnabled": False, "addEnabled": True, "showChildNodeTypes": True}
            self._none_display = "None"
            self._node: Any = None
            self.activated.connect(self._on_activated)

        def setMRMLScene(self, scene: Any) -> None:
            self._scene = scene
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
                _observe(scene, event, self, "_fill")
            self._fill()

        def currentNode(self) -> Any:
            return self._node

        def currentNodeID(self) -> str:
            return self._node.GetID() if self._node is not None else ""

        def setCurrentNode(self, node: Any) -> None:
            if node is self._node:
                return
            self._node = node
            self._fill()
            self.currentNodeChanged.emit(node)

        def setCurrentNodeID(self, identifier: str) -> None:
            self.setCurrentNode(self._scene.GetNodeByID(identifier) if identifier else None)

        def _nodes(self) -> list[Any]:
            if self._scene is None:
                return []
            found = []
            for kind in self._types:
                for node in slicer.util.getNodesByClass(kind, self._scene):
                    exact = node.GetClassName() == kind or self._flags["showChildNodeTypes"]
                    if exact and not node.GetHideFromEditors():
                        found.append(node)
            return found

        def _fill(self) -> None:
            nodes = self._nodes()
            self.blockSignals(True)
            self.clear()
            if self._flags["noneEnabled"]:
                self.addItem(self._none_display, "")
            for node in nodes:
                self.addItem(node.GetName(), node.GetID())
            gone = self._node is not None and self._node not in nodes
            if gone:
                self._node = None
            place = self.findData(self._node.GetID()) if self._node is not None else -1
            self.setCurrentIndex(place if place >= 0 else (0 if self._flags["noneEnabled"] else -1))
            self.blockSignals(False)
            if gone:
                self.currentNodeChanged.emit(None)

        def _on_activated(self, index: int) -> None:
            self.setCurrentNodeID(self.itemData(index))

        def _get_types(self) -> list[str]:
            return self._types

        def _set_types(self, kinds: list[str]) -> None:
            self._types = list(kinds)
            self._fill()

        def _set_none_display(self, text: str) -> None:
            self._none_display = text
            self._fill()

        nodeTypes = QtCore.Property("QStringList", _get_types, _set_types)
        noneDisplay = QtCore.Property(str, lambda self: self._none_display, _set_none_display)

    def flag(name: str) -> Any:
        def write(self: Any, value: bool) -> None:
            self._flags[name] = value
            self._fill()

        return QtCore.Property(bool, lambda self: self._flags.get(name, False), write)

    flags = ("noneEnabled", "addEnabled", "removeEnabled", "renameEnabled", "showChildNodeTypes", "editEnabled")
    combo = type("qMRMLNodeComboBox", (qMRMLNodeComboBox,), {name: flag(name) for name in flags})

    class qMRMLWidget(QtWidgets.QWidget):  # noqa: N801
        """Hands its scene on to the widgets below, as the connections of .ui files ask."""

        def setMRMLScene(self, scene: Any) -> None:
            self._scene = scene
            for child in self.findChildren(QtWidgets.QWidget):
                if child is not self and hasattr(child, "setMRMLScene"):
                    child.setMRMLScene(scene)

    for kind in (combo, qMRMLWidget):
        facade = qt_facade.facade_of(kind)
        setattr(slicer, kind.__name__, facade)
        qt_facade.WIDGETS[kind.__name__] = facade
