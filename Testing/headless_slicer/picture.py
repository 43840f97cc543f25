"""Draw the panel after a registration and a refinement of the sample pair, for the README.

python -m Testing.headless_slicer.picture Resources/Screenshots/panel.png [PRESET [VOXEL SIZE IN MM]]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH, HEIGHT = 500, 1760
SECONDS = 1500
PLACES = {"carina": (0.5, 0.5, 0.45), "right lung": (0.32, 0.45, 0.5), "skin": (0.02, 0.5, 0.5)}
"""Points to be found, as shares of the fixed volume's box."""


def main(path: str, preset: str = "message-passing", spacing: str = "") -> None:
    """Register, match and refine the sample pair by the panel, and save what it looks like then."""
    from headless_slicer.application import start_slicer
    from headless_slicer.fixtures import add_image, make_module_importable
    from headless_slicer.panel import discard, make_panel, process_until
    from SAMRegistrationLib import read_image
    from SAMRegistrationLib.demo import FIXED, MOVING, SAMPLE_FOLDER

    slicer = start_slicer()
    make_module_importable()
    for name, title in ((FIXED, "SAMRegistrationFixed"), (MOVING, "SAMRegistrationMoving")):
        image = read_image(SAMPLE_FOLDER / f"{name}.nii.gz")
        add_image(slicer, image.resampled(image.grid.resampled(float(spacing))) if spacing else image, title)
    widget = make_panel()
    ui = widget.ui
    ui.presetComboBox.setCurrentIndex(ui.presetComboBox.findText(preset))
    ui.environmentCollapsibleButton.setCollapsed(False)
    ui.checkEnvironmentButton.click()
    process_until(lambda: "computes" in ui.environmentLabel.text, SECONDS)
    ui.applyButton.click()
    process_until(lambda: widget.panel.apply.job is None, SECONDS)
    _match_points(widget)
    _refine_box(widget)
    ui.modelsTable.setMaximumHeight(70)
    ui.modelsTable.resizeColumnsToContents()
    _save(widget, path)
    discard(widget)


def _match_points(widget: Any) -> None:
    from headless_slicer.panel import process_until

    widget.ui.pointsCollapsibleButton.setCollapsed(False)
    widget.ui.placePointsButton.click()
    points = widget.panel.points
    for label, shares in PLACES.items():
        widget.logic.getParameterNode().fixedPoints.AddControlPoint(*_place(widget, shares), label)
    process_until(lambda: len(points._points.pairs) == len(PLACES) and points._job is None, SECONDS)
    widget.ui.pointsTable.resizeColumnsToContents()


def _refine_box(widget: Any) -> None:
    import slicer

    from headless_slicer.panel import process_until

    ui = widget.ui
    ui.refineCollapsibleButton.setCollapsed(False)
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Heart")
    box.SetCenter(*_place(widget, (0.55, 0.5, 0.35)))
    box.SetSize(80, 80, 80)
    ui.regionSelector.setCurrentNode(box)
    ui.addBoxButton.click()
    ui.iterationsSpinBox.setValue(100)
    ui.refineButton.click()
    process_until(lambda: widget.panel.refine._job is None, SECONDS)
    ui.historyTable.resizeColumnsToContents()


def _place(widget: Any, shares: tuple[float, float, float]) -> list[float]:
    """A position within the fixed volume's box."""
    bounds = np.zeros(6)
    widget.logic.getParameterNode().fixedVolume.GetRASBounds(bounds)
    lower, upper = bounds[::2], bounds[1::2]
    place: list[float] = (lower + np.array(shares) * (upper - lower)).tolist()
    return place


def _save(widget: Any, path: str) -> None:
    from headless_slicer.qt_facade import process_events

    widget.parent.resize(WIDTH, HEIGHT)
    widget.parent.show()
    for _ in range(20):
        process_events()
    widget.parent.grab().save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
