"""Registration and evaluation of MRML nodes by the worker: no Qt, from scripts as from the panel."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .Geometry import InputProblem, matrixFromArray
from .Jobs import JobFolders, folderProblem
from .Lazy import numpy as np
from .OutputNodes import INVERSE, REPORT, TRANSFORM, VOLUMES, LoadedResult, commitResult, restore
from .Requests import EvaluationInputs, RegistrationInputs, evaluationParameters, registrationParameters
from .Tables import addEvaluationPlot, evaluationTable, reportTable
from .TransformNodes import fieldOf, gridGeometry, readFieldFile
from .VolumeFiles import imageOf, readVolumeFile
from .Worker import WorkerHost, processTransport

CANCELLED, INPUT, INTERNAL = "cancelled", "input", "internal"
_REMOVED = "The volumes were removed from the scene meanwhile; the result was thrown away."


class RegistrationFailed(Exception):
    """A registration that did not succeed; `hint` says what to do, `kind` what went wrong."""

    def __init__(self, message: str, hint: "str | None", kind: str) -> None:
        super().__init__(message if not hint else f"{message}\n{hint}")
        self.message, self.hint, self.kind = message, hint, kind


@dataclass
class Job:
    """A request on its way. `result` is what it gave, `error` is (message, hint, kind)."""

    folder: Path
    onProgress: "Callable | None" = None
    onDone: "Callable | None" = None
    onError: "Callable | None" = None
    number: "int | None" = None
    isDone: bool = False
    result: object = None
    error: "tuple | None" = None
    report: dict = field(default_factory=dict)


class RegistrationLogic:
    """What the module does.

    Args:
        makeTransport: gives the worker's process; a plain child process by default, a QProcess in the panel.
        worker: the worker to talk to instead of an own one.
        folderRoot: where temporary folders are made.
    """

    def __init__(self, makeTransport: Callable = processTransport, worker=None, folderRoot=None) -> None:
        self.worker = worker or WorkerHost(makeTransport)
        self.folders = JobFolders(folderRoot)
        self._undo = []
        self._jobs = []

    @property
    def isBusy(self) -> bool:
        return bool(self._jobs)

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
                seed, allowCPU, inverse); `outputs`, a dictionary from "transform", "inverse", "warped",
                "jacobian", "displacement", "report" to an existing node, or to True for a new one; `onProgress`
                (stage, fraction, secondsLeft), `onDone` (transform node, report), `onError` (message, hint, kind).

        Raises:
            InputProblem: if the inputs cannot be used.
            RegistrationFailed: without callbacks, if it does not succeed.
        """
        callbacks = {name: options.pop(name, None) for name in ("onProgress", "onDone", "onError")}
        wanted = {TRANSFORM: True, **{name: node for name, node in options.pop("outputs", {}).items() if node}}
        if wanted.get(INVERSE):
            options["inverse"] = True
        inputs = RegistrationInputs(fixedVolume, movingVolume, preset, **options)
        nodes = {name: node for name, node in wanted.items() if node is not True}
        job = Job(self.folders.newJob(), **callbacks)
        parameters = self._prepared(
            job,
            lambda: registrationParameters(inputs, nodes.get(TRANSFORM), self.folders, job.folder, list(wanted)),
        )

        def take(result: dict) -> None:
            loaded = _loaded(result, wanted)
            if any(node.GetScene() is None for node in (fixedVolume, movingVolume, *nodes.values())):
                raise InputProblem(_REMOVED)
            complete, before = commitResult(loaded, nodes, fixedVolume, movingVolume)
            self._undo = before
            job.report = loaded.report
            self._finish(job, result=complete[TRANSFORM], arguments=(complete, loaded.report))

        return self._run(job, "register", parameters, take, waits=not any(callbacks.values()))

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
        callbacks = {name: options.pop(name, None) for name in ("onProgress", "onDone", "onError")}
        table, chart = options.pop("tableNode", None), options.pop("chartNode", None)
        inputs = EvaluationInputs(transformNode, fixedVolume, movingVolume, **options)
        job = Job(self.folders.newJob(), **callbacks)
        parameters, names = self._prepared(job, lambda: evaluationParameters(inputs, self.folders, job.folder))

        def take(result: dict) -> None:
            found = result["report"]
            if fixedVolume.GetScene() is None:
                raise InputProblem(_REMOVED)
            scene = fixedVolume.GetScene()
            node = table or scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName("Evaluation"))
            node.SetAndObserveTable(evaluationTable(found, names))
            job.report = found
            self._finish(job, result=node, arguments=(node, found, addEvaluationPlot(node, chart)))

        return self._run(job, "evaluate", parameters, take, waits=not any(callbacks.values()))

    def ask(self, request: str, parameters: dict, onResult: Callable, onError: Callable) -> int:
        """A request that touches no nodes, such as "check_device"."""
        return self.worker.send(request, parameters, on_result=onResult, on_error=onError)

    def cancel(self, job: Job) -> None:
        """Stop a job; the scene stays as it is. Its `onError` is told (kind "cancelled") when it has stopped."""
        if not job.isDone and job.number is not None:
            self.worker.cancel(job.number)

    def undo(self) -> bool:
        """Give the output nodes back what they held before the last registration; once more takes it back."""
        self._undo = restore(self._undo)
        return bool(self._undo)

    def forgetScene(self) -> None:
        """The scene was closed: jobs are cancelled, what could be undone is gone."""
        for job in list(self._jobs):
            self.cancel(job)
        self._undo = []

    def close(self) -> None:
        """End the worker and remove all temporary files."""
        self.worker.close()
        self.folders.clear()

    def _prepared(self, job: Job, prepare: Callable):
        try:
            return prepare()
        except OSError as error:
            self.folders.remove(job.folder)
            raise folderProblem(job.folder, error) from error
        except BaseException:
            self.folders.remove(job.folder)
            raise

    def _run(self, job: Job, request: str, parameters: dict, take: Callable, waits: bool):
        def onResult(result: dict) -> None:
            try:
                take(result)
            except InputProblem as problem:
                fail(str(problem), None, INPUT)
            except Exception as error:
                fail(f"The result cannot be used: {error}", "Try again; if it stays, copy the log.", INTERNAL)

        def fail(message: str, hint: "str | None", kind: str) -> None:
            self._finish(job, error=(message, hint, kind), arguments=(message, hint, kind))

        self._jobs.append(job)
        job.number = self.worker.send(
            request, parameters, on_progress=job.onProgress, on_result=onResult, on_error=fail
        )
        if not waits:
            return job
        try:
            self.worker.waitUntil(lambda: job.isDone)
        except KeyboardInterrupt:
            self.cancel(job)
            self.worker.waitUntil(lambda: job.isDone)
        if job.error is not None:
            raise RegistrationFailed(*job.error)
        return job.result

    def _finish(self, job: Job, result=None, error=None, arguments=()) -> None:
        job.isDone, job.result, job.error = True, result, error
        if job in self._jobs:
            self._jobs.remove(job)
        self.folders.remove(job.folder)
        callback = job.onDone if error is None else job.onError
        if callback is not None:
            callback(*arguments)


