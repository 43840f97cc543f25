"""What a worker keeps from one request to the next, bounded in bytes; the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ..features.memory import available_memory
from .cancellation import uninterrupted

SHARE_OF_MEMORY = 0.25
"""Of what is free when a device is first used."""

_LIMIT_IF_UNKNOWN = 2**30


@dataclass(frozen=True)
class _Entry:
    value: Any
    size: int
    description: str


class BoundedCache:
    """Values by key, of so many bytes together.

    Args:
        limit: bytes; a value that is larger alone is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(entry.size for entry in self._entries.values())

    def get(self, key: Hashable) -> Any | None:
        """The value, which thereby is the most recently used, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.value

    @uninterrupted
    def put(self, key: Hashable, value: Any, size: int, description: str) -> None:
        """Keep a value of `size` bytes, and throw others away where there is no room for both."""
        self._entries.pop(key, None)
        if size > self.limit:
            return
        while self._entries and self.size + size > self.limit:
            self._entries.popitem(last=False)
        self._entries[key] = _Entry(value, size, description)

    @uninterrupted
    def clear(self) -> None:
        """Throw everything away."""
        self._entries.clear()

    def contents(self) -> list[dict[str, Any]]:
        """What is kept, the least recently used first."""
        return [{"description": entry.description, "bytes": entry.size} for entry in self._entries.values()]


class DeviceCaches:
    """A cache for every device.

    Args:
        limit: bytes on each device; by default a share of what is free there.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._caches: dict[str, BoundedCache] = {}

    def of(self, device: torch.device | str) -> BoundedCache:
        """The cache for values that lie on a device."""
        name = str(device)
        if name not in self._caches:
            self._caches[name] = BoundedCache(self._limit if self._limit is not None else _default_limit(name))
        return self._caches[name]

    def clear(self) -> bool:
        """Throw everything away; False if there was nothing."""
        held = any(cache.size for cache in self._caches.values())
        for cache in self._caches.values():
            cache.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return held

    def describe(self) -> list[dict[str, Any]]:
        """Device, bytes held, limit and contents of every cache."""
        return [
            {"device": name, "bytes": cache.size, "limit_bytes": cache.limit, "contents": cache.contents()}
            for name, cache in self._caches.items()
        ]


def _default_limit(device: str) -> int:
    available = available_memory(device)
    return _LIMIT_IF_UNKNOWN if available is None else int(available * SHARE_OF_MEMORY)
