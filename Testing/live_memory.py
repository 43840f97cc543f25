"""The bytes of all tensors that are alive while something is computed, the same in every run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the memory of tensors that operations make in its body, until they are gone.

    What an operation takes and frees within itself is not seen.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                # What was there before is not counted, nor are views of it.
                self._known.setdefault(leaf.untyped_storage()._cdata, weakref.ref(leaf.untyped_storage()))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known and self._known[key]() is not None:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        self._known.pop(key, None)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `work` take at a time."""
    with LiveMemory() as memory:
        work()
    return memory.peak


def held_bytes(work: Callable[[], Any]) -> int:
    """The bytes of those tensors made by `work` that are alive as long as what it returns."""
    with LiveMemory() as memory:
        result = work()
        held = memory.live
    del result
    return held
