"""The worker's process on Slicer's event loop: a QProcess, with the interface that the library's session wants."""

import os
import signal
import subprocess
import sys

from .Worker import baseEnvironment, workerPython

START_MILLISECONDS = 30000
KILL_MILLISECONDS = 3000


def slicerTransport():
    """A worker in PythonSlicer on Qt's event loop."""
    from SAMRegistrationLib.worker.command import worker_command, worker_environment

    return QProcessTransport(worker_command(workerPython()), worker_environment(baseEnvironment()))


class QProcessTransport:
    """Starts a command as QProcess; it can be started again after it has ended.

    Args:
        command: program and arguments.
        environment: all its variables.
    """

    def __init__(self, command, environment) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._process = None
        self._finished = True

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._finished

    @property
    def processId(self) -> int:
        """Of the process that runs, which may be a launcher with the worker below it."""
        return int(self._process.processId()) if self.is_running else 0

    def start(self, on_output, on_log, on_exit) -> None:
        """Start the command; the callbacks come from the event loop or from `pump`.

        Raises:
            OSError: if it cannot be started.
        """
        import qt

        process = qt.QProcess()
        variables = qt.QProcessEnvironment()
        for name, value in self._environment.items():
            variables.insert(name, value)
        process.setProcessEnvironment(variables)
        self._callbacks = (on_output, on_log, on_exit)
        process.readyReadStandardOutput.connect(self._readOutput)
        process.readyReadStandardError.connect(self._readLog)
        process.finished.connect(self._onFinished)
        self._process, self._finished = process, False
        process.start(self._command[0], self._command[1:])
        if not process.waitForStarted(START_MILLISECONDS):
            self._finished = True
            raise OSError(f"{self._command[0]} cannot be started: {process.errorString()}")

    def write(self, data: bytes) -> None:
        """Hand bytes to the standard input.

        Raises:
            OSError: if the process is gone.
        """
        if not self.is_running or self._process.write(data) < 0:
            raise OSError("the process is gone")

    def close_input(self) -> None:
        """End the standard input."""
        if self._process is not None:
            self._process.closeWriteChannel()

    def kill(self) -> None:
        """End the process and all that it started: PythonSlicer is a launcher, the worker is its child."""
        if not self.is_running:
            return
        killTree(self.processId)
        self._process.kill()
        self._process.waitForFinished(KILL_MILLISECONDS)
        self._finished = True

    def pump(self, seconds: float = 0.0) -> None:
        """Let the process speak without the event loop, for calls from a script; else the event loop does it."""
        if seconds and self.is_running:
            self._process.waitForReadyRead(int(seconds * 1000))

    def _readOutput(self, *_) -> None:
        data = _bytesOf(self._process.readAllStandardOutput())
        if data:
            self._callbacks[0](data)

    def _readLog(self, *_) -> None:
        for line in _bytesOf(self._process.readAllStandardError()).decode("utf-8", "backslashreplace").splitlines():
            self._callbacks[1](line)

    def _onFinished(self, exitCode: int, exitStatus=None) -> None:
        if self._finished:
            return
        self._finished = True
        self._readOutput()
        self._readLog()
        # Qt tells a crash by the status; the code is then that of the signal.
        crashed = exitStatus is not None and _numberOf(exitStatus) == 1
        self._callbacks[2](-abs(exitCode) if crashed and exitCode else exitCode)


def killTree(processId: int) -> None:
    """Kill a process and its descendants, leaves first."""
    if processId <= 0:
        return
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(processId)], capture_output=True, check=False)
        return
    for each in [*reversed(_descendants(processId)), processId]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _descendants(processId: int) -> "list[int]":
    """Ids of all processes below one, parents before children."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    children = {}
    for line in listing.splitlines():
        pid, parent = (int(number) for number in line.split())
        children.setdefault(parent, []).append(pid)
    found = list(children.get(processId, []))
    for each in found:
        found.extend(children.get(each, []))
    return found


def _bytesOf(byteArray) -> bytes:
    """The bytes of a QByteArray; its `data()` is text in some versions of PythonQt."""
    data = byteArray.data() if hasattr(byteArray, "data") else byteArray
    return data.encode("utf-8") if isinstance(data, str) else bytes(data)


def _numberOf(enumeration) -> int:
    return int(getattr(enumeration, "value", enumeration))
