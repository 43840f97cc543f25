"""Register two volumes: prepare them, run the stages of a preset, and gather the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .chain import noting, plan_of, run_chain
from .configuration import lacking_memory
from .device import resolve_device
from .errors import InputError, NotEnoughMemoryError, RegistrationWarning, is_out_of_memory
from .features.base import FeatureExtractor
from .features.registry import ExtractorSource, get_extractor
from .field import DisplacementField, displacement_on
from .files import staged_outputs
from .finish import final_transform, judged, placed
from .grid import Grid
from .image import Image
from .image_io import write_image
from .inputs import TransformLike, VolumeLike, as_mask, as_transform, as_volume, origin_of
from .memory_estimate import require_memory_for
from .memory_reuse import freed_memory_kept
from .methods.problem import GRID_MULTIPLE, Problem
from .metrics import StageRecorder
from .presets import Preset, load_preset
from .report import build_report, describe_input, write_report
from .sampling import Interpolation
from .stages import check_stages, require_models
from .transform_io import write_transform
from .transforms import Transform, transform_points

Progress = Callable[[str, float], None]
"""Told the stage at work and the finished fraction of everything; may raise `Cancelled`."""

OUTPUTS = ("transform.h5", "displacement.nii.gz", "warped.nii.gz", "report.json")


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """What a registration found.

    Args:
        transform: from fixed to moving world (LPS mm), the displacement at the resolution it was solved at.
        fixed: the fixed volume as it was given.
        moving: the moving volume as it was given.
        report: the content of `report.json`.
    """

    transform: Transform
    fixed: Image
    moving: Image
    report: dict[str, Any]

    @cached_property
    def displacement(self) -> DisplacementField:
        """The whole map as displacements in mm (LPS) on the fixed grid."""
        return displacement_on(self.transform, self.fixed.grid)

    @cached_property
    def warped(self) -> Image:
        """The moving volume on the fixed grid, in the moving volume's pixel type."""
        return self.displacement.warp(self.moving, Interpolation.LINEAR)

    def save(self, folder: str | Path) -> None:
        """Write transform.h5, displacement.nii.gz, warped.nii.gz and report.json, all of them or none.

        Raises:
            InputError: if the folder cannot be written.
        """
        # Float fields hardly compress: the two copies of the displacement set the size.
        needed = self.fixed.grid.number_of_voxels * 16 + 50_000_000
        with staged_outputs(folder, needed) as staging:
            write_transform(self.transform, staging / "transform.h5")
            write_transform(self.displacement, staging / "displacement.nii.gz")
            write_image(self.warped, staging / "warped.nii.gz")
            write_report(self.report, staging / "report.json")


@freed_memory_kept()
def register(
    fixed: VolumeLike,
    moving: VolumeLike,
    *,
    preset: str | Path | Preset = "default",
    device: str | torch.device = "auto",
    initial: TransformLike | None = None,
    fixed_mask: VolumeLike | None = None,
    moving_mask: VolumeLike | None = None,
    model: str | None = None,
    strict: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    extractors: ExtractorSource = get_extractor,
) -> RegistrationResult:
    """Find the map from fixed to moving space under which the moving volume fits the fixed one.

    Args:
        fixed: path, SimpleITK image or `Image`; CT in HU, or MR.
        moving: the same, of any size, spacing and orientation.
        preset: name or file of a preset, see `presets`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        initial: a map from fixed to moving world (LPS mm) to start from; replaces the search for an alignment.
        fixed_mask: label map whose non-zero voxels are to be registered.
        moving_mask: label map of the moving volume's usable voxels.
        model: features to use instead of the preset's, "mind" or a name from `samreg models list`.
        strict: refuse to fall back to other features where weights are missing.
        seed: of everything random; the same inputs, device and seed give the same result.
        progress: told the stage and the finished fraction; raising `Cancelled` there stops the work.
        extractors: where features come from; a source that remembers saves computing them again.

    Returns:
        The result; nothing is written until its `save`.

    Raises:
        UsageError: for an unknown preset, model or device name.
        InputError: for volumes, masks, transforms or devices that cannot be used.
        NotEnoughMemoryError: if the work does not fit.
    """
    chosen = preset if isinstance(preset, Preset) else load_preset(preset)
    check_stages(chosen.stages)
    require_models(chosen.stages)
    target = resolve_device(device)
    recorder = StageRecorder(progress, plan_of(chosen), target)
    with recorder.stage("prepare"):
        volumes = as_volume(fixed, "fixed"), as_volume(moving, "moving")
        notes: list[str] = []
        masks = noting(notes, lambda: (as_mask(fixed_mask, volumes[0]), as_mask(moving_mask, volumes[1])))
        start = as_transform(initial)
        _require_overlap(start, volumes)
        extractor = noting(notes, lambda: _extractor(chosen, model, target, strict, volumes, extractors))
        _require_memory(chosen, extractor, volumes, target)
        problem = prepare(extractor, volumes, chosen.spacing, target, masks, seed)
        problem.warnings.extend(notes)
    try:
        stages = run_chain(recorder, problem, chosen, start)
        with recorder.stage("finish"):
            transform = final_transform(problem)
            result = RegistrationResult(placed(transform, "cpu"), *volumes, report={})
            field = result.displacement if target.type == "cpu" else None
            found = judged(transform, volumes, target, field)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(_memory_advice(chosen, problem)) from error
    inputs = _described((fixed, moving, fixed_mask, moving_mask, initial), volumes)
    report = build_report(
        inputs=inputs,
        preset=chosen.name,
        settings={"features": problem.extractor.name, "seed": seed, "stages": stages},
        device=target,
        recorder=recorder,
        warnings=problem.warnings,
        details=problem.details,
        **found,
    )
    # The same object, so that the displacement is not computed again when it is saved.
    result.report.update(report)
    return result


