"""elastix by the package itk-elastix: affine, or affine and B-spline.

Setting (`stages`, `bending_weight`, `mask`): as in the EMPIRE10 entry of elastix's authors and their parameter
files for CT (Par0011): a multi-resolution affine, then a B-spline with a control point every 10 mm at the finest
of five resolutions (80, 80, 40, 20, 10 mm), adaptive stochastic gradient descent with 1000 iterations a resolution
(affine: four resolutions of 500) and 2000 random samples, normalized correlation, or Mattes mutual information
where contrasts differ. The entry's penalty on bending energy (relative weight 0.05) more than doubles the time; it
takes part where `bending_weight` is given. The entry's last stage needs masks of the lungs and is left out. The
pyramids are of smoothing only, so that thin volumes keep their slices. With `mask` samples are taken in the fixed
volume's mask.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import SimpleITK as sitk

from .contract import Matrix, NotInstalled, Outcome, Task
from .volumes import center_of, matrix_of, written_mask

SAMPLES = 2000
GRID_MM = 10.0
GRID_SCHEDULE = (8, 8, 4, 2, 1)
AFFINE_ITERATIONS, BSPLINE_ITERATIONS = 500, 1000
AFFINE_SMOOTHING, BSPLINE_SMOOTHING = (8, 4, 2, 1), (16, 8, 4, 2, 1)


def load() -> None:
    """The import of ITK's wrapping is lazy; the filters themselves load here."""
    try:
        import itk
    except ImportError as error:
        raise NotInstalled("elastix is not installed: pip install itk-elastix==0.25.4") from error
    if not hasattr(itk, "ParameterObject"):
        raise NotInstalled("ITK is installed without elastix: pip install itk-elastix==0.25.4")


def register(task: Task) -> Outcome:
    """The requested stages, one after the other; the affine one is skipped where a start is given."""
    import itk

    itk.set_nthreads(task.threads)
    stages = task.settings.get("stages", ["affine", "bspline"])
    fixed, moving = (itk.imread(str(path), itk.F) for path in (task.fixed, task.moving))
    seconds: dict[str, float] = {}
    matrix = task.begin
    if "affine" in stages and task.start is None:
        began = time.perf_counter()
        matrix = _affine(itk, fixed, moving, task)
        seconds["affine"] = time.perf_counter() - began
    settings = {"samples": SAMPLES, "metric": _metric(task), **_bending(task)}
    if "bspline" not in stages:
        return Outcome((matrix,), seconds, settings)
    began = time.perf_counter()
    file = _bspline(itk, fixed, moving, matrix, task)
    seconds["bspline"] = time.perf_counter() - began
    return Outcome((file,), seconds, settings | {"grid_mm": GRID_MM, "iterations": BSPLINE_ITERATIONS})


def _affine(itk: Any, fixed: Any, moving: Any, task: Task) -> Matrix:
    """The initial alignment refined by an affine map, as one world matrix."""
    parameters = _common(task, AFFINE_SMOOTHING, AFFINE_ITERATIONS) | {
        "Transform": ["AffineTransform"],
        "AutomaticScalesEstimation": ["true"],
    }
    _, found = _run(itk, fixed, moving, parameters, task.initial, task)
    return matrix_of_parameters(dict(found.GetParameterMap(0))) @ task.initial


def _bspline(itk: Any, fixed: Any, moving: Any, start: Matrix, task: Task) -> Any:
    """File of the displacements of the whole map, the start included, on the fixed grid."""
    parameters = _common(task, BSPLINE_SMOOTHING, BSPLINE_ITERATIONS) | {
        "Transform": ["BSplineTransform"],
        "FinalGridSpacingInPhysicalUnits": [str(GRID_MM)],
        "GridSpacingSchedule": [str(factor) for factor in GRID_SCHEDULE],
        "BSplineTransformSplineOrder": ["3"],
    }
    if bending := _bending(task):
        parameters |= {
            "Registration": ["MultiMetricMultiResolutionRegistration"],
            "Metric": [_metric(task), "TransformBendingEnergyPenalty"],
            "UseRelativeWeights": ["true"],
            "Metric0RelativeWeight": ["1"],
            "Metric1RelativeWeight": [str(bending["bending_weight"])],
        }
    _, found = _run(itk, fixed, moving, parameters, start, task)
    transformix = itk.TransformixFilter.New(moving)
    transformix.SetTransformParameterObject(found)
    transformix.ComputeDeformationFieldOn()
    transformix.SetOutputDirectory(str(task.folder))
    transformix.Update()
    file = task.folder / "deformationField.mha"
    itk.imwrite(transformix.GetOutputDeformationField(), str(file))
    return file


