"""SimpleITK's diffeomorphic demons after an affine start.

Setting: the moving volume on the fixed grid by the start; histogram matching, since demons compare grey values
as they are; three resolutions (4, 2, 1) of 60, 60 and 40 iterations, the field smoothed by two voxels. Where
contrasts differ demons have no similarity that fits: the figure then says so.
"""

from __future__ import annotations

import SimpleITK as sitk

from .contract import Outcome, Task
from .volumes import lowest_value, read_nonnegative, resampled

SHRINK_FACTORS = (4, 2, 1)
ITERATIONS = (60, 60, 40)
SMOOTHING_VOXELS = 2.0


def load() -> None:
    """SimpleITK is a dependency of every adapter."""


def register(task: Task) -> Outcome:
    """Displacements on the fixed grid, then the start."""
    fixed, moving = (read_nonnegative(path) for path in (task.fixed, task.moving))
    aligned = resampled(moving, fixed, task.begin, lowest_value(moving))
    if task.same_contrast:
        aligned = sitk.HistogramMatching(aligned, fixed, 128, 10, thresholdAtMeanIntensity=True)
    field = None
    for factor, iterations in zip(SHRINK_FACTORS, ITERATIONS, strict=True):
        field = _refined(_coarse(fixed, factor), _coarse(aligned, factor), field, iterations)
    file = task.folder / "displacement.mha"
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(file))
    settings = {"shrink": SHRINK_FACTORS, "iterations": ITERATIONS, "smoothing_voxels": SMOOTHING_VOXELS}
    return Outcome((file, task.begin), settings=settings)


def _coarse(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    smoothed = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smoothed, [min(factor, max(1, n // 8)) for n in image.GetSize()])


def _refined(fixed: sitk.Image, moving: sitk.Image, field: sitk.Image | None, iterations: int) -> sitk.Image:
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(SMOOTHING_VOXELS)
    demons.SetSmoothDisplacementField(True)
    if field is None:
        return demons.Execute(fixed, moving)
    edge = sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
    return demons.Execute(fixed, moving, edge)
