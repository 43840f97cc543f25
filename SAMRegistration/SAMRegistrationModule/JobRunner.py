"""Requests to the worker as jobs: files made before, results taken or thrown away as a whole, callbacks told once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .Geometry import InputProblem
from .Jobs import JobFolders, folderProblem
from .Worker import WorkerHost, processTransport

CANCELLED, INPUT, INTERNAL = "cancelled", "input", "internal"
REMOVED = "The volumes were removed from the scene meanwhile; the result was thrown away."
CALLBACKS = ("onProgress", "onDone", "onError")


class RegistrationFailed(Exception):
    """A request that did not succeed; `hint` says what to do, `kind` what went wrong."""

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

    @property
    def waits(self) -> bool:
        """Whether nobody is told, so that the caller must wait."""
        return not any((self.onProgress, self.onDone, self.onError))


class JobRunner:
    """Runs jobs on one worker.

    Args:
        makeTransport: gives the worker's process; a plain child process by default, a QProcess in the panel.
        worker: the worker to talk to instead of an own one.
        folderRoot: where temporary folders are made.
    """

    def __init__(self, makeTransport: Callable = processTransport, worker=None, folderRoot=None) -> None:
        self.worker = worker or WorkerHost(makeTransport)
        self.folders = JobFolders(folderRoot)
        self._jobs = []

    @property
    def isBusy(self) -> bool:
        return bool(self._jobs)

    def ask(self, request: str, parameters: dict, onResult: Callable, onError: Callable) -> int:
        """A request that touches no nodes, such as "check_device"."""
        return self.worker.send(request, parameters, on_result=onResult, on_error=onError)

    def cancel(self, job: Job) -> None:
        """Stop a job; the scene stays as it is. Its `onError` is told (kind "cancelled") when it has stopped."""
        if not job.isDone and job.number is not None:
            self.worker.cancel(job.number)

    def cancelAll(self) -> None:
        """Stop all jobs."""
        for job in list(self._jobs):
            self.cancel(job)

    def close(self) -> None:
        """End the worker and remove all temporary files."""
        self.worker.close()
        self.folders.clear()

    def newJob(self, options: dict) -> Job:
        """A job with its folder, and with the callbacks that `options` holds, which are taken out of it.

        Raises:
            InputProblem: if the folder cannot be made.
        """
        return Job(self.folders.newJob(), **{name: options.pop(name, None) for name in CALLBACKS})

    def prepared(self, job: Job, prepare: Callable):
        """What `prepare` gives; the job's folder goes if it fails.

        Raises:
            InputProblem: if the inputs cannot be used, or the folder is full.
        """
        try:
            return prepare()
        except OSError as error:
            self.folders.remove(job.folder)
            raise folderProblem(job.folder, error) from error
        except BaseException:
            self.folders.remove(job.folder)
            raise

    def run(self, job: Job, request: str, parameters: dict, take: Callable):
        """Send a request; without callbacks, wait for its end.

        Args:
            job: with its callbacks.
            request: its name.
            parameters: of the request.
            take: takes the worker's result, and gives the job's result and the arguments of `onDone`; whatever it
                raises becomes an error of the job.

        Returns:
            The job, or its result if the call waits.

        Raises:
            RegistrationFailed: if the call waits and the job does not succeed.
        """

        def onResult(result: dict) -> None:
            try:
                outcome, arguments = take(result)
            except InputProblem as problem:
                fail(str(problem), None, INPUT)
            except Exception as error:
                fail(f"The result cannot be used: {error}", "Try again; if it stays, copy the log.", INTERNAL)
            else:
                self._finish(job, result=outcome, arguments=arguments)

        def fail(message: str, hint: "str | None", kind: str) -> None:
            self._finish(job, error=(message, hint, kind), arguments=(message, hint, kind))

        waits = job.waits
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


def requireInScene(*nodes) -> None:
    """Refuse to go on with nodes that were removed while the worker was at work.

    Raises:
        InputProblem: if one was.
    """
    if any(node is not None and node.GetScene() is None for node in nodes):
        raise InputProblem(REMOVED)
