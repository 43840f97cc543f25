"""What the module assumes of PythonQt, CTK and Slicer's widgets; runs on the stand-ins and in a real Slicer."""

from __future__ import annotations

import sys
from typing import Any


def properties_are_attributes(qt: Any) -> None:
    button, combo, edit = qt.QPushButton(), qt.QComboBox(), qt.QPlainTextEdit()
    button.setText("text")
    button.setCheckable(True)
    button.setChecked(True)
    assert button.text == "text" and button.checked is True and button.enabled is True
    combo.addItems(["a", "b"])
    combo.setCurrentIndex(combo.findText("b"))
    assert combo.count == 2 and combo.currentText == "b" and combo.itemText(0) == "a"
    edit.setMaximumBlockCount(2)
    for line in "abc":
        edit.appendPlainText(line)
    assert edit.plainText == "b\nc"


def signals_connect_by_name(qt: Any) -> None:
    heard: list[Any] = []
    button, combo = qt.QPushButton(), qt.QComboBox()
    button.clicked.connect(lambda *_: heard.append("clicked"))
    combo.currentIndexChanged.connect(lambda *_: heard.append("changed"))
    button.click()
    combo.addItem("a")
    assert heard == ["clicked", "changed"]


def tables_take_items(qt: Any) -> None:
    table = qt.QTableWidget(0, 2)
    table.setRowCount(1)
    item = qt.QTableWidgetItem("text")
    item.setToolTip("tip")
    table.setItem(0, 1, item)
    assert table.rowCount == 1 and table.item(0, 1).text() == "text" and table.currentRow() == -1


def processes_talk_in_both_directions(_: Any) -> None:
    import slicer
    from SAMRegistrationModule.ProcessTransport import QProcessTransport
    from SAMRegistrationModule.Worker import baseEnvironment, workerPython

    code = "import sys; print('heard', input(), flush=True); print('noise', file=sys.stderr); sys.exit(3)"
    heard: list[Any] = []
    transport = QProcessTransport([workerPython(), "-c", code], baseEnvironment())
    transport.start(heard.append, lambda line: heard.append(f"log {line}"), heard.append)
    assert transport.is_running and transport.processId > 0
    transport.write(b"words\n")
    for _ in range(200):
        if not transport.is_running:
            break
        transport.pump(0.05)
        slicer.app.processEvents()
    assert b"heard words" in b"".join(part for part in heard if isinstance(part, bytes))
    assert "log noise" in heard and heard[-1] == 3 and not transport.is_running


def collapsible_buttons_tell_their_state(_: Any) -> None:
    import ctk

    heard: list[bool] = []
    button = ctk.ctkCollapsibleButton()
    button.contentsCollapsed.connect(heard.append)
    button.setCollapsed(True)
    assert button.collapsed and heard == [True]


def node_selectors_give_nodes(_: Any) -> None:
    import slicer

    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLTransformNode"]
    selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "conformance")
    selector.setCurrentNode(node)
    assert selector.currentNode().GetID() == node.GetID()
    selector.setCurrentNode(None)
    assert selector.currentNode() is None
    slicer.mrmlScene.RemoveNode(node)


ASSUMPTIONS = (
    properties_are_attributes,
    signals_connect_by_name,
    tables_take_items,
    processes_talk_in_both_directions,
    collapsible_buttons_tell_their_state,
    node_selectors_give_nodes,
)


def check_all() -> int:
    """Check every assumption; returns how many there are."""
    import qt

    for assumption in ASSUMPTIONS:
        assumption(qt)
        print(f"holds: {assumption.__name__.replace('_', ' ')}", file=sys.stderr)
    return len(ASSUMPTIONS)
