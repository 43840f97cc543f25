"""The one warm worker of the module: started at the first request, spoken to from the main thread only."""

import os
import queue
import shutil
import sys
import time
from collections.abc import Callable, Mapping

POLL_SECONDS = 0.02


def workerPython() -> str:
    """The Python that the worker runs in: PythonSlicer within Slicer, else the present one."""
    return shutil.which("PythonSlicer") or sys.executable


def baseEnvironment() -> Mapping[str, str]:
    """The environment of a worker before the library makes it fit: Slicer's own at its start, within Slicer.

    Slicer's Python packages must be found, whatever an activated environment of the user says.
    """
    import slicer

    application = getattr(slicer, "app", None)
    if application is None or not hasattr(application, "startupEnvironment"):
        return os.environ
    return os.environ if shutil.which("PythonSlicer") is None else slicer.util.startupEnvironment()


def processTransport():
    """A worker as a plain child process, for scripts: no event loop is needed."""
    from SAMRegistrationLib.worker.command import worker_command, worker_environment
    from SAMRegistrationLib.worker.process_transport import ProcessTransport

    return QueuedTransport(ProcessTransport(worker_command(workerPython()), worker_environment(baseEnvironment())))


class QueuedTransport:
    """Brings what a transport says from its threads to the one that calls `pump`."""

    def __init__(self, transport) -> None:
        self._transport = transport
        self._said = queue.SimpleQueue()

    def __getattr__(self, name: str):
        return getattr(self._transport, name)

    def start(self, on_output, on_log, on_exit) -> None:
        def later(function):
            return lambda value: self._said.put((function, value))

        self._transport.start(later(on_output), later(on_log), later(on_exit))

    def pump(self, seconds: float = 0.0) -> None:
        """Tell what was said; wait up to `seconds` for the first word."""
        try:
            function, value = self._said.get(timeout=seconds) if seconds else self._said.get_nowait()
            while True:
                function(value)
                function, value = self._said.get_nowait()
        except queue.Empty:
            return


class WorkerHost:
    """A session with a worker and the clock that it needs.

    Args:
        makeTransport: gives the process to talk to, with a method `pump(seconds)` that hands on what it said.
        onLog: told every line of the worker's log.
        makeSession: gives the session on a transport; the library's by default.
    """

    def __init__(self, makeTransport: Callable = processTransport, onLog: Callable = None, makeSession=None) -> None:
        self._makeTransport = makeTransport
        self._makeSession = makeSession or _librarySession
        self._transport = None
        self._session = None
        self.onLog = onLog

    @property
    def isBusy(self) -> bool:
        return self._session is not None and self._session.busy

    @property
    def isRunning(self) -> bool:
        return self._transport is not None and self._transport.is_running

    @property
    def log(self) -> "list[str]":
        """The last lines of the worker's log."""
        return self._session.log if self._session is not None else []

    def send(self, request: str, parameters: dict, **callbacks) -> int:
        """Send a request; see `WorkerSession.send`."""
        if self._session is None:
            self._transport = self._makeTransport()
            self._session = self._makeSession(self._transport, self._hear)
        return self._session.send(request, parameters, **callbacks)

    def cancel(self, number: int) -> None:
        """Stop a request; its error callback tells when it has stopped."""
        if self._session is not None:
            self._session.cancel(number)

    def poll(self, seconds: float = 0.0) -> None:
        """Hand on what the worker said and look at the clock; to be called every 100 ms or so."""
        if self._session is not None:
            self._transport.pump(seconds)
            self._session.tick()

    def waitUntil(self, isDone: Callable[[], bool]) -> None:
        """Poll until something is true, in scripts that have nothing else to do."""
        while not isDone():
            self.poll(POLL_SECONDS)

    def close(self, seconds: float = 5.0) -> None:
        """End the worker, and wait that long for it before it is killed."""
        if self._session is None:
            return
        self._session.close()
        until = time.monotonic() + seconds
        while self._transport.is_running and time.monotonic() < until:
            self.poll(POLL_SECONDS)
        self._transport.kill()
        self._session = self._transport = None

    def _hear(self, line: str) -> None:
        if self.onLog is not None:
            self.onLog(line)


def _librarySession(transport, onLog: Callable[[str], None]):
    from SAMRegistrationLib.worker.session import WorkerSession

    return WorkerSession(transport, on_log=onLog)
