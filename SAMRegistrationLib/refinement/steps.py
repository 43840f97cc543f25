"""The single steps of a refinement, each of which leaves a patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import UsageError
from ..features.base import FeatureExtractor
from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..methods.region_optimization import (
    Progress,
    RegionResult,
    RegionSettings,
    Similarity,
    optimize_displacement,
    optimize_network,
)
from ..methods.region_volumes import RegionPair, box_on, region_grid, region_pair, whole_grid
from ..models.deformable import DeformableModel
from ..roi import RegionOfInterest, require_overlap
from ..solvers.region import Level
from ..solvers.terms import Term
from ..transforms import FloatArray, Transform
from .correction import exact_correction
from .inversion import inverse_points
from .landmarks import LandmarkPairs
from .patch import Patch, folds, refined, without_new_folds
from .pull import LandmarkTerm, box_around, reach_for, window_around
from .region_features import SPACING_MM, RegionFeatures
from .regions import RegionRequest
from .report import RegionErrors

MOST_IMAGE_VOXELS = 500_000
"""Whole images are worked on at a spacing at which they have no more."""

LEAST_MARGIN_MM = 1.0
_FEATURES_PER_SIDE = 8
_MET_EXACTLY_MM = 0.1
_NOTED_SHARE = 0.98


@dataclass(frozen=True)
class Settings:
    """How all steps of a refinement work; see `refine`."""

    similarity: Similarity
    iterations: int
    margin_mm: float
    network: DeformableModel | None = None

    @classmethod
    def checked(
        cls, similarity: str, iterations: int, margin_mm: float, network: DeformableModel | None
    ) -> Settings:
        """From what a user gives.

        Raises:
            UsageError: if that makes no sense.
        """
        known = [member.value for member in Similarity]
        if similarity not in known:
            raise UsageError(f'unknown similarity "{similarity}"; choose one of {", ".join(known)}')
        if iterations < 1:
            raise UsageError("a refinement needs at least one iteration")
        if not margin_mm >= LEAST_MARGIN_MM:
            raise UsageError(f"the margin of a region must be at least {LEAST_MARGIN_MM:g} mm")
        if network is not None and (network.network.uses_embeddings or similarity == "sam"):
            raise UsageError("only networks and similarities that need no embeddings can be refined by weights")
        return cls(Similarity(similarity), iterations, float(margin_mm), network)


class Refiner:
    """Makes patch after patch.

    Args:
        volumes: fixed and moving.
        masks: (z, y, x) bool on the volumes' grids, or None.
        accepted: from fixed to moving world.
        settings: of all steps.
        device: where to compute.
        extractor: gives the features for the similarity "sam".
        notes: sentences for the user are added to it.

    Attributes:
        patches: what was found so far, in this order.
        steps: what the report says of each.
    """

    def __init__(
        self,
        volumes: tuple[Image, Image],
        masks: tuple[Tensor | None, Tensor | None],
        accepted: Transform,
        settings: Settings,
        device: torch.device,
        extractor: Callable[[], FeatureExtractor],
        notes: list[str],
    ) -> None:
        self.patches: list[Patch] = []
        self.steps: list[dict[str, Any]] = []
        self._volumes = volumes
        self._masks = masks
        self._accepted = accepted
        self._settings = settings
        self._device = device
        self._extractor = extractor
        self._notes = notes

    @property
    def transform(self) -> Transform:
        """The map refined so far."""
        return refined(self._accepted, tuple(self.patches))

    def whole_image(self, iterations: int, progress: Progress) -> None:
        """Image-specific optimization: the loss of the whole fixed volume."""
        grid = whole_grid(self._volumes[0].grid, MOST_IMAGE_VOXELS)
        grid = self._suited(grid, grid.extent)
        everywhere = torch.ones(grid.shape)
        pair = self._pair(grid, everywhere > 0, everywhere)
        result = self._optimized(pair, iterations, None, progress)
        self._keep("image", pair, result, {"iterations": iterations})

    def region(
        self, box: RegionOfInterest, request: RegionRequest, pairs: LandmarkPairs, progress: Progress
    ) -> None:
        """Region-specific optimization: the loss of a box in fixed space, with the landmarks in it.

        Raises:
            InputError: if the box lies outside the overlap, is too small or shows nothing.
        """
        fixed = self._volumes[0]
        require_overlap(box, fixed.grid, "the fixed volume")
        grid = region_grid(box, self._settings.margin_mm, fixed.grid)
        grid = self._suited(grid, 2 * box.half_size)
        inside, window = box_on(box, self._settings.margin_mm, grid)
        pair = self._pair(grid, inside, window)
        errors = RegionErrors(box, *self._volumes, self._masks[0])
        before = errors.under(self.transform)
        result = self._optimized(pair, self._settings.iterations, pairs, progress)
        described = {
            "center": box.center,
            "size": 2 * box.half_size,
            "axes": box.axes,
            "on": request.on,
            "iterations": self._settings.iterations,
        }
        self._keep("region", pair, result, described)
        self.steps[-1]["rmse"] = {"before": before, "after": errors.under(self.transform)}

    def landmarks(self, pairs: LandmarkPairs, progress: Progress) -> None:
        """The optimization of what lies around landmarks that are in no box; nothing without such landmarks."""
        if not len(pairs):
            return
        reach = reach_for(self._targets(pairs) - pairs.fixed)
        grid = region_grid(box_around(pairs.fixed, reach), LEAST_MARGIN_MM, self._volumes[0].grid)
        grid = self._suited(grid, grid.extent)
        inside, window = window_around(pairs.fixed, grid, reach)
        pair = self._pair(grid, inside, window)
        result = self._optimized(pair, self._settings.iterations, pairs, progress)
        self._keep("landmarks", pair, result, {"iterations": self._settings.iterations})

    def exact(self, pairs: LandmarkPairs) -> None:
        """Meet landmarks exactly, as far as that does not fold; nothing without landmarks."""
        if not len(pairs):
            return
        correction = exact_correction(pairs.fixed, self._targets(pairs) - pairs.fixed)
        everywhere = torch.ones_like(correction.data[:, :1])
        correction, share = self._sound(correction, everywhere)
        self._add("exact", correction, {"share": share})
        remaining = pairs.errors(self.transform)
        for number in (remaining > _MET_EXACTLY_MM).nonzero()[0]:
            name, error = pairs.labels[number], remaining[number]
            self._notes.append(f"landmark {name} cannot be met exactly without folding: {error:.1f} mm remain")

    def _suited(self, grid: Grid, sides: ArrayLike) -> Grid:
        """The grid at the spacing of features, which hold no finer detail, or of the network's training."""
        if self._settings.network is not None:
            return grid.resampled(self._settings.network.spacing)
        if self._settings.similarity is not Similarity.SAM:
            return grid
        spacing = min(SPACING_MM, float(np.min(sides)) / _FEATURES_PER_SIDE)
        return grid.resampled([max(own, spacing) for own in grid.spacing])

    def _pair(self, grid: Grid, inside: Tensor, window: Tensor) -> RegionPair:
        fixed, moving = self._volumes
        fixed_mask, moving_mask = self._masks
        return region_pair(
            fixed, moving, self.transform, grid, inside, window, self._device, fixed_mask, moving_mask
        )

    def _optimized(
        self, pair: RegionPair, iterations: int, pairs: LandmarkPairs | None, progress: Progress
    ) -> RegionResult:
        settings = RegionSettings(self._settings.similarity, iterations)
        extra = None if pairs is None or not len(pairs) else self._pull(pair.grid, pairs)
        network = self._settings.network
        if network is not None:
            return optimize_network(pair, network, settings, extra_terms=extra, progress=progress)
        features = None
        if self._settings.similarity is Similarity.SAM:
            found = RegionFeatures(self._extractor(), self._volumes, self.transform, self._device)
            features = found.on(pair.grid)
        return optimize_displacement(pair, settings, features=features, extra_terms=extra, progress=progress)

    def _pull(self, grid: Grid, pairs: LandmarkPairs) -> Callable[[Level], Sequence[Term]]:
        targets = self._targets(pairs)
        return lambda level: [LandmarkTerm.of(level, grid, pairs.fixed, targets, pairs.weights_mm)]

    def _targets(self, pairs: LandmarkPairs) -> FloatArray:
        """The fixed positions that the map found so far takes to the moving partners."""
        return inverse_points(self.transform, pairs.moving, pairs.fixed)[0]

    def _keep(self, kind: str, pair: RegionPair, result: RegionResult, described: dict[str, Any]) -> None:
        correction, share = self._sound(result.correction, pair.window.cpu())
        self._add(kind, correction, {**described, "loss": result.losses, "share": share})

    def _sound(self, correction: DisplacementField, window: Tensor) -> tuple[DisplacementField, float]:
        sound, share = without_new_folds(correction, self.transform, window, self._volumes[0].grid)
        if share < _NOTED_SHARE:
            self._notes.append(
                f"{100 * (1 - share):.0f} % of a refinement was left out, since it would have folded"
            )
        return sound, share

    def _add(self, kind: str, correction: DisplacementField, described: dict[str, Any]) -> None:
        fixed = self._volumes[0].grid
        before = int(folds(self.transform, correction.grid, fixed).sum())
        self.patches.append(Patch(kind, correction))
        described["folded_voxels"] = {
            "before": before,
            "after": int(folds(self.transform, correction.grid, fixed).sum()),
        }
        described["largest_mm"] = float(np.sqrt(float(correction.data.square().sum(dim=1).max())))
        self.steps.append({"kind": kind, **described})
