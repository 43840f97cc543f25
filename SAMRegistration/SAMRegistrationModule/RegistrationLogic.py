"""Registration, comparison and evaluation of MRML nodes by the worker: no Qt, from scripts as from the panel."""

from collections.abc import Callable

from .Geometry import InputProblem, matrixFromArray
from .JobRunner import Job, requireInScene
from .Lazy import numpy as np
from .OutputNodes import INVERSE, REPORT, TRANSFORM, VOLUMES, LoadedResult, commitResult, restore
from .PointQueries import PointQueries
from .Refinement import RefinementInputs, refinementParameters
from .Requests import (
    EvaluationInputs,
    RegistrationInputs,
    comparisonParameters,
    evaluationParameters,
    registrationParameters,
)
from .Review import Comparison
from .Tables import addEvaluationPlot, evaluationTable, reportTable
from .TransformNodes import fieldOf, gridGeometry, inverseOf, readFieldFile
from .VolumeFiles import imageOf, readVolumeFile
from .Worker import processTransport

LARGEST_GAP_MM = 0.2
"""A larger one is told to the user."""


class RegistrationLogic(PointQueries):
    """What the module does.

    Args:
        makeTransport: gives the worker's process; a plain child process by default, a QProcess in the panel.
        worker: the worker to talk to instead of an own one.
        folderRoot: where temporary folders are made.
    """

    def __init__(self, makeTransport: Callable = processTransport, worker=None, folderRoot=None) -> None:
        PointQueries.__init__(self, makeTransport, worker, folderRoot)
        self._undo = []

    @property
    def canUndo(self) -> bool:
        return bool(self._undo)

    def register(self, fixedVolume, movingVolume, preset: str = "default", **options):
        """Find the transform that brings the moving volume onto the fixed one.

        Without callbacks the call waits and returns the vtkMRMLTransformNode; with `onDone`, `onError` or
        `onProgress` it returns a `Job` at once, for `cancel`, and the callbacks are called from `worker.poll`.

        Args:
            fixedVolume, movingVolume: scalar volumes, under any parent transforms.
            preset: name or file of a preset.
            options: fields of `RegistrationInputs` (masks, initialTransform, landmarks, device, model, strict,
                seed, allowCPU); `outputs`, a dictionary from "transform", "inverse", "warped", "jacobian",
                "displacement", "report" to an existing node, or to True for a new one; `onProgress` (stage,
                fraction, secondsLeft), `onDone` (output nodes by name, report), `onError` (message, hint, kind).

        Raises:
            InputProblem: if the inputs cannot be used.
            RegistrationFailed: without callbacks, if it does not succeed.
        """
        job = self.newJob(options)
        wanted = {TRANSFORM: True, **{name: node for name, node in options.pop("outputs", {}).items() if node}}
        nodes = {name: node for name, node in wanted.items() if node is not True}

        def prepare() -> tuple:
            inputs = RegistrationInputs(fixedVolume, movingVolume, preset, **options)
            return registrationParameters(inputs, nodes.get(TRANSFORM), self.folders, job.folder, list(wanted))

        parameters, notes = self.prepared(job, prepare)

        def take(result: dict) -> tuple:
            return self._takeResult(job, result, wanted, notes, (fixedVolume, movingVolume))

        return self.run(job, "register", parameters, take)

    def refine(self, transformNode, fixedVolume, movingVolume, **options):
        """Make a result better in boxes and at landmarks; the transform node holds the new one then.

        Args:
            transformNode: the result so far, applied to the moving volume.
            fixedVolume, movingVolume: what it belongs to.
            options: fields of `RefinementInputs` (regions, landmarks, similarity, ...); `outputs` and callbacks as
                of `register`, `onDone` being told the output nodes and the worker's findings.

        Returns:
            The transform node, or with callbacks the `Job`.

        Raises:
            InputProblem, RegistrationFailed: as of `register`.
        """
        job = self.newJob(options)
        wanted = {name: node for name, node in options.pop("outputs", {}).items() if node}
        wanted[TRANSFORM] = transformNode

        def prepare() -> dict:
            inputs = RefinementInputs(transformNode, fixedVolume, movingVolume, **options)
            return refinementParameters(inputs, self.folders, job.folder, list(wanted))

        def take(result: dict) -> tuple:
            node, (complete, _) = self._takeResult(job, result, wanted, [], (fixedVolume, movingVolume))
            return node, (complete, result)

        return self.run(job, "refine", self.prepared(job, prepare), take)

    def compare(self, transformNode, fixedVolume, movingVolume, views=(), **callbacks):
        """Compute views on a result, and the place to look at first; nothing in the scene changes.

        Args:
            transformNode: applied to the moving volume it brings it onto the fixed one.
            fixedVolume, movingVolume: what it belongs to.
            views: of "checkerboard", "difference" and "jacobian".
            callbacks: `onDone` (a `Comparison`), `onError`, `onProgress`. Without them the call waits.

        Returns:
            The `Comparison`, or with callbacks the `Job`.

        Raises:
            InputProblem, RegistrationFailed: as of `register`.
        """
        job = self.newJob(callbacks)
        parameters = self.prepared(
            job,
            lambda: comparisonParameters(transformNode, fixedVolume, movingVolume, views, self.folders, job.folder),
        )

        def take(result: dict) -> tuple:
            requireInScene(transformNode, fixedVolume, movingVolume)
            worst = result["worst"]
            images = {view: readVolumeFile(result[view]) for view in views}
            found = Comparison(images, result["limit"], worst["position"], worst["folds"], worst["value"])
            return found, (found,)

        return self.run(job, "compare", parameters, take)

    def evaluate(self, transformNode, fixedVolume, movingVolume, **options):
        """Measure a transform on segmentations or landmarks.

        Args:
            transformNode: applied to the moving volume it brings it onto the fixed one.
            fixedVolume, movingVolume: what it belongs to.
            options: `fixedLabels`, `movingLabels` (segmentations or label maps), `fixedLandmarks`,
                `movingLandmarks`; `tableNode`, `chartNode` to be updated; `onDone` (table node, findings),
                `onError`. Without callbacks the call waits.

        Returns:
            The table node, or with callbacks the `Job`.

        Raises:
            InputProblem: if the inputs cannot be used.
            RegistrationFailed: without callbacks, if it does not succeed.
        """
        job = self.newJob(options)
        table, chart = options.pop("tableNode", None), options.pop("chartNode", None)

        def prepare() -> tuple:
            inputs = EvaluationInputs(transformNode, fixedVolume, movingVolume, **options)
            return evaluationParameters(inputs, self.folders, job.folder)

        parameters, names = self.prepared(job, prepare)

        def take(result: dict) -> tuple:
            found = result["report"]
            requireInScene(fixedVolume, table, chart)
            scene = fixedVolume.GetScene()
            node = table or scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName("Evaluation"))
            node.SetAndObserveTable(evaluationTable(found, names))
            job.report = found
            return node, (node, found, addEvaluationPlot(node, chart))

        return self.run(job, "evaluate", parameters, take)

    def undo(self) -> bool:
        """Give the output nodes back what they held before the last registration; once more takes it back."""
        self._undo = restore(self._undo)
        return bool(self._undo)

    def takeUndo(self) -> list:
        """What `undo` would restore, for a caller who undoes himself by `restore`."""
        taken, self._undo = self._undo, []
        return taken

    def forgetScene(self) -> None:
        """The scene was closed: jobs are cancelled, what could be undone is gone."""
        self.cancelAll()
        self._undo = []

    def _takeResult(self, job: Job, result: dict, wanted: dict, notes: list, volumes: tuple) -> tuple:
        """Put a result into the scene; gives the transform node and what `onDone` is told."""
        loaded = _loaded(result, wanted, notes)
        nodes = {name: node for name, node in wanted.items() if node is not True}
        requireInScene(*volumes, *nodes.values())
        complete, self._undo = commitResult(loaded, nodes, *volumes)
        if result.get("transform"):
            self.folders.keepTransform(complete[TRANSFORM].GetTransformFromParent(), result["transform"])
        job.report = loaded.report
        return complete[TRANSFORM], (complete, loaded.report)


