"""What a refinement reached, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..field import displacement_on
from ..finish import LEAST_MEASURED_VOXELS
from ..image import Image
from ..metrics import StageRecorder, distribution, field_quality, root_mean_square_difference
from ..pipeline import RegistrationResult
from ..report import build_report, describe_input, similarity_under
from ..roi import RegionOfInterest
from ..transforms import Transform
from .consistency import contradicting
from .inversion import inverse_points
from .landmarks import LandmarkPairs


class RegionErrors:
    """Root mean square difference inside a box, in the unit of the volumes (HU for CT), on the fixed voxels.

    Args:
        box: in fixed space.
        fixed: the fixed volume.
        moving: the moving volume.
        mask: (z, y, x) bool on the fixed grid, where it counts.
    """

    def __init__(self, box: RegionOfInterest, fixed: Image, moving: Image, mask: Tensor | None = None) -> None:
        lower, upper = box.voxel_box(fixed.grid)
        z, y, x = (slice(first, last) for first, last in zip(lower[::-1], upper[::-1], strict=True))
        self._grid = fixed.grid.cropped(lower, upper)
        self._values = fixed.data[z, y, x]
        self._inside = box.mask(self._grid)
        if mask is not None:
            self._inside &= mask[z, y, x]
        self._moving = moving

    def under(self, transform: Transform) -> float | None:
        """The error under a map; None where the volumes have no voxel of the box in common."""
        warped = displacement_on(transform, self._grid).warp(self._moving, default=float("nan")).data
        counted = self._inside & ~torch.isnan(warped)
        return root_mean_square_difference(self._values, warped, counted) if bool(counted.any()) else None


def describe_landmarks(pairs: LandmarkPairs, accepted: Transform, final: Transform) -> dict[str, Any]:
    """Errors of landmarks before and after, and which of them contradict the rest (with `notes` for the user)."""
    if not len(pairs):
        return {"notes": []}
    before, after = pairs.errors(accepted), pairs.errors(final)
    targets, _ = inverse_points(accepted, pairs.moving, pairs.fixed)
    flagged = contradicting(pairs.fixed, targets - pairs.fixed, pairs.weights_mm)
    suspicious = np.flatnonzero(flagged).tolist()
    return {
        "count": len(pairs),
        "tre_before_mm": distribution(before),
        "tre_after_mm": distribution(after),
        "per_landmark": [
            {"name": name, "before_mm": first, "after_mm": second, "contradicts_the_rest": bool(flag)}
            for name, first, second, flag in zip(
                pairs.labels, before.tolist(), after.tolist(), flagged.tolist(), strict=True
            )
        ],
        "suspicious": suspicious,
        "notes": [
            f"landmark {pairs.labels[number]} contradicts the others: check that both its points are one place"
            for number in suspicious
        ],
    }


def refinement_report(
    result: RegistrationResult,
    settings: Any,
    device: torch.device,
    accepted: Transform,
    details: Mapping[str, Any],
    notes: list[str],
    sources: Mapping[str, Any] | None,
) -> Callable[[StageRecorder], dict[str, Any]]:
    """The report of a refinement, but for the times, which are known only afterwards.

    Similarity `before` is that under the accepted map, so that it shows what the refinement has changed.
    """
    size = [max(n, LEAST_MEASURED_VOXELS) for n in result.fixed.grid.size]
    measured = result.displacement
    if size != list(measured.grid.size):
        measured = displacement_on(result.transform, measured.grid.resized(size))
    before = displacement_on(accepted, result.fixed.grid)
    known: dict[str, Any] = {
        "inputs": {
            "fixed": describe_input(result.fixed),
            "moving": describe_input(result.moving),
            **(sources or {}),
        },
        "preset": "refine",
        "settings": {
            "similarity": settings.similarity,
            "iterations": settings.iterations,
            "margin_mm": settings.margin_mm,
            "network": None if settings.network is None else settings.network.name,
        },
        "device": device,
        "similarity_before": similarity_under(before, result.fixed, result.moving),
        "similarity_after": similarity_under(result.displacement, result.fixed, result.moving),
        "field": field_quality(measured.to_voxels()),
        "details": {"refinement": details},
        "warnings": notes,
    }
    return lambda recorder: build_report(recorder=recorder, **known)
