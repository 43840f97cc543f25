"""Memory that a computation frees, kept for the arrays that it makes next.

Where arrays are large, glibc fetches the memory of every temporary one from the system and gives it back at
once, which costs a page fault for every four kilobytes: a third of the processor time of a registration, and all
the more the larger its volumes are.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of `mallopt`, see malloc.h."""

_NEVER = -1
_USUAL_MMAPS = 65536
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Where glibc's threshold ends up after arrays of this size, as long as nobody sets it."""

_LARGE = 2**28
"""Bytes of an array that is worth pages of its own; those of 192x160x256 voxels are all smaller."""

_MUCH = 2**30
"""Bytes of freed memory that are worth the page faults of giving them back before the end."""

_STATUS = Path("/proc/self/status")

_lock = threading.Lock()
_users = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what the body frees for what it allocates next, and give all of it back to the system at the end.

    Holds for the whole process, until the last of the bodies that run at a time has ended. Does nothing where the
    allocator is not glibc's.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


@contextmanager
def own_pages(size: int) -> Iterator[None]:
    """Let a large array that the body makes, and that stays, have pages of its own although freed memory is kept.

    Among what comes and goes it would leave gaps too small for the next one of its kind, in the end two thirds
    of what is in use. Its pages go back to the system as soon as it is freed.

    Args:
        size: of the array in bytes; where it is not large, nothing changes, since fetching pages takes time.
    """
    changed = size >= _LARGE
    if changed:
        _give_pages(_USUAL_MMAPS)
    try:
        yield
    finally:
        if changed:
            _give_pages(0)


def _give_pages(most: int) -> None:
    with _lock:
        if _users > 0:
            _set({_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _MMAP_MAX: most})


def give_back_much() -> None:
    """Give what has been freed back if it is so much that holding it costs more than fetching it again.

    For places after which something of another kind is made: of large volumes, what remains of one step would
    otherwise lie unused beside what the next one makes.
    """
    if _users > 0 and freed_and_kept() > _MUCH:
        give_back()


def freed_and_kept() -> int:
    """Bytes that this process holds although nothing uses them, about; 0 where that cannot be told."""
    inquire = _of_glibc("mallinfo2")
    if inquire is None or not _STATUS.exists():
        return 0
    inquire.restype = _HeapState  # type: ignore[attr-defined]
    state: Any = inquire()
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    held = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return max(0, held - int(state.uordblks) - int(state.hblkhd))


class _HeapState(ctypes.Structure):
    """`struct mallinfo2`, see malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def give_back() -> None:
    """Give what has been freed back to the system, which glibc does not do by itself."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _count(change: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + change
        if before == 0:
            _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER})
        elif _users == 0:
            _set(
                {
                    _MMAP_MAX: _USUAL_MMAPS,
                    _MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
                    _TRIM_THRESHOLD: 2 * _LARGEST_MMAP_THRESHOLD,
                }
            )
            give_back()


def _set(parameters: dict[int, int]) -> None:
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for parameter, value in parameters.items():
            mallopt(parameter, value)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the allocator; None on other systems and with other C libraries."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
