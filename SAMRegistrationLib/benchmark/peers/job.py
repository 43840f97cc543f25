"""One method on one pair, in a process of its own, so that its time, memory and crashes are its own.

Reads `task.json` of a folder, registers, and leaves `outcome.json` there; the exit status is 0 done, 1 failed,
3 not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any, cast

import numpy as np

from .contract import Method, NotInstalled, Outcome, Task

NOT_INSTALLED = 3


def main(folder: Path) -> int:
    """Do the job of a folder; returns the exit status."""
    description = json.loads((folder / "task.json").read_text())
    try:
        method = load_module(description.pop("module"))
        method.load()
    except (ImportError, NotInstalled) as error:
        print(error, file=sys.stderr)
        return NOT_INSTALLED
    try:
        report = measured(method, read_task(description))
    except NotInstalled as error:
        # Programs whose place the settings tell are looked for only then.
        print(error, file=sys.stderr)
        return NOT_INSTALLED
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    part = folder / "outcome.part"
    part.write_text(json.dumps(report))
    part.replace(folder / "outcome.json")
    return 0


def load_module(name: str) -> Method:
    """A method's module by its dotted name, or from a file that ends in .py."""
    if not name.endswith(".py"):
        return cast(Method, importlib.import_module(name))
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise NotInstalled(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Classes of a module that nobody can find cannot be inspected.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        raise NotInstalled(f"there is no file {name}") from error
    return cast(Method, module)


def read_task(description: dict[str, Any]) -> Task:
    """A task from its JSON form."""
    paths = {name: Path(description[name]) for name in ("fixed", "moving", "folder")}
    matrices = {
        name: None if description[name] is None else np.asarray(description[name], dtype=np.float64)
        for name in ("initial", "start")
    }
    return Task(**{**description, **paths, **matrices})


def measured(method: Method, task: Task) -> dict[str, Any]:
    """Register, and say what was found and what it cost (memory in MiB)."""
    random.seed(task.seed)
    np.random.seed(task.seed % 2**32)
    torch = _torch_on(task.device)
    before = peak_memory()
    began = time.perf_counter()
    outcome = method.register(task)
    seconds = time.perf_counter() - began
    return {
        "parts": [_part_as_json(part) for part in outcome.parts],
        "seconds": seconds,
        "stages": outcome.seconds,
        "peak_memory_mib": peak_memory(),
        "memory_before_mib": before,
        "device_memory_mib": torch.cuda.max_memory_allocated(task.device) / 2**20 if torch else None,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "settings": _as_json(outcome),
        "warnings": list(outcome.warnings),
    }


def _as_json(outcome: Outcome) -> Any:
    return json.loads(json.dumps(outcome.settings, default=str))


def _part_as_json(part: Any) -> Any:
    return {"field": str(part)} if isinstance(part, Path) else {"matrix": np.asarray(part).tolist()}


def _torch_on(device: str) -> Any:
    """torch with the device awake (starting it is no part of a method's time), or None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch


def peak_memory() -> float:
    """The most memory in MiB that this process, or the largest program that it started, has held in RAM."""
    try:
        import resource
    except ImportError:
        return _windows_peak()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    status = Path("/proc/self/status")
    # Linux hands the maximum of getrusage down from the parent process; this one starts anew.
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return max(int(fields["VmHWM"].split()[0]) / 1024, children)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, children)


def _windows_peak() -> float:
    try:
        import psutil
    except ImportError:
        return float("nan")
    return float(psutil.Process().memory_info().peak_wset) / 2**20
