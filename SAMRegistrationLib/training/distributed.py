"""Several processes as one: the parts of torch.distributed that training needs, harmless with a single process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Processes:
    """This process among all of a run."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join_processes(device: str = "auto") -> Processes:
    """Join the run that `torchrun` started, or be a run of one.

    On CUDA the processes of a machine take its GPUs in turn. More processes than GPUs share them, which keeps a
    GPU busy while some prepare their work. They talk through NCCL, or through gloo on the CPU and where a GPU is
    shared, which NCCL refuses.
    """
    use_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if use_cuda else 0
    if device in ("auto", "cuda"):
        chosen = torch.device("cuda", local % max(1, gpus)) if use_cuda else torch.device("cpu")
    else:
        chosen = torch.device(device)
    if count > 1 and not distributed.is_initialized():
        one_each = device in ("auto", "cuda") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= gpus
        distributed.init_process_group("nccl" if chosen.type == "cuda" and one_each else "gloo")
    return Processes(int(os.environ.get("RANK", "0")), count, chosen)


def leave_processes(processes: Processes) -> None:
    """End the process group, if there is one."""
    if processes.count > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], flags: list[float], processes: Processes) -> list[float]:
    """Replace every gradient by its mean over the processes, and return the sums of `flags`, in one exchange.

    A parameter without a gradient counts as zero, so that all processes exchange the same numbers.
    """
    if processes.count == 1:
        return flags
    owned = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in owned]
    parts = [gradient.reshape(-1).float() for gradient in gradients]
    message = torch.cat([*parts, parts[0].new_tensor(flags)])
    distributed.all_reduce(message)
    start = 0
    for parameter, gradient in zip(owned, gradients, strict=True):
        mean = message[start : start + gradient.numel()] / processes.count
        parameter.grad = mean.reshape(gradient.shape).to(gradient.dtype)
        start += gradient.numel()
    return [float(value) for value in message[start:]]


def gather(value: Any, processes: Processes) -> list[Any]:
    """The values of all processes, by rank."""
    if processes.count == 1:
        return [value]
    values: list[Any] = [None] * processes.count
    distributed.all_gather_object(values, value)
    return values


def share_parameters(network: nn.Module, processes: Processes) -> None:
    """Give every process the first one's parameters."""
    if processes.count > 1:
        for tensor in network.state_dict().values():
            _broadcast(tensor)


def wait_for_first(processes: Processes) -> None:
    """Return when every process has come here."""
    if processes.count > 1:
        distributed.barrier()


@contextlib.contextmanager
def after_the_first(processes: Processes) -> Iterator[None]:
    """What the first process does alone, and all others then, who find what it prepared."""
    if not processes.is_first:
        wait_for_first(processes)
    yield
    if processes.is_first:
        wait_for_first(processes)


def _broadcast(tensor: Tensor) -> None:
    contiguous = tensor.detach().contiguous()
    distributed.broadcast(contiguous, src=0)
    tensor.data.copy_(contiguous)