def _loaded(result: dict, wanted: dict, notes: list) -> LoadedResult:
    """Read everything of a result; nothing of the scene is touched."""
    transforms = {TRANSFORM: readFieldFile(result["field"])}
    if wanted.get(INVERSE):
        transforms[INVERSE] = inverseOf(transforms[TRANSFORM])
    volumes = {}
    for name in VOLUMES:
        if wanted.get(name):
            if not result.get(name):
                raise InputProblem(f'The worker gave no output "{name}"; see the log.')
            volumes[name] = (_magnitude if name == "displacement" else readVolumeFile)(result[name])
    report = {**(result.get("report") or {}), "notes": notes}
    report["warnings"] = [*report.get("warnings", []), *_fieldWarnings(result.get("field_gap_mm") or 0.0)]
    tables = {REPORT: reportTable(report)} if wanted.get(REPORT) else {}
    return LoadedResult(transforms, volumes, tables, report, result.get("field_refinement") or 1)


def _fieldWarnings(gap: float) -> list:
    """Say where the transform node cannot follow the registration as closely as it should."""
    if gap <= LARGEST_GAP_MM:
        return []
    return [
        f"The field bends so sharply that the transform node strays from the registered volume by up to {gap:.1f} mm, "
        "since Slicer interpolates fields cubically; a preset with a smoother field is followed exactly."
    ]


def _magnitude(path: str):
    """How far the voxels of a displacement file move, in mm, as image and IJK-to-RAS matrix."""
    grid = readFieldFile(path)
    lengths = np.linalg.norm(fieldOf(grid), axis=-1).astype(np.float32)
    return imageOf(lengths), matrixFromArray(gridGeometry(grid).ijkToRAS)
