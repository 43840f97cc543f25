"""Checkpoints that appear whole or not at all, and exported weights."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError

CHECKPOINT_FILE = "checkpoint.pt"
WEIGHTS_FILE = "latest.safetensors"
CHECKPOINT_VERSION = 1


def make_folder(folder: Path) -> None:
    """Make the folder of a run, if it is not there.

    Raises:
        InputError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error}.") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` and rename it when it is safely on disk.

    Raises:
        OSError: if that fails; `path` is then what it was before.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except RuntimeError as error:
        # torch's archive writer reports a full disk as RuntimeError.
        raise OSError(f"{path.name} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; see `write_whole`."""
    content = {"version": CHECKPOINT_VERSION, **state}
    write_whole(folder / CHECKPOINT_FILE, lambda path: torch.save(content, path))


def read_checkpoint(path: Path, architecture: str) -> dict[str, Any]:
    """Read the state of a run.

    Raises:
        InputError: if the file is damaged or no checkpoint, or its network is not `architecture`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["config"]["architecture"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a readable training checkpoint") from error
    if found != architecture:
        raise InputError(f"{path} is a checkpoint of the architecture {found}, not of {architecture}")
    if state.get("version") != CHECKPOINT_VERSION:
        raise InputError(f"{path} was written by another version of this program")
    return state


def export_weights(path: Path, network: nn.Module, metadata: dict[str, str]) -> None:
    """Write a network's tensors in half precision as safetensors; see `write_whole`."""
    tensors = {name: _half(value) for name, value in network.state_dict().items()}
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.half() if value.is_floating_point() else value).contiguous()
