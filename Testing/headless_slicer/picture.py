"""Draw the panel after a registration and a refinement of the sample pair, for the README.

python -m Testing.headless_slicer.picture Resources/Screenshots/panel.png [PRESET [VOXEL SIZE IN MM]]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH = 500
SECONDS = 1500
LABELS = {"right lung": 2, "left lung": 3, "spine": 4}
"""Structures of the sample's label map in whose middles points are put."""


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
    for label, value in LABELS.items():
        widget.logic.getParameterNode().fixedPoints.AddControlPoint(*_middle_of(value), label)
    process_until(lambda: len(points._points.pairs) == len(LABELS) and points._job.running is None, SECONDS)
    widget.ui.pointsTable.resizeColumnsToContents()


def _refine_box(widget: Any) -> None:
    import slicer

    from headless_slicer.panel import process_until

    ui = widget.ui
    ui.refineCollapsibleButton.setCollapsed(False)
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Left lung")
    box.SetCenter(*_middle_of(LABELS["left lung"]))
    box.SetSize(70, 70, 70)
    ui.regionSelector.setCurrentNode(box)
    ui.addBoxButton.click()
    ui.iterationsSpinBox.setValue(100)
    ui.refineButton.click()
    process_until(lambda: widget.panel.refine._job.running is None, SECONDS)
    ui.historyTable.resizeColumnsToContents()


def _middle_of(label: int) -> list[float]:
    """The place (RAS mm) within a structure of the fixed sample that is nearest to its middle."""
    from headless_slicer.fixtures import LPS
    from SAMRegistrationLib import read_labels
    from SAMRegistrationLib.demo import FIXED, SAMPLE_FOLDER

    labels = read_labels(SAMPLE_FOLDER / f"{FIXED}_labels.nii.gz")
    voxels = np.argwhere(labels.data.numpy() == label)
    nearest = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
    place: list[float] = (labels.grid.to_world(nearest[::-1]) * LPS).tolist()
    return place


def _save(widget: Any, path: str) -> None:
    from headless_slicer.qt_facade import process_events

    widget.parent.show()
    process_events()
    widget.parent.resize(WIDTH, widget.parent.layout().totalSizeHint().height())
    for _ in range(20):
        process_events()
    widget.parent.grab().save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
