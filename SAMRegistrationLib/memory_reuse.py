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

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of `mallopt`, see malloc.h."""

_NEVER = -1
_USUAL_MMAPS = 65536
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Where glibc's threshold ends up after arrays of this size, as long as nobody sets it."""

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