def _extractor(
    preset: Preset,
    model: str | None,
    device: torch.device,
    strict: bool,
    volumes: tuple[Image, Image],
    extractors: ExtractorSource,
) -> FeatureExtractor:
    """The features asked for, or the preset's fallback where weights are missing or made for other modalities."""
    strict = strict or preset.fallback is None
    extractor = extractors(model or preset.features, device, strict=strict, mind_spacing=preset.spacing)
    sentence = None
    if not all(extractor.suits(volume) for volume in volumes):
        sentence = f"{extractor.name} features were not made for volumes of this modality"
    elif preset.automatic and model is None and not strict:
        grids = _working_grids(preset, extractor, volumes)
        sentence = lacking_memory(preset, extractor, max(grid.number_of_voxels for grid in grids), device)
    if sentence is None:
        return extractor
    if strict or preset.fallback is None:
        raise InputError(f"{sentence}; choose other features or allow the fallback")
    warnings.warn(f"{sentence}; {preset.fallback} features are used instead", RegistrationWarning, stacklevel=2)
    return extractors(preset.fallback, device, mind_spacing=preset.spacing)


def _require_overlap(start: Transform | None, volumes: tuple[Image, Image]) -> None:
    """Refuse a given start under which no part of the fixed volume's box lies in the moving one."""
    if start is None:
        return
    fixed, moving = (volume.grid for volume in volumes)
    steps = (np.linspace(-0.5, n - 0.5, 9) for n in fixed.size)
    positions = fixed.to_world(np.stack(np.meshgrid(*steps), axis=-1))
    if not bool(moving.contains(transform_points(start, positions)).any()):
        raise InputError(
            "the volumes do not overlap under the initial transform; it must map from fixed to moving space"
        )


def _require_memory(
    preset: Preset, extractor: FeatureExtractor, volumes: tuple[Image, Image], device: torch.device
) -> None:
    require_memory_for(preset, extractor, *_working_grids(preset, extractor, volumes), volumes[0].grid, device)


def _working_grids(preset: Preset, extractor: FeatureExtractor, volumes: tuple[Image, Image]) -> tuple[Grid, Grid]:
    spacing = extractor.spacing or preset.spacing
    return working_grid(volumes[0].grid, spacing), _not_finer(volumes[1].grid, spacing)


def prepare(
    extractor: FeatureExtractor,
    volumes: tuple[Image, Image],
    mind_spacing: float,
    device: torch.device,
    masks: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    seed: int = 0,
) -> Problem:
    """Both volumes with axes along L, P, S at the working spacing, the masks with them.

    Args:
        extractor: of the features, whose spacing is the working spacing.
        volumes: fixed and moving.
        mind_spacing: the working spacing in mm of features that work at any.
        device: where the volumes shall lie.
        masks: (z, y, x) bool on the volumes' own grids.
        seed: of everything random.
    """
    spacing = extractor.spacing or mind_spacing
    fixed, moving = (volume.to(device).canonical() for volume in volumes)
    fixed_mask, moving_mask = (
        None if mask is None else volume.with_data(mask.float()).to(device).canonical()
        for mask, volume in zip(masks, volumes, strict=True)
    )
    fixed_grid, moving_grid = working_grid(fixed.grid, spacing), _not_finer(moving.grid, spacing)
    return Problem(
        fixed.resampled(fixed_grid),
        moving.resampled(moving_grid),
        extractor,
        _mask_on(fixed_mask, fixed_grid),
        _mask_on(moving_mask, moving_grid),
        seed=seed,
    )


def _mask_on(mask: Image | None, grid: Grid) -> torch.Tensor | None:
    return None if mask is None else mask.resampled(grid, Interpolation.NEAREST, default=0).data > 0.5


def working_grid(grid: Grid, spacing: float) -> Grid:
    """The isotropic grid over a volume's box, grown evenly so that all strides and levels divide its size."""
    plain = grid.resampled(spacing)
    missing = [-n % GRID_MULTIPLE for n in plain.size]
    lower = [-(m // 2) for m in missing]
    upper = [n + m - m // 2 for n, m in zip(plain.size, missing, strict=True)]
    return plain.cropped(lower, upper)


def _not_finer(grid: Grid, spacing: float) -> Grid:
    return grid.resampled([max(spacing, own) for own in grid.spacing])


def _described(sources: tuple[Any, ...], volumes: tuple[Image, Image]) -> dict[str, Any]:
    names = ("fixed", "moving", "fixed_mask", "moving_mask", "initial")
    described: dict[str, Any] = {}
    for name, source, volume in zip(names, sources, (*volumes, None, None, None), strict=True):
        path = origin_of(source)
        if path is not None or volume is not None:
            described[name] = describe_input(volume, path)
        elif source is not None:
            described[name] = {"path": None, "type": type(source).__name__}
    return described


def _memory_advice(preset: Preset, problem: Problem) -> str:
    size = " x ".join(str(n) for n in problem.grid.size)
    lighter = f', or take the preset "{preset.lighter}"' if preset.lighter else ""
    return (
        f'memory ran out during the preset "{preset.name}" on {problem.device} at {size} voxels; '
        f"crop the volumes{lighter}"
    )
