"""Labeled points in world space (LPS mm), from and to Slicer markups, .fcsv and CSV."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, RegistrationWarning
from .files import write_text
from .markups import (
    MARKUPS_SUFFIXES,
    control_point,
    markup_factors,
    numbers,
    read_markups,
    read_text,
    to_lps_signs,
    write_markup,
)

POINT_FORMATS = "Slicer .mrk.json or .fcsv, or .csv with x,y,z[,label] in LPS mm"
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
# The columns of a table that hold a position, and the system they imply; None leaves it to the file's comment.
_POSITION_COLUMNS: tuple[tuple[tuple[str, str, str], str | None], ...] = (
    (("x", "y", "z"), None),
    (("l", "p", "s"), "LPS"),
    (("r", "a", "s"), "RAS"),
)
_PAIR_COLUMNS = tuple(f"{side}_{axis}" for side in ("fixed", "moving") for axis in "xyz")
_COMMENT = re.compile(r"#\s*(\w+)\s*=\s*(.*)")


@dataclass(frozen=True, eq=False)
class PointSet:
    """Points in world space.

    Args:
        points: (N, 3) positions (x, y, z) in LPS mm, float64.
        labels: N names; empty names if left out.

    Raises:
        ValueError: if the shape is another, a coordinate is not finite, or the number of labels is not N.
    """

    points: NDArray[np.float64]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float64)
        labels = tuple(self.labels) or ("",) * len(points)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise ValueError("points must be an (N, 3) array of finite coordinates")
        if len(labels) != len(points):
            raise ValueError(f"{len(labels)} labels for {len(points)} points")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.points)

    def mapped(self, function: Callable[[NDArray[np.float64]], ArrayLike]) -> PointSet:
        """The same labels at `function(points)`, such as a transform's `transform_points`."""
        return PointSet(np.asarray(function(self.points), dtype=np.float64), self.labels)

    def selected(self, index: ArrayLike) -> PointSet:
        """The points of a boolean mask or of indices."""
        chosen = np.arange(len(self))[np.asarray(index)]
        return PointSet(self.points[chosen], tuple(self.labels[i] for i in chosen))


def read_points(path: str | Path) -> PointSet:
    """Points from a Slicer .mrk.json or .fcsv file, or a CSV table.

    Markups: control points of all point markups; those whose position is not defined are left out with a
    `RegistrationWarning`. CSV: columns x,y,z[,label], with or without a header line, LPS mm unless a comment line
    `# CoordinateSystem = RAS` says otherwise; Slicer's exported tables (columns r,a,s or l,p,s) are understood.

    Raises:
        InputError: if the file is missing, of another kind, or holds no points.
    """
    path = Path(path)
    if path.name.lower().endswith(MARKUPS_SUFFIXES):
        points = _read_markup_points(path)
    elif path.name.lower().endswith((".fcsv", ".csv")):
        points = _read_table(path)
    else:
        raise InputError(f"{path} is not a file of points: use {POINT_FORMATS}")
    if not len(points):
        raise InputError(f"{path} holds no points")
    return points


def read_point_pairs(path: str | Path, moving_path: str | Path | None = None) -> tuple[PointSet, PointSet]:
    """Corresponding points of the fixed and the moving image.

    Args:
        path: a CSV table with columns fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z[,label] (LPS mm), or the
            fixed points as for `read_points`.
        moving_path: the moving points; needed unless `path` holds pairs. They belong together by label where both
            files name every point uniquely with the same names, else by order.

    Raises:
        InputError: if a file is unreadable or the numbers of points differ.
    """
    path = Path(path)
    if moving_path is None:
        return _read_pair_table(path)
    moving_path = Path(moving_path)
    fixed, moving = read_points(path), read_points(moving_path)
    if len(fixed) != len(moving):
        raise InputError(f"{path} holds {len(fixed)} points and {moving_path} {len(moving)}; they must correspond")
    if len(set(fixed.labels)) == len(fixed) and set(fixed.labels) == set(moving.labels):
        place = {label: index for index, label in enumerate(moving.labels)}
        moving = moving.selected([place[label] for label in fixed.labels])
    return fixed, moving


def write_points(points: PointSet, path: str | Path) -> None:
    """Write points in LPS as Slicer .mrk.json or .fcsv, or as CSV, by the file name; complete or not at all.

    Raises:
        InputError: if the name is of no such kind or the place cannot be written.
    """
    path = Path(path)
    name = path.name.lower()
    rows = zip(points.points.tolist(), points.labels, strict=True)
    if name.endswith(MARKUPS_SUFFIXES):
        controls = [control_point(n, label, point) for n, (point, label) in enumerate(rows, start=1)]
        write_markup(path, "Fiducial", controls, {})
    elif name.endswith(".fcsv"):
        header = f"# Markups fiducial file version = 5.8\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
        lines = [[n, *point, 0, 0, 0, 1, 1, 1, 0, label, "", ""] for n, (point, label) in enumerate(rows, start=1)]
        write_text(path, header + _csv_text(lines))
    elif name.endswith(".csv"):
        write_text(path, _csv_text([("x", "y", "z", "label"), *((*point, label) for point, label in rows)]))
    else:
        raise InputError(f"cannot write {path}: use {POINT_FORMATS}")


