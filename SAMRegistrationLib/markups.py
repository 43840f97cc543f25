"""Slicer markups documents (.mrk.json): what point lists and ROIs have in common.

Facts: the schema "markups-schema-v1.0.3" and the storage nodes of Slicer's Markups module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .files import write_text

MARKUPS_SUFFIXES = (".mrk.json", ".json")
# Slicer compares the end of this address with the versions it knows; it need not lead anywhere.
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/"
    "Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
)
_SIGNS = {
    "LPS": (1.0, 1.0, 1.0),
    "RAS": (-1.0, -1.0, 1.0),
    # Old files number the systems.
    "0": (-1.0, -1.0, 1.0),
    "1": (1.0, 1.0, 1.0),
}
_MILLIMETERS = {"mm": 1.0, "um": 1e-3}
_IDENTITY_IN_RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def to_lps_signs(system: object, path: Path) -> NDArray[np.float64]:
    """Factors (3,) that turn coordinates of the named system ("LPS", "RAS", or 0 for RAS and 1 for LPS) into LPS.

    Raises:
        InputError: for any other system.
    """
    signs = _SIGNS.get(str(system).strip().upper())
    if signs is None:
        raise InputError(f"{path}: the coordinate system {system} is not known; use LPS or RAS")
    return np.array(signs)


def numbers(values: object, count: int, path: Path, what: str) -> NDArray[np.float64]:
    """An array of exactly `count` finite numbers.

    Raises:
        InputError: if `values` is anything else; the sentence names `path` and `what`.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(f"{path}: {what} must be {count} finite numbers")
    return array


def read_text(path: Path) -> str:
    """The text of a file (UTF-8, with or without byte order mark).

    Raises:
        InputError: if it is missing or no text.
    """
    if not path.is_file():
        raise InputError(f"file not found: {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a text file") from error


def read_markups(path: Path) -> list[dict[str, Any]]:
    """The markups of a .mrk.json file, at least one.

    Raises:
        InputError: if the file is missing or no markups document.
    """
    try:
        document = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON; it may be truncated") from error
    markups = document.get("markups") if isinstance(document, dict) else None
    if not isinstance(markups, list) or not markups or not all(isinstance(one, dict) for one in markups):
        raise InputError(f"{path} is not a Slicer markups file: it has no list of markups")
    return markups


def markup_factors(markup: dict[str, Any], path: Path) -> NDArray[np.float64]:
    """Factors (3,) that turn positions of a markup into LPS millimeters.

    Raises:
        InputError: for an unknown coordinate system or unit.
    """
    unit = markup.get("coordinateUnits", "mm")
    if isinstance(unit, list):  # a coded entry: value, scheme, meaning
        unit = unit[0] if unit else "mm"
    if unit not in _MILLIMETERS:
        raise InputError(f"{path}: the coordinate unit {unit} is not known; use mm")
    return to_lps_signs(markup.get("coordinateSystem", "LPS"), path) * _MILLIMETERS[unit]


def control_point(index: int, label: str, position: ArrayLike) -> dict[str, Any]:
    """A control point as Slicer writes it; `index` counts from 1, `position` is LPS mm."""
    return {
        "id": str(index),
        "label": label,
        "description": "",
        "associatedNodeID": "",
        "position": np.asarray(position, dtype=np.float64).tolist(),
        "orientation": list(_IDENTITY_IN_RAS),
        "selected": True,
        "locked": False,
        "visibility": True,
        "positionStatus": "defined",
    }


def write_markup(path: Path, kind: str, points: list[dict[str, Any]], properties: dict[str, Any]) -> None:
    """Write a document with one markup of a kind ("Fiducial", "ROI") in LPS mm, complete or not at all.

    Raises:
        InputError: if the place cannot be written.
    """
    markup = {
        "type": kind,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        **properties,
        "controlPoints": points,
        "measurements": [],
    }
    write_text(path, json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=4, allow_nan=False) + "\n")
