"""What the user chose, checked and turned into the parameters of a request, with its files."""

from dataclasses import dataclass
from pathlib import Path

from .Geometry import InputProblem, parentTransforms
from .LandmarkFit import fitLandmarks
from .Markups import pointPairs, writePointsFile
from .Segmentations import commonSegmentNames, labelsOnGrid
from .TransformNodes import writeInitialFile, writeTransformFile
from .VolumeFiles import writeMatrixFile, writeVolumeFile

EXTRA_OUTPUTS = ("warped", "jacobian", "displacement")


@dataclass
class RegistrationInputs:
    """Inputs and settings of one registration.

    Args:
        fixedVolume, movingVolume: scalar volumes.
        preset: name or file of a preset.
        fixedMask, movingMask: segmentation, label map or markups ROI: where to register.
        initialTransform: transform node to start from, as it would be applied to the moving volume.
        fixedLandmarks, movingLandmarks: three or more pairs of points to start from instead; see `fitLandmarks`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        model: features instead of the preset's.
        strict: refuse other features where weights are missing.
        seed: of everything random.
        allowCPU: go on without the GPU if it fails or is too small.
    """

    fixedVolume: object
    movingVolume: object
    preset: str = "default"
    fixedMask: object = None
    movingMask: object = None
    initialTransform: object = None
    fixedLandmarks: object = None
    movingLandmarks: object = None
    device: str = "auto"
    model: "str | None" = None
    strict: bool = False
    seed: int = 0
    allowCPU: bool = True

    def missing(self) -> "str | None":
        """What keeps the registration from starting, as a sentence; None if nothing does."""
        if self.fixedVolume is None:
            return "Choose the fixed volume, which stays where it is."
        if self.movingVolume is None:
            return "Choose the moving volume, which is brought onto the fixed one."
        if self.fixedVolume is self.movingVolume or self.fixedVolume.GetID() == self.movingVolume.GetID():
            return "Choose two different volumes."
        for volume in (self.fixedVolume, self.movingVolume):
            if volume.GetImageData() is None:
                return f'The volume "{volume.GetName()}" is empty; load it or choose another one.'
        if (self.fixedLandmarks is None) != (self.movingLandmarks is None):
            return "Landmarks come in pairs: choose the list of the other volume too, or none."
        if self.fixedLandmarks is not None and self.initialTransform is not None:
            return "Choose either an initial transform or landmarks to start from."
        return None


@dataclass
class EvaluationInputs:
    """What to measure a transform on."""

    transformNode: object
    fixedVolume: object
    movingVolume: object
    fixedLabels: object = None
    movingLabels: object = None
    fixedLandmarks: object = None
    movingLandmarks: object = None

    def missing(self) -> "str | None":
        """What keeps the evaluation from starting, as a sentence."""
        if self.transformNode is None:
            return "Choose the transform to measure, or register first."
        if self.fixedVolume is None or self.movingVolume is None:
            return "Choose the fixed and the moving volume in the section Inputs."
        if (self.fixedLabels is None) != (self.movingLabels is None):
            return "Choose segmentations of both volumes."
        if (self.fixedLandmarks is None) != (self.movingLandmarks is None):
            return "Choose landmarks of both volumes."
        if self.fixedLabels is None and self.fixedLandmarks is None:
            return "Choose two segmentations or two lists of landmarks."
        return None


