"""Devices by name."""

from __future__ import annotations

import os
import re

import torch

from .errors import InputError, UsageError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device of a name: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: for a name that means no device.
        InputError: for a device that this machine does not have.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f'unknown device "{name}"; use auto, cpu, cuda or cuda:N')
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        found = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
        raise InputError(f"device {name} is not there: torch {torch.__version__} finds {found} on this machine")
    return torch.device(name)


def usable_cores() -> int:
    """How many cores this process may use, which on a shared machine can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def try_device(device: str | torch.device) -> None:
    """Compute something small on a device, which tells whether torch's build fits it.

    Raises:
        RuntimeError: if it does not work.
    """
    volume, kernel = torch.ones(1, 1, 8, 8, 8, device=device), torch.ones(1, 1, 3, 3, 3, device=device)
    # The sum waits for the device, where a kernel that fails does so late.
    float(torch.nn.functional.conv3d(volume, kernel).sum())