def _loaded(result: dict, wanted: dict) -> LoadedResult:
    """Read everything of a result; nothing of the scene is touched."""
    transforms = {TRANSFORM: readFieldFile(result["field"])}
    if wanted.get(INVERSE):
        if not result.get("inverse"):
            raise InputProblem("The worker gave no inverse transform; see the log.")
        transforms[INVERSE] = readFieldFile(result["inverse"])
    volumes = {}
    for name in VOLUMES:
        if wanted.get(name):
            if not result.get(name):
                raise InputProblem(f'The worker gave no output "{name}"; see the log.')
            volumes[name] = (_magnitude if name == "displacement" else readVolumeFile)(result[name])
    report = result.get("report") or {}
    tables = {REPORT: reportTable(report)} if wanted.get(REPORT) else {}
    return LoadedResult(transforms, volumes, tables, report)


def _magnitude(path: str):
    """How far the voxels of a displacement file move, in mm, as image and IJK-to-RAS matrix."""
    grid = readFieldFile(path)
    lengths = np.linalg.norm(fieldOf(grid), axis=-1).astype(np.float32)
    return imageOf(lengths), matrixFromArray(gridGeometry(grid).ijkToRAS)


def applyToMoving(movingNode, transformNode) -> None:
    """Show a node of the moving side through a result: the topmost of its own parents goes under the result."""
    topmost = movingNode
    while topmost.GetParentTransformNode() is not None:
        if topmost.GetParentTransformNode() is transformNode:
            return
        topmost = topmost.GetParentTransformNode()
    topmost.SetAndObserveTransformNodeID(transformNode.GetID())


def removeFromMoving(movingNode, transformNode) -> None:
    """Undo `applyToMoving`."""
    node = movingNode
    while node is not None:
        if node.GetParentTransformNode() is transformNode:
            node.SetAndObserveTransformNodeID(None)
            return
        node = node.GetParentTransformNode()
