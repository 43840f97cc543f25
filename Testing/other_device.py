"""A second device that computes on the CPU and, like a GPU, refuses to be mixed with it.

Tensors on it report the device `OTHER_DEVICE`. An operation on tensors of both devices raises, except where CUDA
takes them too: numbers without dimensions, copies, and indices on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

OTHER_DEVICE = torch.device("meta")
"""The one device beside the CPU for which every build of torch can make tensors; nothing else is meant by it."""

MIXING = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_"}

make_tensor = torch.tensor


class OtherTensor(Tensor):
    """A tensor of the other device; `on_cpu` is the same on the CPU."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> OtherTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=OTHER_DEVICE,
        )
        tensor.on_cpu = on_cpu
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OtherTensor({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return _carry_out(function, arguments, keywords or {})


class _OtherDevice(TorchDispatchMode):
    """Meets the operations that make tensors from nothing."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return _carry_out(function, arguments, keywords or {})


@contextlib.contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, while it is there."""
    # They look at the names below when they are imported first, which must not be in between.
    for module in ("torch._dynamo", "torch.distributed.tensor"):
        importlib.import_module(module)
    read_list = Tensor.tolist
    generator = torch.Generator
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(Tensor, "new_tensor", _new_tensor)
        patch.setattr(Tensor, "tolist", lambda self: read_list(_on_cpu(self)))
        patch.setattr(torch, "Generator", lambda _device="cpu": generator("cpu"))
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        # Views of tensors that were made without version counters are refused to all but torch's own.
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else torch.enable_grad())
        with _OtherDevice():
            yield OTHER_DEVICE


def _carry_out(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    tensors = [item for item in tree_flatten((arguments, keywords))[0] if isinstance(item, Tensor)]
    others = [tensor for tensor in tensors if isinstance(tensor, OtherTensor)]
    own = [tensor for tensor in tensors if not isinstance(tensor, OtherTensor) and tensor.dim() > 0]
    name = function._schema.name
    if others and own and name not in MIXING:
        shapes = [[tuple(tensor.shape) for tensor in group] for group in (others, own)]
        raise RuntimeError(f"{name} of tensors on two devices: {shapes[0]} there, {shapes[1]} on the CPU")
    goes_there = bool(others)
    if keywords.get("device") is not None:
        goes_there = torch.device(keywords["device"]).type != "cpu"
        keywords = {**keywords, "device": torch.device("cpu")}
    if name == "aten::copy_":
        goes_there = isinstance(arguments[0], OtherTensor)
    result = function(*tree_map(_on_cpu, arguments), **tree_map(_on_cpu, keywords))
    return tree_map(lambda item: _wrapped(item, others), result) if goes_there else result


def _on_cpu(item: Any) -> Any:
    return item.on_cpu if isinstance(item, OtherTensor) else item


def _wrapped(item: Any, known: list[OtherTensor]) -> Any:
    """The tensor that an operation in place returned is the one that it was given."""
    if not isinstance(item, Tensor):
        return item
    for tensor in known:
        if tensor.on_cpu is item:
            return tensor
    return OtherTensor(item)


def _tensor(values: Any, *arguments: Any, device: Any = None, **keywords: Any) -> Tensor:
    made = make_tensor(values, *arguments, **keywords)
    return made if device is None or torch.device(device).type == "cpu" else made.to(device)


def _new_tensor(self: Tensor, values: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    return _tensor(values, dtype=dtype or self.dtype, device=device or self.device)
