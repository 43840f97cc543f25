"""A stand-in for Slicer's parameterNodeWrapper: fields of plain types and nodes, kept in a parameter node."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from typing import Any

PARAMETER_PROPERTY = "SlicerParameterName"
_PLAIN = (str, int, float, bool)


def parameter_node_wrapper(kind: type) -> type:
    """Make a class of annotated fields one whose instances keep them in the node that they are made with."""
    hints = typing.get_type_hints(kind)
    for name, hint in hints.items():
        if hint in _PLAIN:
            setattr(kind, name, _plain_field(name, hint, getattr(kind, name, hint())))
        else:
            setattr(kind, name, _node_field(name, _node_classes(hint)))

    kind.__init__ = _keep_node  # type: ignore[misc]
    kind.connectGui = _connect_gui  # type: ignore[attr-defined]
    kind.disconnectGui = _disconnect_gui  # type: ignore[attr-defined]
    kind._fields = hints  # type: ignore[attr-defined]
    return kind


def _keep_node(self: Any, node: Any) -> None:
    self.parameterNode = node


def _node_classes(hint: Any) -> tuple[type, ...]:
    kinds = tuple(part for part in typing.get_args(hint) if part is not type(None)) or (hint,)
    for part in kinds:
        if not hasattr(part, "GetClassName"):
            raise TypeError(f"parameters of the type {hint} are not supported")
    return kinds


def _plain_field(name: str, kind: type, default: Any) -> property:
    def read(self: Any) -> Any:
        text = self.parameterNode.GetParameter(name)
        return default if text == "" else json.loads(text)

    def write(self: Any, value: Any) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {kind.__name__}, not {value!r}")
        self.parameterNode.SetParameter(name, json.dumps(value))

    return property(read, write)


def _node_field(name: str, kinds: tuple[type, ...]) -> property:
    def read(self: Any) -> Any:
        return self.parameterNode.GetNodeReference(name)

    def write(self: Any, node: Any) -> None:
        if node is not None and not isinstance(node, kinds):
            raise TypeError(f"{name} cannot be a {node.GetClassName()}")
        self.parameterNode.SetNodeReferenceID(name, node.GetID() if node is not None else None)

    return property(read, write)


class _Connection:
    """Fields and widgets that follow each other until `end`."""

    def __init__(self, parameters: Any, widgets: dict[str, Any]) -> None:
        import vtk

        self._parameters, self._active = parameters, True
        self._pairs = [(field, widget, *_accessors(widget)) for field, widget in widgets.items()]
        for field, _, read, _, signal in self._pairs:
            signal.connect(self._to_node(field, read))
        self._tag = parameters.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_gui())
        self._to_gui()

    def end(self) -> None:
        self._active = False
        self._parameters.parameterNode.RemoveObserver(self._tag)

    def _to_node(self, field: str, read: Callable[[], Any]) -> Callable[..., None]:
        def change(*_: Any) -> None:
            if self._active:
                setattr(self._parameters, field, read())

        return change

    def _to_gui(self) -> None:
        for field, _, read, write, _ in self._pairs:
            value = getattr(self._parameters, field)
            if self._active and read() != value:
                write(value)


def _accessors(widget: Any) -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
    if hasattr(widget, "currentNode"):
        return widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged
    if hasattr(widget, "checked"):
        return lambda: widget.checked, widget.setChecked, widget.toggled
    if hasattr(widget, "value") and hasattr(widget, "valueChanged"):
        return lambda: widget.value, widget.setValue, widget.valueChanged
    raise TypeError(f"{widget.name} cannot show a parameter")


def _connect_gui(self: Any, ui: Any) -> _Connection:
    widgets = {}
    for widget in vars(ui).values():
        field = widget.property(PARAMETER_PROPERTY) if hasattr(widget, "property") else None
        if field:
            if field not in self._fields:
                raise ValueError(f"{widget.name} shows {field}, which is no parameter")
            widgets[field] = widget
    return _Connection(self, widgets)


def _disconnect_gui(_: Any, connection: _Connection) -> None:
    connection.end()
