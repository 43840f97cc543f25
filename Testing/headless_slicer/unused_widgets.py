"""Widget classes that Slicer's own Python files name, and the panel does not use: names without a stand-in."""

from __future__ import annotations

from typing import Any

_CTK = (
    "ctkCheckBox",
    "ctkCheckablePushButton",
    "ctkColorPickerButton",
    "ctkComboBox",
    "ctkDirectoryButton",
    "ctkDoubleRangeSlider",
    "ctkDoubleSlider",
    "ctkDoubleSpinBox",
    "ctkPathLineEdit",
    "ctkRangeWidget",
)
_MRML = ("qMRMLRangeWidget", "qMRMLSliderWidget", "qMRMLSpinBox")


def name_unused_widgets() -> None:
    """Let code that asks whether a widget is of such a class run; none can be made."""
    import ctk
    import slicer

    for module, names in ((ctk, _CTK), (slicer, _MRML)):
        for name in names:
            if not hasattr(module, name):
                setattr(module, name, type(name, (), {"__init__": _refuse}))


def _refuse(self: Any, *_: Any) -> None:
    raise NotImplementedError(f"{type(self).__name__} has no stand-in: the panel does not use it")
