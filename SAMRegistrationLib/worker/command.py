"""How a worker is started: its command line and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..shared_processors import letting_go

PACKAGE = __name__.split(".")[0]
PACKAGE_FOLDER = Path(__file__).resolve().parents[2]
"""The folder that holds this library."""

# ITK loads every library in the autoload path into the process: those of a host (Slicer) are of another ITK.
_REMOVED = ("ITK_AUTOLOAD_PATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT")


def worker_command(
    python: str, *, threads: int | None = None, cache_bytes: int | None = None, parent: int | None = None
) -> list[str]:
    """The command that starts a worker.

    Args:
        python: the interpreter, which must have torch.
        threads: CPU threads of the computation; torch's own choice by default.
        cache_bytes: memory for embeddings on each device; by default a share of what is free.
        parent: id of the process that the worker shall not outlive; the calling one by default.
    """
    command = [python, "-u", "-X", "utf8", "-m", f"{PACKAGE}.worker", "--parent", str(parent or os.getpid())]
    if threads is not None:
        command += ["--threads", str(threads)]
    if cache_bytes is not None:
        command += ["--cache-bytes", str(cache_bytes)]
    return command


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """A host's environment made fit for a worker, which finds this library and loads nothing of the host.

    Args:
        base: the variables that the host was started with, such as `os.environ`.
    """
    environment = {name: value for name, value in base.items() if name not in _REMOVED}
    inherited = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    own = os.fspath(PACKAGE_FOLDER)
    environment["PYTHONPATH"] = os.pathsep.join([own, *(path for path in inherited if path != own)])
    # Python must not take modules from whatever folder the host happens to be in.
    environment["PYTHONSAFEPATH"] = "1"
    return environment | letting_go(environment)
