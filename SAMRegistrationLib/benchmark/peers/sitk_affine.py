"""SimpleITK's affine registration by Mattes mutual information, the usual intensity-based start.

Setting: rigid, then affine, over three resolutions, 20 % of the voxels on a regular pattern. It begins at
whichever of the initial alignment, volume centers and centers of mass has the best mutual information, because
none of the three suits pairs with and without a common frame; or at the start that it is given. With the
setting `mask` the metric counts in the fixed volume's mask.
"""

from __future__ import annotations

import SimpleITK as sitk

from .contract import Outcome, Task
from .volumes import as_sitk, center_of, matrix_of, measured_mask, read_nonnegative

HISTOGRAM_BINS = 48
SHRINK_FACTORS = (4, 2, 1)
SMOOTHING_MM = (6.0, 3.0, 1.5)
SAMPLED_FRACTION = 0.2
ITERATIONS = 150


def load() -> None:
    """SimpleITK is a dependency of every adapter."""


def register(task: Task) -> Outcome:
    """Rigid, then affine."""
    fixed, moving = (read_nonnegative(path) for path in (task.fixed, task.moving))
    start = _best_start(fixed, moving, task) if task.start is None else as_sitk(task.start)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(center_of(fixed))
    _optimize(fixed, moving, rigid, start, task)
    refined = sitk.AffineTransform(3)
    refined.SetCenter(center_of(fixed))
    _optimize(fixed, moving, refined, sitk.CompositeTransform([start, rigid]), task)
    whole = sitk.CompositeTransform([start, rigid, refined])
    settings = {"bins": HISTOGRAM_BINS, "shrink": SHRINK_FACTORS, "iterations": ITERATIONS}
    return Outcome((matrix_of(whole),), settings=settings)


def _best_start(fixed: sitk.Image, moving: sitk.Image, task: Task) -> sitk.Transform:
    initializer = sitk.CenteredTransformInitializer
    rigid = sitk.Euler3DTransform()
    candidates = [
        as_sitk(task.initial),
        sitk.Euler3DTransform(initializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.GEOMETRY)),
        sitk.Euler3DTransform(initializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.MOMENTS)),
    ]
    return min(candidates, key=lambda candidate: _value(fixed, moving, candidate, task))


def _value(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, task: Task) -> float:
    """The metric at a transform (lower is better); infinite where the volumes do not meet."""
    method = _registration(task)
    method.SetInitialTransform(transform, inPlace=False)
    try:
        return float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return float("inf")


def _registration(task: Task) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    # Regular samples are jittered; the seed 0 would be the clock.
    method.SetMetricSamplingPercentage(SAMPLED_FRACTION, task.seed % 2**31 + 1)
    if (mask := measured_mask(task)) is not None:
        method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimize(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, start: sitk.Transform, task: Task
) -> None:
    """Change the transform so that, followed by `start`, it brings both volumes together best."""
    method = _registration(task)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, ITERATIONS, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(SHRINK_FACTORS))
    method.SetSmoothingSigmasPerLevel(list(SMOOTHING_MM))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetMovingInitialTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