def write_point_pairs(fixed: PointSet, moving: PointSet, path: str | Path) -> None:
    """Write corresponding points as the CSV table that `read_point_pairs` reads, labels from `fixed`.

    Raises:
        InputError: if the place cannot be written.
    """
    rows = zip(fixed.points.tolist(), moving.points.tolist(), fixed.labels, strict=True)
    lines = [(*_PAIR_COLUMNS, "label"), *((*first, *second, label) for first, second, label in rows)]
    write_text(path, _csv_text(lines))


def _csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The rows as CSV, one line each: line breaks within a label become spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([" ".join(cell.split()) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def _read_markup_points(path: Path) -> PointSet:
    positions: list[NDArray[np.float64]] = []
    labels: list[str] = []
    undefined = 0
    for markup in read_markups(path):
        if markup.get("type") == "ROI":
            raise InputError(f"{path} holds an ROI, not points")
        factors = markup_factors(markup, path)
        for control in markup.get("controlPoints", []):
            if control.get("positionStatus", "defined") != "defined" or not control.get("position"):
                undefined += 1
                continue
            positions.append(numbers(control["position"], 3, path, "a control point's position") * factors)
            labels.append(str(control.get("label", "")))
    _warn_of_undefined(undefined, path)
    return PointSet(np.array(positions).reshape(-1, 3), tuple(labels))


def _read_table(path: Path) -> PointSet:
    comments, rows = _table(path)
    is_fcsv = path.name.lower().endswith(".fcsv")
    if is_fcsv:
        columns = comments.get("columns", _FCSV_COLUMNS).split(",")
    elif rows and not _is_number(rows[0][1][0]):
        columns = rows.pop(0)[1]
    else:
        columns = ["x", "y", "z", "label"]
    places = {name.strip().lower(): place for place, name in enumerate(columns)}
    if set(_PAIR_COLUMNS) <= set(places):
        raise InputError(f"{path} holds pairs of fixed and moving points where one set of points is needed")
    axes, system = _position_columns(places, path)
    if system is None:
        system = _declared_system(comments, is_fcsv, path)
    defined = [(line, row) for line, row in rows if _cell(row, places, "defined") not in ("0", "false")]
    _warn_of_undefined(len(rows) - len(defined), path)
    points = _positions(defined, [places[axis] for axis in axes], path)
    return PointSet(points * to_lps_signs(system, path), _labels(defined, places))


def _read_pair_table(path: Path) -> tuple[PointSet, PointSet]:
    comments, rows = _table(path)
    columns = rows.pop(0)[1] if rows else []
    places = {name.strip().lower(): place for place, name in enumerate(columns)}
    if not set(_PAIR_COLUMNS) <= set(places):
        raise InputError(f"{path} is not a table of point pairs: it needs the columns {','.join(_PAIR_COLUMNS)}")
    if not rows:
        raise InputError(f"{path} holds no points")
    signs = to_lps_signs(_declared_system(comments, False, path), path)
    columns_of = [places[name] for name in _PAIR_COLUMNS]
    fixed, moving = (_positions(rows, side, path) * signs for side in (columns_of[:3], columns_of[3:]))
    labels = _labels(rows, places)
    return PointSet(fixed, labels), PointSet(moving, labels)


def _table(path: Path) -> tuple[dict[str, str], list[tuple[int, list[str]]]]:
    """The `# name = value` comments (names in lower case) and the rows of a table with their line numbers."""
    comments: dict[str, str] = {}
    rows: list[tuple[int, list[str]]] = []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if text.startswith("#"):
            if match := _COMMENT.match(text):
                comments[match[1].lower()] = match[2].strip()
        elif text.strip():
            rows.append((line, next(csv.reader([text]))))
    return comments, rows


def _position_columns(places: dict[str, int], path: Path) -> tuple[tuple[str, str, str], str | None]:
    for axes, system in _POSITION_COLUMNS:
        if set(axes) <= set(places):
            return axes, system
    raise InputError(f"{path} is not a table of points: it needs the columns x,y,z[,label]")


def _declared_system(comments: dict[str, str], is_fcsv: bool, path: Path) -> str:
    if "coordinatesystem" in comments:
        return comments["coordinatesystem"]
    if not is_fcsv:
        return "LPS"
    warnings.warn(
        f"{path} does not name its coordinate system; RAS is assumed, as in old Slicer files",
        RegistrationWarning,
        stacklevel=4,
    )
    return "RAS"


def _positions(rows: list[tuple[int, list[str]]], places: list[int], path: Path) -> NDArray[np.float64]:
    positions = []
    for line, row in rows:
        cells = [row[place] for place in places if place < len(row)]
        positions.append(numbers(cells, 3, path, f"the position in line {line}"))
    return np.array(positions).reshape(-1, 3)


def _labels(rows: list[tuple[int, list[str]]], places: dict[str, int]) -> tuple[str, ...]:
    return tuple(_cell(row, places, "label") for _, row in rows)


def _cell(row: list[str], places: dict[str, int], column: str) -> str:
    place = places.get(column, len(row))
    return row[place].strip() if place < len(row) else ""


def _warn_of_undefined(count: int, path: Path) -> None:
    if count:
        warnings.warn(
            f"{path}: {count} points without a position were left out", RegistrationWarning, stacklevel=4
        )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
