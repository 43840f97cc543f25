"""What is known of two volumes once they are aligned, as far as it may decide how to go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..body import Regions, looks_like_ct
from ..features.memory import GIGABYTE
from ..grid import FloatArray
from ..memory_estimate import working_memory
from ..methods.problem import Problem
from ..presets import Preset
from ..transforms import AffineTransform
from .residual import Residual, residual_of

CT, NO_CT, MIXED = "CT", "no CT", "CT and other"


@dataclass(frozen=True)
class Situation:
    """Plain values that rules compare; None where something could not be found out.

    Args:
        contrasts: "CT", "no CT", or "CT and other" where only one of the volumes is a CT.
        features: name of the features in use.
        device: "cpu" or "cuda".
        megavoxels: millions of voxels of the larger volume at the working spacing.
        needed_gb: memory that the usual preset takes; `free_gb` what there is, and `memory_share` their quotient.
        section_cm2: median area of the fixed body's axial sections: limbs and heads are slender, trunks are not.
        overlap: share of the fixed volume's box that the aligned moving volume covers.
        stretch: largest factor by which the alignment stretches or shrinks along any direction.
        doubtful: whether the alignment came with warnings.
        given_start: whether the user gave the alignment.
        matches: number of matched patches, or 0; see `Residual` for `bent_mm`, `noise_mm` and `reach_mm`.
        certainty: `bent_mm` in relation to `noise_mm`, or 0 where nothing could be matched.
    """

    contrasts: str
    features: str
    device: str
    megavoxels: float
    needed_gb: float
    free_gb: float | None
    memory_share: float | None
    section_cm2: float
    overlap: float
    stretch: float
    doubtful: bool
    given_start: bool
    matches: int
    bent_mm: float | None
    noise_mm: float | None
    reach_mm: float | None
    certainty: float


def situation_of(
    problem: Problem, regions: Regions, usual: Preset, free: int | None, *, given_start: bool
) -> Situation:
    """Look at an aligned pair.

    Args:
        problem: the pair with its initial map.
        regions: of its fixed volume.
        usual: the preset whose needs count.
        free: bytes that were free before the alignment took its part; None where that is not known.
        given_start: whether the user gave the initial map.
    """
    residual = residual_of(problem, regions)
    voxels = max(problem.grid.number_of_voxels, problem.moving.grid.number_of_voxels)
    needed = working_memory(usual, problem.extractor, voxels) / GIGABYTE
    free_gb = None if free is None else free / GIGABYTE
    return Situation(
        contrasts=contrasts_of(problem),
        features=problem.extractor.name,
        device=problem.device.type,
        megavoxels=voxels / 1e6,
        needed_gb=needed,
        free_gb=free_gb,
        memory_share=None if free_gb is None else needed / max(free_gb, 1e-3),
        section_cm2=_section(regions),
        overlap=_overlap(problem),
        stretch=_stretch(problem),
        doubtful=any(warning.startswith("check the alignment") for warning in problem.warnings),
        given_start=given_start,
        **_described(residual),
    )


def contrasts_of(problem: Problem) -> str:
    """Whether both volumes, one, or none of them is a CT."""
    count = sum(looks_like_ct(volume) for volume in (problem.fixed, problem.moving))
    return (NO_CT, MIXED, CT)[count]


def _described(residual: Residual | None) -> dict:
    if residual is None:
        return {"matches": 0, "bent_mm": None, "noise_mm": None, "reach_mm": None, "certainty": 0.0}
    certainty = residual.bent_mm / max(residual.noise_mm, 1e-3)
    return {**vars(residual), "certainty": certainty}


def _section(regions: Regions) -> float:
    areas = regions.body.sum(dim=(1, 2)).double().numpy()
    spacing = regions.image.grid.spacing
    return float(np.median(areas[areas > 0])) * spacing[0] * spacing[1] / 100 if areas.any() else 0.0


def _overlap(problem: Problem) -> float:
    _, moving = problem.masks()
    return 1.0 if moving is None else float(moving.mean())


def _stretch(problem: Problem) -> float:
    if not isinstance(problem.initial, AffineTransform):
        return 1.0
    stretches: FloatArray = np.linalg.svd(problem.initial.matrix[:3, :3], compute_uv=False)
    return float(np.exp(np.abs(np.log(stretches)).max()))
