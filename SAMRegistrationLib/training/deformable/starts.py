"""How prepared volumes lie to each other before any deformation: each is aligned to one of its region, once.

Two volumes are aligned by going through that one, so that n alignments give all n (n - 1) pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...features.base import FeatureExtractor
from ...methods.problem import Problem
from ...presets import load_preset
from ...stages import run_stage
from ...transforms import AffineTransform
from ..cache import CachedVolume
from ..pair_search import image_of

AFFINE, CENTER = "affine", "center"
STARTS_FILE = "starts.json"

LARGEST_STRETCH = 1.6
"""People differ less along any axis; an alignment that stretches more went astray."""

Matrix = np.ndarray


class Starts:
    """For every volume the 4x4 matrix from its region's common frame to its own in mm, or None."""

    def __init__(self, matrices: dict[str, Matrix | None]) -> None:
        self.matrices = matrices

    def aligned(self, volume: CachedVolume) -> bool:
        """Whether the volume can be paired with others."""
        return self.matrices.get(volume.name) is not None

    def between(self, fixed: CachedVolume, moving: CachedVolume) -> Matrix:
        """4x4 matrix from the fixed volume's frame to the moving one's, in mm."""
        to_fixed, to_moving = self.matrices[fixed.name], self.matrices[moving.name]
        if to_fixed is None or to_moving is None:
            raise ValueError(f"{fixed.name} and {moving.name} have not been aligned")
        return to_moving @ np.linalg.inv(to_fixed)


def centered_starts(volumes: list[CachedVolume]) -> Starts:
    """All boxes centered on each other."""
    matrices: dict[str, Matrix | None] = {}
    for volume in volumes:
        matrix = np.eye(4)
        matrix[:3, 3] = (np.asarray(volume.image().shape[::-1]) - 1) / 2 * volume.spacing
        matrices[volume.name] = matrix
    return Starts(matrices)


def affine_starts(
    volumes: list[CachedVolume],
    extractor: FeatureExtractor,
    folder: Path,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
) -> Starts:
    """Align every volume that the folder does not know yet to its region's first one, by the preset "affine".

    `device` is that of the extractor.
    """
    path = folder / STARTS_FILE
    known = json.loads(path.read_text()) if path.is_file() else {}
    references: dict[str, tuple[CachedVolume, Problem]] = {}
    for index, volume in enumerate(volumes):
        if volume.name in known:
            continue
        if volume.region not in references:
            reference = _reference(volume.region, volumes, known)
            image = image_of(reference, device)
            references[volume.region] = reference, Problem(image, image, extractor)
        reference, problem = references[volume.region]
        matrix = np.eye(4) if reference.name == volume.name else _aligned(problem, volume)
        known[volume.name] = {"reference": reference.name, "matrix": None if matrix is None else matrix.tolist()}
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(known))
        temporary.replace(path)
        verdict = "left out, it could not be aligned" if matrix is None else "aligned"
        say(f"{index + 1}/{len(volumes)} {volume.name}: {verdict}")
    found = {volume.name: known[volume.name]["matrix"] for volume in volumes}
    return Starts({name: None if matrix is None else np.asarray(matrix) for name, matrix in found.items()})


def _reference(region: str, volumes: list[CachedVolume], known: dict[str, dict[str, object]]) -> CachedVolume:
    """The volume that the others of a region are aligned to: the known ones' or the first."""
    members = {volume.name: volume for volume in volumes if volume.region == region}
    used = [str(known[name]["reference"]) for name in members if name in known]
    return members[used[0]] if used and used[0] in members else next(iter(members.values()))


def _aligned(problem: Problem, volume: CachedVolume) -> Matrix | None:
    """The matrix from the reference's frame to the volume's; None if no matches tell it or it is not plausible."""
    problem.moving = image_of(volume, problem.device)
    problem.initial, problem.warnings = AffineTransform(), []
    try:
        for stage in load_preset(AFFINE).stages:
            with torch.no_grad():
                run_stage(problem, stage, None)
    except InputError:
        return None
    by_matches = problem.details["align"]["inliers"] is not None
    if not (by_matches and isinstance(problem.initial, AffineTransform)):
        return None
    matrix = np.asarray(problem.initial.matrix)
    stretches = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return matrix if stretches.max() < LARGEST_STRETCH and stretches.min() > 1 / LARGEST_STRETCH else None
