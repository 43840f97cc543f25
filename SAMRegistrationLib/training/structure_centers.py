"""How far the center of a structure's matches is from the structure's own.

Some contours end where somebody stopped drawing: the cord's in one subject 10 cm above where it ends in another.
The center of such a tube is no anatomical place, so it is also compared level by level along the body, where the
contour says where the tube is; an error along it cannot be seen then, which the contour does not tell either.
"""

from __future__ import annotations

import numpy as np

from ..grid import FloatArray

OPEN_ENDED_LABELS = {"openkbp": (2, 5)}
"""Label values by scheme of tubes whose contours end at arbitrary levels (openkbp: spinal cord, esophagus)."""

_SLICE_MM = 3.0
_LEVEL_MM = 15.0
_LEAST_PLACES = 3


def center_distance(places: FloatArray, structure: FloatArray) -> float:
    """Distance in mm of the medians along x, y, z of matched places (n, 3) and a structure's voxels (m, 3)."""
    return float(np.linalg.norm(np.median(places, axis=0) - np.median(structure, axis=0)))


def center_line_distance(places: FloatArray, structure: FloatArray) -> float:
    """Distance in mm, across the body, of the center of matched places from a tube's center line.

    Taken is the mean over levels of 15 mm of the median offset from the line; levels with fewer than three places,
    and places above or below the contour, do not count.

    Args:
        places: (n, 3) in LPS mm.
        structure: (m, 3) positions of the tube's voxels in LPS mm.

    Returns:
        NaN if no level counts.
    """
    slices = np.rint(structure[:, 2] / _SLICE_MM)
    levels = np.unique(slices)
    line = np.array([np.median(structure[slices == level, :2], axis=0) for level in levels])
    beside = (
        np.abs(places[:, 2] - places[:, 2].clip(levels[0] * _SLICE_MM, levels[-1] * _SLICE_MM)) <= _SLICE_MM / 2
    )
    x, y, z = places[beside].T
    offsets = np.stack(
        [a - np.interp(z, levels * _SLICE_MM, c) for a, c in zip((x, y), line.T, strict=True)], axis=1
    )
    level_of = np.floor(z / _LEVEL_MM)
    groups = [offsets[level_of == level] for level in np.unique(level_of)]
    distances = [np.linalg.norm(np.median(group, axis=0)) for group in groups if len(group) >= _LEAST_PLACES]
    return float(np.mean(distances)) if distances else float("nan")
