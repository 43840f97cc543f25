"""The table of points and their partners, and the same as a file."""

import csv
from pathlib import Path

from .Lazy import numpy as np

COLUMNS = ("Point", "Confidence", "Remark")
FIELDS = ("label", "fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z")
MEASURES = ("score", "support", "cycle_mm", "reason")


class PointTable:
    """Shows pairs of points, colored by their confidence.

    Args:
        widget: a QTableWidget.
        onChosen: told the world position (RAS mm) of a point whose row was clicked.
    """

    def __init__(self, widget, onChosen) -> None:
        self._widget, self._onChosen = widget, onChosen
        self._points = None
        widget.setHorizontalHeaderLabels(list(COLUMNS))
        widget.cellClicked.connect(lambda row, _column: self._onClicked(row))

    def show(self, points) -> None:
        """Show all pairs, or nothing for None."""
        import qt

        self._points = points
        rows = points.rows() if points is not None else []
        self._widget.setRowCount(len(rows))
        for row, (label, pair) in enumerate(rows):
            for column, text in enumerate((label, pair.text, pair.remark)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(pair.remark)
                if column == 1:
                    item.setBackground(qt.QBrush(qt.QColor(*confidenceColor(pair))))
                self._widget.setItem(row, column, item)

    def chosen(self, points) -> "str | None":
        """The point of the fixed list whose row is selected."""
        row = self._widget.currentRow()
        return points.pairs[row].fixedID if points is not None and 0 <= row < len(points.pairs) else None

    def _onClicked(self, row: int) -> None:
        if self._points is not None and row < len(self._points.pairs):
            position = self._points.positions([self._points.pairs[row].fixedID])[0]
            self._onChosen([float(value) for value in position])


def confidenceColor(pair) -> tuple:
    """Red, green and blue, 0 to 255: from orange (no confidence) to green."""
    share = 1.0 if pair.byHand else min(max(pair.score, 0.0), 1.0) * (1.0 if not pair.reason else 0.4)
    low, high = np.array([240, 150, 90]), np.array([120, 205, 130])
    return tuple(int(value) for value in low + share * (high - low))


def writePairs(path: str, points) -> None:
    """Write pairs as a table with positions in LPS mm.

    Raises:
        OSError: if the place cannot be written.
    """
    flip = np.array([-1.0, -1.0, 1.0])
    fixed, moving, labels = points.worldPositions()
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow((*FIELDS, *MEASURES))
        for pair, label, first, second in zip(points.pairs, labels, fixed * flip, moving * flip):
            values = [f"{value:.3f}" for value in (*first, *second, pair.score, pair.support, pair.cycle)]
            writer.writerow((label, *values, "set by hand" if pair.byHand else pair.reason))
