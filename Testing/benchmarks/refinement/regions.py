"""Image-specific against region-specific optimization (ISO, RSO) on one pair, by either parametrization."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from SAMRegistrationLib import AffineTransform, CompositeTransform, DisplacementField
from SAMRegistrationLib.field import displacement_on
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.methods.region_optimization import (
    RegionSettings,
    Similarity,
    optimize_displacement,
    optimize_network,
)
from SAMRegistrationLib.methods.region_volumes import RegionPair, box_on, region_grid, region_pair, whole_grid
from SAMRegistrationLib.models.deformable import DeformableModel
from SAMRegistrationLib.refinement.patch import without_new_folds
from SAMRegistrationLib.refinement.report import RegionErrors
from SAMRegistrationLib.refinement.steps import MOST_IMAGE_VOXELS
from SAMRegistrationLib.solvers.folding import remove_folds
from SAMRegistrationLib.solvers.ops import smallest_corner_determinant
from SAMRegistrationLib.transforms import Transform

from .cases import MARGIN_MM, Case

ITERATIONS = 500
ISO_SHARE = 0.2
"""Of the iterations, before RSO goes on."""

WATCHES = 10

GENERAL_DETERMINANT = 0.1
"""The smallest of what the general network predicts: room for what is refined on it."""

Curve = list[tuple[int, float]]


@dataclass
class Run:
    """The optimizations of one case, their RMSE in the box as they go, and their CPU time.

    Args:
        case: the pair.
        similarity: what is compared.
        model: whose weights are the unknowns; None for the displacement itself.
        iterations: of ISO alone, or of ISO and RSO together.
    """

    case: Case
    similarity: Similarity
    model: DeformableModel | None = None
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        self._errors = RegionErrors(self.case.box, self.case.fixed, self.case.moving)

    def general(self) -> Transform:
        """What the workflow begins with: what the network predicts, without folds; without a network, nothing.

        A map that folds is none to accept, and what is refined on it can only be kept where it does not fold more.
        """
        if self.model is None:
            return AffineTransform()
        grid = whole_grid(self.case.fixed.grid.resampled(self.model.spacing), MOST_IMAGE_VOXELS)
        everywhere = torch.ones(grid.shape)
        start = AffineTransform()
        pair = region_pair(self.case.fixed, self.case.moving, start, grid, everywhere > 0, everywhere)
        volumes = (self.model.normalization(each) for each in (pair.fixed, pair.moving))
        with torch.no_grad():
            voxels = remove_folds(self.model.network(*volumes)[-1], GENERAL_DETERMINANT)
        return pair.patch(voxels * voxels.new_tensor(grid.spacing).view(1, 3, 1, 1, 1))

    def whole_image(self, start: Transform, iterations: int) -> tuple[Transform, Curve, float]:
        """Image-specific optimization, at the spacing at which `refine` does it."""
        grid = whole_grid(self.case.fixed.grid, MOST_IMAGE_VOXELS)
        everywhere = torch.ones(grid.shape)
        return self._optimized(start, grid, everywhere > 0, everywhere, iterations)

    def region(self, start: Transform, iterations: int) -> tuple[Transform, Curve, float]:
        """Region-specific optimization of the case's box."""
        grid = region_grid(self.case.box, MARGIN_MM, self.case.fixed.grid)
        inside, window = box_on(self.case.box, MARGIN_MM, grid)
        return self._optimized(start, grid, inside, window, iterations)

    def error(self, transform: Transform) -> float:
        """RMSE in HU inside the box."""
        found = self._errors.under(transform)
        assert found is not None
        return found

    def _optimized(
        self, start: Transform, grid: Grid, inside: torch.Tensor, window: torch.Tensor, iterations: int
    ) -> tuple[Transform, Curve, float]:
        case = self.case
        curve: Curve = []
        paused = 0.0
        every = max(1, self.iterations // WATCHES)

        def watch(iteration: int, found: Callable[[], DisplacementField]) -> None:
            nonlocal paused
            if (iteration + 1) % every == 0:
                began = time.process_time()
                curve.append((iteration + 1, self.error(CompositeTransform([found(), start]))))
                paused += time.process_time() - began

        began = time.process_time()
        pair = region_pair(case.fixed, case.moving, start, grid, inside, window)
        correction = self._correction(pair, RegionSettings(self.similarity, iterations), watch)
        correction, _ = without_new_folds(correction, start, pair.window, case.fixed.grid)
        seconds = time.process_time() - began - paused
        return CompositeTransform([correction, start]), curve, seconds

    def _correction(self, pair: RegionPair, settings: RegionSettings, watch: Any) -> DisplacementField:
        if self.model is None:
            return optimize_displacement(pair, settings, watch=watch).correction
        return optimize_network(pair, self.model, settings, watch=watch).correction


def region_row(
    case: Case, similarity: Similarity, model: DeformableModel | None = None, iterations: int = ITERATIONS
) -> dict[str, Any]:
    """ISO against RSO on one pair."""
    run = Run(case, similarity, model, iterations)
    first = round(ISO_SHARE * iterations)
    start = run.general()
    general = run.error(start)
    iso, iso_curve, iso_seconds = run.whole_image(start, iterations)
    accepted, first_curve, _ = run.whole_image(start, first)
    rso, rso_curve, rso_seconds = run.region(accepted, iterations - first)
    iso_error, rso_error = run.error(iso), run.error(rso)
    truth = case.truth.displacement(case.fixed.grid)
    errors = {"identity": run.error(AffineTransform()), "general": general, "iso": iso_error, "rso": rso_error}
    return {
        "name": case.name,
        "unknowns": "displacement" if model is None else "weights",
        "similarity": similarity.value,
        "iterations": iterations,
        "rmse": {**errors, "ratio": rso_error / iso_error, "truth": run.error(truth)},
        **field_measures(case, truth, {"before": accepted, "after": rso, "iso": iso}),
        "cpu_seconds": {"iso": iso_seconds, "rso": rso_seconds},
        "curves": {
            "iso": [(0, general), *iso_curve],
            "rso": [(0, general), *first_curve, *((first + n, value) for n, value in rso_curve)],
        },
    }


def field_measures(case: Case, truth: DisplacementField, maps: dict[str, Transform]) -> dict[str, Any]:
    """Errors of the maps in the box, what RSO changed beyond the margin, and its folds, on the fixed grid."""
    fields = {name: displacement_on(transform, case.fixed.grid) for name, transform in maps.items()}
    inside = case.box.mask(case.fixed.grid)
    beyond = ~case.box.grown(MARGIN_MM).mask(case.fixed.grid)
    change = (fields["after"].data - fields["before"].data).norm(dim=1)[0]
    return {
        "error_mm": {
            name: float((fields[key].data - truth.data).norm(dim=1)[0][inside].mean())
            for name, key in (("iso", "iso"), ("rso", "after"))
        },
        "outside_mm": float(change[beyond].mean()),
        "folded_voxels": {
            name: int((smallest_corner_determinant(fields[name].to_voxels()) <= 0).sum())
            for name in ("before", "after")
        },
    }
