"""Pictures of single results, from the slices that were kept, as data in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plots import figure

DOTS_PER_INCH = 100
AXES = "zyx"
VISIBLE = 0.1
"""Grey from which on something is shown, of 1."""

SPACINGS = {"z": (1, 0), "y": (2, 0), "x": (2, 1)}
"""Spacings (index into x, y, z) of a slice's rows and columns."""


def picture(slices_file: Path) -> str:
    """A PNG as a data address: axial, coronal and sagittal, fixed in green and warped in magenta.

    Where both agree the picture is grey. Lines: the fixed labels in green, the warped ones in magenta.
    """
    with np.load(slices_file) as kept:
        slices = {name: kept[name] for name in kept.files}
    drawn, axes = figure(9.0, 3.2, columns=3)
    drawn.set_facecolor("black")
    for axis, panel in zip(AXES, axes, strict=True):
        _draw(panel, slices, axis)
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=DOTS_PER_INCH, facecolor="black")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _draw(panel: Any, slices: Mapping[str, NDArray[Any]], axis: str) -> None:
    fixed, warped = slices[f"fixed_{axis}"], slices[f"warped_{axis}"]
    grey = [_grey(image) for image in (fixed, warped)]
    rows, columns = (float(slices["spacing"][number]) for number in SPACINGS[axis])
    # Rows run along z in coronal and sagittal slices, and the head belongs on top.
    origin = "upper" if axis == "z" else "lower"
    box = _box(np.maximum(grey[0], grey[1]))
    overlay = np.stack([grey[1], grey[0], grey[1]], axis=-1)
    panel.imshow(overlay[box], origin=origin, aspect=rows / columns, interpolation="nearest")
    for name, color in (("fixed_labels", "#40ff40"), ("warped_labels", "#ff60ff")):
        labels = slices.get(f"{name}_{axis}")
        if labels is None:
            continue
        for value in np.unique(labels[labels > 0]):
            panel.contour(labels[box] == value, levels=[0.5], colors=color, linewidths=0.8)
    panel.set_axis_off()


def _box(grey: NDArray[Any]) -> tuple[slice, slice]:
    """The rows and columns that show anything; all where nothing does."""
    rows, columns = (np.flatnonzero((grey > VISIBLE).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _grey(image: NDArray[Any]) -> NDArray[np.float64]:
    """Soft tissue to bone of a CT (-400 to 600 HU), or the usual range of another volume, as 0 to 1."""
    low, high = (-400.0, 600.0) if image.min() < -500 else np.percentile(image, [1, 99])
    return np.clip((image - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float64)
