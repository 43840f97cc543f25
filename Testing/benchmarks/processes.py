"""Processes that do jobs: a fresh one for each, or one that lasts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .job import Job

REPOSITORY = Path(__file__).resolve().parents[2]
JOB_MODULE, WORKER_MODULE = "Testing.benchmarks.job", "Testing.benchmarks.worker"


@dataclass(frozen=True)
class End:
    """How a job ended.

    Args:
        status: "done", "failed" or "time limit".
        message: the last that was heard of a job that is not done.
    """

    status: str
    message: str = ""


def run_in_own_process(job: Job, limit_s: float) -> End:
    """Do a job in a fresh process, at most `limit_s` seconds long."""
    command = [sys.executable, "-m", JOB_MODULE, "--data", str(job.data), "--out", str(job.out)]
    command += ["--suite", job.suite, "--pair", job.pair, "--method", job.method]
    command += ["--device", job.device, "--threads", str(job.threads)]
    command += [] if job.keep_field else ["--no-fields"]
    command += ["--start", job.start] if job.start else []
    process = _started(command, job.threads, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
        return _too_long(limit_s)
    return End("done") if process.returncode == 0 else End("failed", _last_line(errors, process.returncode))


@dataclass(frozen=True)
class _Running:
    """A process with its pipes, and the file that takes what it says on stderr, so that it never blocks."""

    process: Any
    said: IO[str]

    def end(self) -> None:
        _kill(self.process)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.said):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Worker:
    """A process that does one job after another; it is started when there is one and again after it died.

    Args:
        threads: how many threads it may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running: _Running | None = None

    def do(self, job: Job, limit_s: float) -> End:
        """Do a job, at most `limit_s` seconds long, the start of the process included."""
        running = self._running = self._running or self._begun()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(running.process)

        clock = threading.Timer(limit_s, expire)
        clock.start()
        try:
            running.process.stdin.write(job.as_json() + "\n")
            running.process.stdin.flush()
            reply = running.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            clock.cancel()
        if not reply:
            status = running.process.wait()
            running.said.seek(0)
            message = _last_line(running.said.read(), status)
            self.stop()
            return _too_long(limit_s) if expired.is_set() else End("failed", message)
        end = End(**json.loads(reply))
        if "CUDA" in end.message:
            # Most errors of a GPU leave the process unable to use it again.
            self.stop()
        return end

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
        self._running = None

    def _begun(self) -> _Running:
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        command = [sys.executable, "-m", WORKER_MODULE]
        pipe = subprocess.PIPE
        return _Running(_started(command, self._threads, stdin=pipe, stdout=pipe, stderr=said), said)


def _started(command: list[str], threads: int, stderr: Any = subprocess.PIPE, **streams: Any) -> Any:
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=_environment(threads),
        stderr=stderr,
        text=True,
        start_new_session=True,
        **streams,
    )


def _kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _too_long(limit_s: float) -> End:
    return End("time limit", f"stopped after {limit_s:g} s")


def _last_line(errors: str, status: int) -> str:
    said = errors.strip().splitlines()
    return said[-1] if said else f"ended with status {status}"


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return os.environ | {name: str(threads) for name in names}