def _run(itk: Any, fixed: Any, moving: Any, parameters: dict[str, list[str]], start: Matrix, task: Task) -> Any:
    parameter_object = itk.ParameterObject.New()
    parameter_object.AddParameterMap(parameters)
    initial = task.folder / "initial.txt"
    initial.write_text(start_as_parameters(start, sitk.ReadImage(str(task.fixed))))
    mask = written_mask(task)
    return itk.elastix_registration_method(
        fixed,
        moving,
        parameter_object=parameter_object,
        initial_transform_parameter_file_name=str(initial),
        output_directory=str(task.folder),
        number_of_threads=task.threads,
        log_to_console=True,
        **({"fixed_mask": itk.imread(str(mask), itk.UC)} if mask else {}),
    )


def _bending(task: Task) -> dict[str, float]:
    """The setting of that name, if the task has it."""
    weight = task.settings.get("bending_weight")
    return {} if weight is None else {"bending_weight": float(weight)}


def _metric(task: Task) -> str:
    return "AdvancedNormalizedCorrelation" if task.same_contrast else "AdvancedMattesMutualInformation"


def _common(task: Task, smoothing: tuple[int, ...], iterations: int) -> dict[str, list[str]]:
    # The same factor along every axis, level by level.
    schedule = [str(factor) for factor in smoothing for _ in range(3)]
    return {
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "UseDirectionCosines": ["true"],
        "Registration": ["MultiResolutionRegistration"],
        "Interpolator": ["LinearInterpolator"],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "FixedImagePyramid": ["FixedSmoothingImagePyramid"],
        "MovingImagePyramid": ["MovingSmoothingImagePyramid"],
        "NumberOfResolutions": [str(len(smoothing))],
        "ImagePyramidSchedule": schedule,
        "Optimizer": ["AdaptiveStochasticGradientDescent"],
        "MaximumNumberOfIterations": [str(iterations)],
        "Metric": [_metric(task)],
        "NumberOfHistogramBins": ["32"],
        "ImageSampler": ["RandomCoordinate"],
        "NumberOfSpatialSamples": [str(SAMPLES)],
        "NewSamplesEveryIteration": ["true"],
        "CheckNumberOfSamples": ["true"],
        "RequiredRatioOfValidSamples": ["0.05"],
        "ErodeMask": ["false"],
        "HowToCombineTransforms": ["Compose"],
        "AutomaticTransformInitialization": ["false"],
        "RandomSeed": [str(task.seed % 2**31)],
        "DefaultPixelValue": ["-1024" if task.same_contrast else "0"],
        "WriteResultImage": ["false"],
        "ResultImagePixelType": ["float"],
    }


def start_as_parameters(matrix: Matrix, fixed: sitk.Image) -> str:
    """A world matrix as elastix's transform parameter file; elastix maps x to A (x - c) + c + t."""
    center = np.asarray(center_of(fixed))
    translation = matrix[:3, :3] @ center + matrix[:3, 3] - center
    numbers = [*matrix[:3, :3].ravel(), *translation]

    def text(values: Any) -> str:
        return " ".join(f"{value:.12g}" for value in values)

    return "\n".join(
        [
            '(Transform "AffineTransform")',
            "(NumberOfParameters 12)",
            f"(TransformParameters {text(numbers)})",
            '(InitialTransformParameterFileName "NoInitialTransform")',
            '(HowToCombineTransforms "Compose")',
            "(FixedImageDimension 3)",
            "(MovingImageDimension 3)",
            '(FixedInternalImagePixelType "float")',
            '(MovingInternalImagePixelType "float")',
            f"(Size {text(fixed.GetSize())})",
            "(Index 0 0 0)",
            f"(Spacing {text(fixed.GetSpacing())})",
            f"(Origin {text(fixed.GetOrigin())})",
            f"(Direction {text(np.reshape(fixed.GetDirection(), (3, 3)).T.ravel())})",
            '(UseDirectionCosines "true")',
            f"(CenterOfRotationPoint {text(center)})",
            "",
        ]
    )


def matrix_of_parameters(parameters: dict[str, Any]) -> Matrix:
    """The world matrix of elastix's affine transform parameters."""
    values = [float(value) for value in parameters["TransformParameters"]]
    center = [float(value) for value in parameters["CenterOfRotationPoint"]]
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(values[:9])
    transform.SetTranslation(values[9:])
    transform.SetCenter(center)
    return matrix_of(transform)
