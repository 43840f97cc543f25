"""SimpleITK's affine registration by Mattes mutual information, the usual intensity-based start."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..method import Outcome, Task, affine
from ..pairs import FloatArray

HISTOGRAM_BINS = 48
SHRINK_FACTORS = (4, 2, 1)
SMOOTHING_MM = (6.0, 3.0, 1.5)
SAMPLED_FRACTION = 0.2
ITERATIONS = 150


class SitkAffine:
    """Rigid, then affine, over three resolutions.

    It begins at whichever of identity, volume centers and centers of mass has the best mutual information,
    because none of the three suits pairs with and without a common frame.
    """

    name = "sitk-affine"
    default_start: str | None = None

    def load(self) -> None:
        """SimpleITK is a dependency of the library itself."""

    def run(self, task: Task) -> Outcome:
        fixed, moving = (_nonnegative(path) for path in (task.pair.fixed, task.pair.moving))
        start = task.start.to_sitk() if task.start else _best_start(fixed, moving)
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(_center(fixed))
        _optimize(fixed, moving, rigid, start)
        both = sitk.CompositeTransform([start, rigid])
        refined = sitk.AffineTransform(3)
        refined.SetCenter(_center(fixed))
        _optimize(fixed, moving, refined, both)
        whole = sitk.CompositeTransform([start, rigid, refined])
        settings = {"bins": HISTOGRAM_BINS, "shrink": SHRINK_FACTORS, "iterations": ITERATIONS}
        return Outcome(affine(_matrix(whole)), settings=settings)


def _nonnegative(path: object) -> sitk.Image:
    """The volume as float, from 0 (so that centers of mass make sense) and without the brightest metal."""
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    lowest = float(np.min(sitk.GetArrayViewFromImage(image)))
    return sitk.Clamp(image - lowest, sitk.sitkFloat32, 0, 3000)


def _best_start(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    initializer = sitk.CenteredTransformInitializer
    rigid = sitk.Euler3DTransform()
    candidates = [
        sitk.Euler3DTransform(),
        sitk.Euler3DTransform(initializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.GEOMETRY)),
        sitk.Euler3DTransform(initializer(fixed, moving, rigid, sitk.CenteredTransformInitializerFilter.MOMENTS)),
    ]
    return min(candidates, key=lambda candidate: _value(fixed, moving, candidate))


def _value(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """The metric at a transform (lower is better); infinite where the volumes do not meet."""
    method = _registration()
    method.SetInitialTransform(transform, inPlace=False)
    try:
        return method.MetricEvaluate(fixed, moving)
    except RuntimeError:
        return float("inf")


def _registration() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SAMPLED_FRACTION)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimize(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, start: sitk.Transform) -> None:
    """Change the transform so that, followed by `start`, it brings both volumes together best."""
    method = _registration()
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, ITERATIONS, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(SHRINK_FACTORS))
    method.SetSmoothingSigmasPerLevel(list(SMOOTHING_MM))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetMovingInitialTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)


def _center(image: sitk.Image) -> list[float]:
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _matrix(transform: sitk.Transform) -> FloatArray:
    """The 4x4 matrix of a chain of affine transforms, read off from what it does to four points."""
    origin = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        unit = np.eye(3)[axis] * 100.0
        matrix[:3, axis] = (np.asarray(transform.TransformPoint(unit.tolist())) - origin) / 100.0
    return matrix
