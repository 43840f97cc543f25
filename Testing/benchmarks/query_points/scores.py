"""Errors in mm of what was answered on a pair (see `answers`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from SAMRegistrationLib.grid import FloatArray, Grid
from SAMRegistrationLib.transforms import AffineTransform

from .answers import OURS, PEER_MODULES

Parts = dict[str, dict[str, Any]]
"""What is known of one pair, by part: "ours", "intensities", and peers by name."""

INTENSITIES = ("intensities", "intensities from the frames")


def found_points(parts: Parts) -> dict[str, FloatArray]:
    """Where every method puts the asked points (n, 3), by the name of a table's row."""
    ours = parts["ours"]
    asked = np.asarray(ours["points"])
    rows = {f"{name}, point by point": np.asarray(ours["found"][name]["matched"]) for name in OURS}
    maps = {name: ours["found"][name]["map"] for name in OURS}
    maps |= {name: parts[name]["map"] for name in PEER_MODULES if name in parts}
    for name, matrix in maps.items():
        if matrix is not None:
            rows[f"{name}, its affine map"] = AffineTransform(np.asarray(matrix)).transform_points(asked)
    return rows


def point_errors(parts: Parts, found: FloatArray) -> FloatArray:
    """Distance (n,) from the truth: of points of the body, or of the centers of whole contours."""
    truth = np.asarray(parts["ours"]["truth"])
    return np.asarray(np.linalg.norm(found[: len(truth)] - truth, axis=1))


def organ_errors(parts: Parts, found: FloatArray) -> dict[str, float]:
    """Distance of the centers of whole contours, by organ."""
    return dict(zip(parts["ours"]["organs"], point_errors(parts, found).tolist(), strict=True))


def level_errors(parts: Parts, found: FloatArray) -> dict[str, float]:
    """As `organ_errors`, but of tubes the distance to the center line at the matched level.

    Asked there is a point of the fixed center line. An error along the tube cannot be seen, which the contours,
    ending at arbitrary levels, do not tell either.
    """
    tubes: dict[str, Any] = parts["ours"]["tubes"]
    errors = organ_errors(parts, found)
    places = found[len(parts["ours"]["truth"]) :]
    for (name, line), place in zip(tubes.items(), places, strict=True):
        errors[name] = distance_to_line(place, np.asarray(line))
    return errors


def distance_to_line(place: FloatArray, line: FloatArray) -> float:
    """Distance in mm to a center line (k, 3) at the level of a place; to its end where that lies beyond."""
    ascending = line[np.argsort(line[:, 2])]
    level = np.clip(place[2], ascending[0, 2], ascending[-1, 2])
    center = [np.interp(level, ascending[:, 2], ascending[:, axis]) for axis in (0, 1)]
    return float(np.linalg.norm(place - np.array([*center, level])))


def shift(parts: Parts) -> FloatArray:
    """The best that a translation can do on a moved view: the mean displacement (3,) of the body that it shows.

    Over points all over the body, by the exact map, which is affine and so known from the points of the truth. The
    few points that are asked lie elsewhere in the mean: of a turned body their displacement is off by up to 9 mm.
    """
    ours = parts["ours"]
    truth, body = np.asarray(ours["truth"]), np.asarray(ours["body"]["points"])
    asked = np.asarray(ours["points"])[: len(truth)]
    exact, *_ = np.linalg.lstsq(np.c_[asked, np.ones(len(asked))], truth, rcond=None)
    places = np.c_[body, np.ones(len(body))] @ exact
    shown = Grid(**ours["moving_grid"]).contains(places)
    return np.asarray((places - body)[shown].mean(axis=0))


def translation_offsets(parts: Parts) -> dict[str, float]:
    """Distance in mm of every method's translation from `shift`."""
    found = {name: parts["ours"]["found"][name]["translation"] for name in OURS}
    found |= parts.get("intensities", {}).get("translations", {})
    best = shift(parts)
    return {name: float(np.linalg.norm(np.asarray(each) - best)) for name, each in found.items()}
