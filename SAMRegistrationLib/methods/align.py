"""The first stage of every preset: a linear alignment, or what the user gave instead."""

from __future__ import annotations

from typing import Any

from ..alignment import Alignment, align, improved_on_same_body
from ..alignment.feature_alignment import size_of
from ..alignment.refinement import Model
from ..alignment.volumes import PreparedImage
from ..errors import InputError
from ..matching import index_kept
from ..transforms import AffineTransform, Transform
from .common_part import MOSTLY_COMMON
from .problem import Problem
from .sam_affine import sam_affine
from .second_look import look_again


def align_stage(problem: Problem, start: Transform | None, *, model: str = "affine", refine: bool = False) -> None:
    """Set the problem's initial transform.

    Args:
        problem: the pair; warnings about a doubtful alignment are added to it.
        start: the user's transform. It is taken as it is, unless `refine` is set and it is affine: then the
            search starts there.
        model: "rigid", "similarity" or "affine".
        refine: improve the user's transform instead of taking it.

    Raises:
        InputError: for an unknown model, or if no plausible alignment is found.
    """
    try:
        Model(model)
    except ValueError as error:
        raise InputError(f'a preset asks for an alignment of the unknown kind "{model}"') from error
    if start is not None and not (refine and isinstance(start, AffineTransform)):
        problem.initial = start
        problem.details["align"] = {"model": "given"}
        return
    initial = start if isinstance(start, AffineTransform) else None
    options: dict[str, Any] = {
        "fixed_mask": problem.fixed_mask,
        "moving_mask": problem.moving_mask,
        "seed": problem.seed,
    }
    if problem.extractor.name == "mind":
        found = align(problem.fixed, problem.moving, model=model, initial=initial, **options)
    else:
        found = _by_embeddings(problem, model, initial, options)
    problem.initial, problem.embedded = found.transform, found.embedded
    problem.warnings.extend(found.warnings)
    problem.details["align"] = {"model": found.model, "inliers": found.inliers, "score": found.score}


def _by_embeddings(
    problem: Problem, model: str, initial: AffineTransform | None, options: dict[str, Any]
) -> Alignment:
    """By matches, then by intensities where both volumes show as much of one body, elsewhere by a second look."""
    pair, extractor, features = (problem.fixed, problem.moving), problem.extractor, problem.fixed_features()
    with index_kept(features):
        first = sam_affine(*pair, extractor, model=model, initial=initial, fixed_features=features, **options)
        if _of_like_size(problem):
            on_same_body = improved_on_same_body(first, *pair, **options)
            if on_same_body is not first:
                return on_same_body
        second = look_again(*pair, extractor, features, first, model=model, **options)
    return improved_on_same_body(second, *pair, **options)


def _of_like_size(problem: Problem) -> bool:
    """Whether neither volume shows much more of a body than the other, as where one is cropped."""
    masks = problem.fixed_mask, problem.moving_mask
    pair = zip((problem.fixed, problem.moving), masks, strict=True)
    sizes = [size_of(PreparedImage.of(volume, mask).regions.body_image) for volume, mask in pair]
    return min(sizes) >= MOSTLY_COMMON * max(sizes)
