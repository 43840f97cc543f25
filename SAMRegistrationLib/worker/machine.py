"""What the worker's machine offers: devices, threads and memory."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch

from .. import __version__
from ..device import resolve_device, try_device
from ..features.memory import available_memory
from ..metrics.resources import resident_memory


def describe() -> dict[str, Any]:
    """Versions, threads, and every device with its memory in bytes (None where the platform does not tell)."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "process": os.getpid(),
        "threads": torch.get_num_threads(),
        "resident_mib": resident_memory(),
        "devices": [_cpu(), *(_gpu(index) for index in range(torch.cuda.device_count()))],
    }


def checked_device(device: str) -> dict[str, Any]:
    """Compute something small on a device.

    Returns:
        `device`, `works`, `seconds`, and `error`, torch's own sentence, or None.
    """
    target = resolve_device(device)
    started = time.perf_counter()
    error = None
    try:
        try_device(target)
    except RuntimeError as failure:
        error = str(failure).splitlines()[0]
    return {
        "device": str(target),
        "works": error is None,
        "seconds": time.perf_counter() - started,
        "error": error,
    }


def _cpu() -> dict[str, Any]:
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "name": "cpu",
        "title": platform.processor() or platform.machine(),
        "total_bytes": total,
        "free_bytes": available_memory("cpu"),
        "capability": None,
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": f"cuda:{index}",
        "title": properties.name,
        "total_bytes": properties.total_memory,
        "free_bytes": available_memory(f"cuda:{index}"),
        "capability": f"{properties.major}.{properties.minor}",
    }
