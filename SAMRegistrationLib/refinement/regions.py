"""Boxes that a user has drawn, brought into fixed space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from ..roi import RegionOfInterest
from ..transforms import FloatArray, Transform, transform_points
from .inversion import inverse_points


class Side(Enum):
    """The volume that a box was drawn on."""

    FIXED = "fixed"
    MOVING = "moving"


@dataclass(frozen=True)
class RegionRequest:
    """A box to refine, where it was drawn.

    Args:
        region: the box in the world of that volume.
        on: the volume.
    """

    region: RegionOfInterest
    on: Side = Side.FIXED

    @classmethod
    def from_json(cls, content: Any) -> RegionRequest:
        """From `center` [x, y, z], `size` [x, y, z] (whole sides), `axes` (rows of a 3x3 matrix whose columns are
        the directions of the box's sides; the world's by default) and `on` ("fixed" by default), LPS mm.

        Raises:
            UsageError: if something is missing or of another type.
            InputError: if that is no box.
        """
        if not isinstance(content, Mapping) or not {"center", "size"} <= set(content):
            raise UsageError("a region needs a center, a size, and may have axes and the volume it lies on")
        try:
            center, size = (np.array(content[name], dtype=np.float64).reshape(3) for name in ("center", "size"))
            axes = np.array(content.get("axes") or np.eye(3), dtype=np.float64).reshape(3, 3)
            on = Side(content.get("on") or "fixed")
        except (TypeError, ValueError) as error:
            raise UsageError(f"a region is not as it should be: {error}") from error
        try:
            return cls(RegionOfInterest(center, size / 2, axes), on)
        except ValueError as error:
            raise InputError(f"the region of interest cannot be used: {error}") from error


def in_fixed_space(request: RegionRequest, accepted: Transform) -> RegionOfInterest:
    """The box in fixed space; one drawn on the moving volume is brought there by the accepted map.

    The map bends a box. The box returned has the directions that the sides have at its center after the map, made
    orthogonal, and is as large as it must be to hold all corners.

    Raises:
        InputError: if no fixed point is mapped into the box.
    """
    if request.on is Side.FIXED:
        return request.region
    drawn = request.region
    start = np.vstack([drawn.center, drawn.corners()])
    found, residual = inverse_points(accepted, start)
    if residual.max() > 1.0:
        center = ", ".join(f"{value:.0f}" for value in drawn.center)
        raise InputError(
            f"the region of interest around ({center}) mm LPS lies where the accepted result does not reach"
        )
    axes = _orthogonal(_derivative_of_inverse(accepted, found[0]) @ drawn.axes)
    own = (found[1:] - found[0]) @ axes
    lower, upper = own.min(axis=0), own.max(axis=0)
    return RegionOfInterest(found[0] + axes @ ((lower + upper) / 2), (upper - lower) / 2, axes)


def _derivative_of_inverse(accepted: Transform, point: FloatArray) -> FloatArray:
    steps = np.vstack([np.eye(3), -np.eye(3)])
    mapped = transform_points(accepted, point + steps)
    return np.linalg.inv((mapped[:3] - mapped[3:]).T / 2)


def _orthogonal(matrix: FloatArray) -> FloatArray:
    """The orthonormal matrix closest to the directions of the columns."""
    left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    return left @ right
