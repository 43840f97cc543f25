"""Whether another process still runs, so that a worker does not outlive its host."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_SYNCHRONIZE = 0x00100000
_WAIT_TIMEOUT = 0x102
_STATE, _START_TIME = 0, 19
"""Places in /proc/PID/stat after the name of the program."""


class WatchedProcess:
    """A process as it is now; another one that gets its id later is not taken for it.

    Args:
        process: its id.
    """

    def __init__(self, process: int) -> None:
        self._id = process
        self._start_time = _field(process, _START_TIME)

    @property
    def is_running(self) -> bool:
        if sys.platform == "win32":
            return _runs_on_windows(self._id)
        try:
            os.kill(self._id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return _field(self._id, _STATE) != "Z" and _field(self._id, _START_TIME) == self._start_time


def _field(process: int, place: int) -> str | None:
    """A field of Linux's description of a process; None where there is no such description."""
    try:
        description = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold anything.
    return description.rpartition(")")[2].split()[place]


def _runs_on_windows(process: int) -> bool:
    kernel: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_ulong]
    kernel.CloseHandle.argtypes = [ctypes.c_void_p]
    handle = kernel.OpenProcess(_SYNCHRONIZE, False, process)
    if not handle:
        return False
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == _WAIT_TIMEOUT)
    finally:
        kernel.CloseHandle(handle)
