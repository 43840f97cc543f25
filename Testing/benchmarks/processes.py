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
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return _too_long(limit_s)
    return End("done") if process.returncode == 0 else End("failed", _last_line(errors, process.returncode))


class Worker:
    """A process that does one job after another; it is started when there is one and again after it died.

    Args:
        threads: how many threads it may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        # What a process that died said last; read only then, so that it can never block on a full pipe.
        self._said: IO[str] | None = None

    def do(self, job: Job, limit_s: float) -> End:
        """Do a job, at most `limit_s` seconds long, the start of the process included."""
        process = self._running()
        expired = threading.Event()
        clock = threading.Timer(limit_s, lambda: (expired.set(), _kill(process)))
        clock.start()
        try:
            process.stdin.write(job.as_json() + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            clock.cancel()
        if not reply:
            return self._died(limit_s, expired.is_set())
        end = End(**json.loads(reply))
        if "CUDA" in end.message:
            # Most errors of a GPU leave the process unable to use it again.
            self.stop()
        return end

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._said):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process = self._said = None

    def _running(self) -> Any:
        if self._process is None:
            self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
            command = [sys.executable, "-m", WORKER_MODULE]
            pipe = subprocess.PIPE
            self._process = _started(command, self._threads, stdin=pipe, stdout=pipe, stderr=self._said)
        return self._process

    def _died(self, limit_s: float, expired: bool) -> End:
        status = self._process.wait()
        self._said.seek(0)
        message = _last_line(self._said.read(), status)
        self.stop()
        return _too_long(limit_s) if expired else End("failed", message)


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
