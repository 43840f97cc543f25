"""Refine an accepted result where a person sees that it is wrong: in boxes, at landmarks, or all over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..device import resolve_device
from ..errors import NotEnoughMemoryError, UsageError, is_out_of_memory
from ..features.registry import ExtractorSource, get_extractor
from ..image import Image
from ..inputs import TransformLike, VolumeLike, as_mask, as_transform, as_volume
from ..metrics import StageRecorder
from ..models.deformable import DeformableModel
from ..pipeline import Progress, RegistrationResult
from ..roi import RegionOfInterest, require_overlap
from ..transforms import Transform
from .landmarks import LandmarkPairs, in_air, require_usable
from .patch import Patch, refined
from .regions import RegionRequest, Side, in_fixed_space
from .report import describe_landmarks, refinement_report
from .steps import Refiner, Settings

IMAGE_ITERATIONS = 100
"""Of image-specific optimization, as in the paper."""


@dataclass(frozen=True, eq=False)
class RefinementResult(RegistrationResult):
    """A refined registration, of which every step can be taken back.

    Args:
        accepted: the map before.
        patches: what was changed, in this order.
        transform, fixed, moving, report: as of `RegistrationResult`.
    """

    accepted: Transform = field(kw_only=True)
    patches: tuple[Patch, ...] = field(kw_only=True)

    def undone(self) -> Transform:
        """The map before the last patch: exactly the one from which that patch was made."""
        return refined(self.accepted, self.patches[:-1])


def refine(
    accepted: RegistrationResult | TransformLike | None,
    fixed: VolumeLike | None = None,
    moving: VolumeLike | None = None,
    *,
    regions: Iterable[RegionOfInterest | RegionRequest] = (),
    points: LandmarkPairs | None = None,
    image_iterations: int = 0,
    similarity: str = "lncc",
    iterations: int = 400,
    margin_mm: float = 20.0,
    network: DeformableModel | None = None,
    device: str | torch.device = "auto",
    fixed_mask: VolumeLike | None = None,
    moving_mask: VolumeLike | None = None,
    model: str = "sam",
    progress: Progress | None = None,
    extractors: ExtractorSource = get_extractor,
    sources: Mapping[str, Any] | None = None,
) -> RefinementResult:
    """Refine a registration: first the whole image, if that is wanted, then box after box, then the landmarks.

    Args:
        accepted: the result or the map (fixed to moving world, LPS mm) to begin with.
        fixed: the fixed volume; that of the result by default.
        moving: the moving volume; that of the result by default.
        regions: boxes in fixed space, or requests that say on which volume they were drawn.
        points: landmark pairs. Those in a box take part in its optimization, all others in one around themselves;
            exact ones are met by a last correction.
        image_iterations: of image-specific optimization before everything else; 0 for none.
        similarity: what is compared, "lncc", "mse", "mind" or "sam".
        iterations: for each box.
        margin_mm: so far around a box its displacement dies away; nothing changes beyond.
        network: a general registration model whose weights are the unknowns, as published, instead of the
            displacement itself.
        device: "auto", "cpu", "cuda" or "cuda:N".
        fixed_mask: label map whose non-zero voxels count.
        moving_mask: label map of the moving volume's usable voxels.
        model: features for the similarity "sam".
        progress: told the stage and the finished fraction; raising `Cancelled` there stops the work.
        extractors: where features come from.
        sources: what the report shall say of the inputs, by name, instead of what it finds itself.

    Returns:
        The result; nothing is written until its `save`.

    Raises:
        UsageError: without an accepted map, for an unknown similarity or device name, if nothing is to be done.
        InputError: for volumes, boxes and landmarks that cannot be used.
        NotEnoughMemoryError: if the work does not fit.
    """
    start, given = _accepted(accepted), accepted if isinstance(accepted, RegistrationResult) else None
    settings = Settings.checked(similarity, iterations, margin_mm, network)
    requests = [r if isinstance(r, RegionRequest) else RegionRequest(r) for r in regions]
    pairs = points if points is not None else LandmarkPairs([], [])
    if not requests and not len(pairs) and image_iterations < 1:
        raise UsageError("there is nothing to refine: give a region, landmarks or iterations for the whole image")
    target = resolve_device(device)
    stages = [
        *(["whole image"] if image_iterations > 0 else []),
        *(f"region {number}" for number in range(1, len(requests) + 1)),
        *(["landmarks"] if len(pairs) else []),
    ]
    plan = {"prepare": 0.5, **dict.fromkeys(stages, 4.0), "finish": 1.0}
    recorder = StageRecorder(progress, plan, target)
    notes: list[str] = []
    try:
        with recorder.stage("prepare"):
            volumes = _volumes(fixed, moving, given)
            masks = as_mask(fixed_mask, volumes[0]), as_mask(moving_mask, volumes[1])
            require_usable(pairs, start, *volumes)
            notes += [
                f"landmark {pairs.labels[n]} lies in air, where there is no anatomy to match"
                for n in in_air(pairs, *volumes).nonzero()[0]
            ]
            refiner = Refiner(volumes, masks, start, settings, target, lambda: extractors(model, target), notes)
        if image_iterations > 0:
            with recorder.stage("whole image"):
                refiner.whole_image(image_iterations, partial(recorder.advance, "whole image"))
        free = torch.ones(len(pairs), dtype=torch.bool).numpy()
        for number, request in enumerate(requests, 1):
            with recorder.stage(f"region {number}"):
                if request.on is Side.MOVING:
                    require_overlap(request.region, volumes[1].grid, "the moving volume")
                box = in_fixed_space(request, refiner.transform)
                inside = box.contains(pairs.fixed) if len(pairs) else free
                free &= ~inside
                refiner.region(
                    box,
                    request,
                    pairs.selected(inside),
                    partial(recorder.advance, f"region {number}"),
                )
        if len(pairs):
            with recorder.stage("landmarks"):
                refiner.landmarks(pairs.selected(free), partial(recorder.advance, "landmarks"))
                refiner.exact(pairs.selected(pairs.exact))
        with recorder.stage("finish"):
            result = RefinementResult(
                refiner.transform, *volumes, report={}, accepted=start, patches=tuple(refiner.patches)
            )
            landmarks = describe_landmarks(pairs, start, result.transform)
            notes += landmarks.pop("notes")
            details = {"steps": refiner.steps, **({"landmarks": landmarks} if len(pairs) else {})}
            finished = refinement_report(result, settings, target, start, details, notes, sources)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError("memory ran out during the refinement; draw a smaller box") from error
    return replace(result, report=finished(recorder))


def _accepted(accepted: RegistrationResult | TransformLike | None) -> Transform:
    if accepted is None:
        raise UsageError("there is no registration to refine yet: register the volumes first")
    start = accepted.transform if isinstance(accepted, RegistrationResult) else as_transform(accepted)
    assert start is not None
    return start


def _volumes(
    fixed: VolumeLike | None, moving: VolumeLike | None, given: RegistrationResult | None
) -> tuple[Image, Image]:
    if fixed is None and given is not None:
        fixed = given.fixed
    if moving is None and given is not None:
        moving = given.moving
    if fixed is None or moving is None:
        raise UsageError("a refinement needs the fixed and the moving volume")
    return as_volume(fixed, "fixed"), as_volume(moving, "moving")
