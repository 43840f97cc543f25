"""How much memory there is, and a clear refusal where it does not suffice."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import NotEnoughMemoryError

GIGABYTE = 10**9
_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device | str) -> int | None:
    """Bytes that can be allocated on a device now, or None where the platform does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps cached from earlier work counts as taken there, but it is ours to use again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [limit for limit in (_system_memory(), _container_memory()) if limit is not None]
    return min(limits, default=None)


def require_memory(needed: int, device: torch.device | str, purpose: str, advice: str) -> None:
    """Refuse before starting what would not fit.

    Args:
        needed: bytes at the peak.
        device: where they are needed.
        purpose: what for, as the beginning of the sentence.
        advice: what the user can do instead, as its end.

    Raises:
        NotEnoughMemoryError: if less is free.
    """
    available = available_memory(device)
    if available is not None and available < needed:
        raise NotEnoughMemoryError(
            f"{purpose} needs about {needed / GIGABYTE:.1f} GB of memory on {device}, "
            f"{available / GIGABYTE:.1f} GB are free; {advice}"
        )


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_memory() -> int | None:
    """What a container's limit (cgroup version 2) leaves; cached files give way, so they count as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        current = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    reclaimable = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    return max(0, int(limit) - current + reclaimable)
