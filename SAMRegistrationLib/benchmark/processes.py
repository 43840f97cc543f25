"""A fresh process for every job: with a time limit, threads of its own, and its words kept."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .methods import Method
from .peers.job import NOT_INSTALLED

LAUNCHER = Path(__file__).with_name("launch.py")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True)
class End:
    """How a job ended.

    Args:
        status: "done", "failed", "time limit" or "not installed".
        message: the last that was heard of a job that is not done.
    """

    status: str
    message: str = ""


class Jobs:
    """The jobs of a run that are at work, so that all can be stopped with it."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End all processes that are at work; none begins after that."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                _kill_group(process)

    def begun(self, process: subprocess.Popen[bytes]) -> None:
        """Count a process, or end it at once where everything was stopped meanwhile."""
        with self._lock:
            self._running.add(process)
            if self.stopped:
                _kill_group(process)

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """End what a process left behind, and forget it."""
        with self._lock:
            self._running.discard(process)
        _kill_group(process)


def run_job(method: Method, task: dict[str, Any], limit_s: float, log: Path, jobs: Jobs | None = None) -> End:
    """Do a job in a fresh process, at most `limit_s` seconds long; what it prints goes to a file.

    Args:
        method: what to run, and with which interpreter.
        task: `peers.contract.Task` in JSON's types; the outcome is left in its `folder`.
        limit_s: seconds after which the process and all that it started are killed.
        log: file for what it prints.
        jobs: those that are stopped together.
    """
    jobs = jobs or Jobs()
    folder = Path(task["folder"])
    description = task | {"module": method.module, "settings": method.settings}
    (folder / "task.json").write_text(json.dumps(description))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        try:
            process = subprocess.Popen(
                [method.python, str(LAUNCHER), str(folder)],
                cwd=folder,
                env=_environment(method, int(task["threads"]), int(task["seed"])),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return End("not installed", f"{method.python} cannot be started: {error.strerror}")
        try:
            jobs.begun(process)
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return End("time limit", f"stopped after {limit_s:g} s")
        finally:
            jobs.ended(process)
    return _end_of(status, folder, log)


def _end_of(status: int, folder: Path, log: Path) -> End:
    if status == 0 and (folder / "outcome.json").is_file():
        return End("done")
    said = log.read_text(errors="replace").strip().splitlines()
    message = said[-1] if said else "it said nothing"
    if status == NOT_INSTALLED:
        return End("not installed", message)
    if status < 0:
        message = f"killed by {signal.Signals(-status).name}: {message}"
    return End("failed", message if status else f"ended without a result: {message}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(method: Method, threads: int, seed: int) -> dict[str, str]:
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    # ANTs takes its random numbers from here.
    environment |= {"ANTS_RANDOM_SEED": str(seed), "PYTHONHASHSEED": str(seed % 2**32)}
    if method.python != sys.executable:
        # What this Python has installed is not for another one.
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONHOME", None)
    return environment
