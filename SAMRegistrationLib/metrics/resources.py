"""What a result cost: seconds and peak memory, stage by stage."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[str, float], None]
"""Called with the name of the stage at work and the fraction (0 to 1) of all work that is done."""

BYTES_PER_MEBIBYTE = 2**20
PROCESS_STATUS = Path("/proc/self/status")


@dataclass
class Stage:
    """One timed part of the work; memory in MiB.

    `peak_memory_growth_mib` is by how much the stage raised the process's peak, so it is 0 for a stage that fits
    into what an earlier one had taken. `device_peak_memory_mib` is the most that was allocated on the CUDA device
    while the stage ran, None without one.
    """

    name: str
    seconds: float = 0.0
    peak_memory_growth_mib: float = 0.0
    device_peak_memory_mib: float | None = None


@dataclass
class StageRecorder:
    """Records what the stages of a run take, and tells a listener how far the run has come.

    Args:
        progress: called at the start and end of every stage; what it raises (a cancellation) passes through.
        plan: the stages that will run, in order, with their expected shares of the time (any unit).
        device: a CUDA device whose memory is recorded too.
    """

    progress: Progress | None = None
    plan: Mapping[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    stages: list[Stage] = field(default_factory=list)
    _done: float = field(default=0.0, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time the body under a name; a name that comes again is added to. Stages must not be nested."""
        record = self._record(name)
        self.advance(name, 0.0)
        self._start_device()
        peak_before = peak_memory()
        started = time.perf_counter()
        try:
            yield record
        finally:
            device_peak = self._device_peak()
            record.seconds += time.perf_counter() - started
            record.peak_memory_growth_mib += peak_memory() - peak_before
            if device_peak is not None:
                record.device_peak_memory_mib = max(record.device_peak_memory_mib or 0.0, device_peak)
        self.advance(name, 1.0)

    def advance(self, name: str, fraction: float) -> None:
        """Report that `fraction` (0 to 1) of the stage `name` is done; for the loops inside a stage.

        The fraction of all work follows from the plan; a stage outside the plan does not move it.
        """
        if self.progress is None:
            return
        if name in self.plan:
            names = list(self.plan)
            before = sum(self.plan[earlier] for earlier in names[: names.index(name)])
            self._done = (before + fraction * self.plan[name]) / sum(self.plan.values())
        self.progress(name, self._done)

    def _start_device(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def _device_peak(self) -> float | None:
        """Wait for the device, then its peak in MiB since the stage began; None without a CUDA device."""
        if torch.device(self.device).type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        return device_peak_memory(self.device)

    def _record(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        self.stages.append(Stage(name))
        return self.stages[-1]

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    def summary(self) -> dict[str, Any]:
        """The record as it stands in a report: seconds, memory in MiB, and every stage."""
        on_device = [
            stage.device_peak_memory_mib for stage in self.stages if stage.device_peak_memory_mib is not None
        ]
        return {
            "seconds": self.seconds,
            "peak_memory_mib": peak_memory(),
            "device_peak_memory_mib": max(on_device) if on_device else None,
            "stages": [asdict(stage) for stage in self.stages],
        }


def peak_memory() -> float:
    """The most memory in MiB that this process has held in RAM so far."""
    if sys.platform == "win32":
        return _windows_memory().PeakWorkingSetSize / BYTES_PER_MEBIBYTE
    # Linux hands the maximum of getrusage down to child processes, this one starts anew.
    peak_on_linux = _from_status("VmHWM")
    if peak_on_linux is not None:
        return peak_on_linux
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others kibibytes.
    return peak / BYTES_PER_MEBIBYTE if sys.platform == "darwin" else peak / 1024


def resident_memory() -> float | None:
    """The memory in MiB that this process holds in RAM now; None where the platform does not tell."""
    if sys.platform == "win32":
        return _windows_memory().WorkingSetSize / BYTES_PER_MEBIBYTE
    return _from_status("VmRSS")


def _from_status(field_name: str) -> float | None:
    """A memory in MiB from Linux's status of this process; None on other platforms."""
    if not PROCESS_STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
    return int(fields[field_name].split()[0]) / 1024 if field_name in fields else None


def device_peak_memory(device: torch.device | str) -> float:
    """The most memory in MiB that torch has allocated on a CUDA device since its peak was last reset."""
    return torch.cuda.max_memory_allocated(device) / BYTES_PER_MEBIBYTE


class _ProcessMemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API (psapi.h)."""

    _fields_ = (
        ("cb", ctypes.c_ulong),
        ("PageFaultCount", ctypes.c_ulong),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


def _windows_memory() -> _ProcessMemoryCounters:
    counters = _ProcessMemoryCounters()
    counters.cb = ctypes.sizeof(counters)
    windows: Any = ctypes.WinDLL  # type: ignore[attr-defined]
    kernel, psapi = windows("kernel32"), windows("psapi")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    psapi.GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong]
    psapi.GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters
