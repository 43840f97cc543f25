"""Draw the panel after a registration of the sample pair, for the README.

python -m Testing.headless_slicer.picture Resources/Screenshots/panel.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH, HEIGHT = 470, 1070


def main(path: str, preset: str = "message-passing") -> None:
    """Register the sample pair by the panel, and save what it looks like then."""
    from headless_slicer.application import start_slicer
    from headless_slicer.fixtures import add_image, make_module_importable
    from headless_slicer.panel import discard, make_panel, process_until
    from SAMRegistrationLib import read_image
    from SAMRegistrationLib.demo import FIXED, MOVING, SAMPLE_FOLDER

    slicer = start_slicer()
    make_module_importable()
    for name, title in ((FIXED, "SAMRegistrationFixed"), (MOVING, "SAMRegistrationMoving")):
        add_image(slicer, read_image(SAMPLE_FOLDER / f"{name}.nii.gz"), title)
    widget = make_panel()
    ui = widget.ui
    ui.presetComboBox.setCurrentIndex(ui.presetComboBox.findText(preset))
    ui.environmentCollapsibleButton.setCollapsed(False)
    ui.checkEnvironmentButton.click()
    process_until(lambda: "computes" in ui.environmentLabel.text, 300)
    ui.applyButton.click()
    process_until(lambda: widget.panel.apply.job is None, 600)
    ui.modelsTable.setMaximumHeight(70)
    ui.modelsTable.resizeColumnsToContents()
    _save(widget, path)
    discard(widget)


def _save(widget: Any, path: str) -> None:
    from headless_slicer.qt_facade import process_events

    widget.parent.resize(WIDTH, HEIGHT)
    widget.parent.show()
    for _ in range(20):
        process_events()
    widget.parent.grab().save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