def registrationParameters(inputs: RegistrationInputs, outputNode, folders, job: Path, wanted: list) -> tuple:
    """Write the files of a registration; gives the parameters of its request, and sentences on what was decided.

    Args:
        inputs: what the user chose.
        outputNode: the transform node that will take the result; as a parent of the moving volume it is ignored.
        folders: keeps the files of volumes.
        job: folder of this request.
        wanted: names of the outputs.

    Raises:
        InputProblem: if the inputs cannot be used.
        OSError: if the folder cannot be written.
    """
    if problem := inputs.missing():
        raise InputProblem(problem)
    if outputNode is not None and outputNode in parentTransforms(inputs.fixedVolume):
        raise InputProblem("The fixed volume lies under the output transform; choose another output.")
    fixed, fixedGeometry = folders.volumeFile(inputs.fixedVolume)
    moving, movingGeometry = folders.volumeFile(inputs.movingVolume, outputNode)
    notes = []
    parameters = {
        "fixed": str(fixed),
        "moving": str(moving),
        "preset": inputs.preset,
        "device": inputs.device,
        "strict": inputs.strict,
        "seed": inputs.seed,
        "allow_cpu": inputs.allowCPU,
        "outputs": [name for name in wanted if name in EXTRA_OUTPUTS],
        "output": str(job / "result"),
    }
    if inputs.model:
        parameters["model"] = inputs.model
    for side, mask, geometry, ignoring in (
        ("fixed", inputs.fixedMask, fixedGeometry, None),
        ("moving", inputs.movingMask, movingGeometry, outputNode),
    ):
        if mask is not None:
            labels, _ = labelsOnGrid(mask, geometry, ignoring)
            parameters[f"{side}_mask"] = str(writeVolumeFile(job / f"{side}Mask.nrrd", labels, geometry))
    if inputs.initialTransform is not None:
        parameters["initial"] = str(writeInitialFile(job, inputs.initialTransform, fixedGeometry))
    elif inputs.fixedLandmarks is not None:
        fixedPoints, movingPoints, labels = pointPairs(inputs.fixedLandmarks, inputs.movingLandmarks, outputNode)
        fit = fitLandmarks(fixedPoints, movingPoints)
        notes.append(fit.sentence(labels))
        parameters["initial"] = str(writeMatrixFile(job / "initial.tfm", fit.matrix))
    return parameters, notes


def comparisonParameters(transformNode, fixedVolume, movingVolume, views, folders, job: Path) -> dict:
    """Write the files of a comparison and give the parameters of its request.

    The moving volume is taken as it lies without the transform.

    Raises:
        InputProblem: if the inputs cannot be used.
        OSError: if the folder cannot be written.
    """
    fixed, fixedGeometry = folders.volumeFile(fixedVolume)
    moving, _ = folders.volumeFile(movingVolume, transformNode)
    return {
        "fixed": str(fixed),
        "moving": str(moving),
        "transform": str(writeTransformFile(job, transformNode, fixedGeometry)),
        "views": list(views),
        "output": str(job / "views"),
    }


def evaluationParameters(inputs: EvaluationInputs, folders, job: Path) -> tuple:
    """Write the files of an evaluation; gives the parameters of its request and the names of its labels.

    Everything of the moving side is taken as it lies without the transform that is measured.

    Raises:
        InputProblem: if the inputs cannot be used.
        OSError: if the folder cannot be written.
    """
    if problem := inputs.missing():
        raise InputProblem(problem)
    transform = inputs.transformNode
    fixed, fixedGeometry = folders.volumeFile(inputs.fixedVolume)
    moving, movingGeometry = folders.volumeFile(inputs.movingVolume, transform)
    parameters = {
        "transform": str(writeTransformFile(job, transform, fixedGeometry)),
        "fixed": str(fixed),
        "moving": str(moving),
    }
    names = {}
    if inputs.fixedLabels is not None:
        common = None
        if all(node.IsA("vtkMRMLSegmentationNode") for node in (inputs.fixedLabels, inputs.movingLabels)):
            common = commonSegmentNames(inputs.fixedLabels, inputs.movingLabels)
        for side, node, geometry, ignoring in (
            ("fixed", inputs.fixedLabels, fixedGeometry, None),
            ("moving", inputs.movingLabels, movingGeometry, transform),
        ):
            labels, meaning = labelsOnGrid(node, geometry, ignoring, common)
            names |= meaning
            parameters[f"{side}_labels"] = str(writeVolumeFile(job / f"{side}Labels.nrrd", labels, geometry))
    if inputs.fixedLandmarks is not None:
        fixedPoints, movingPoints, labels = pointPairs(inputs.fixedLandmarks, inputs.movingLandmarks, transform)
        parameters["fixed_points"] = str(writePointsFile(job / "fixed.mrk.json", fixedPoints, labels))
        parameters["moving_points"] = str(writePointsFile(job / "moving.mrk.json", movingPoints, labels))
    return parameters, names
