"""Bringing a model from a local file into the user's folder.

Read are the published SAM / UAE checkpoints (mmcv: a dict of ``meta``, ``state_dict`` and perhaps ``optimizer``),
those of LapIRN, and files that hold only the tensors, as PyTorch or safetensors files, such as our own training
writes. Nothing in the file is ever executed.
"""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError, UsageError
from .architectures import ARCHITECTURES, SAM_RESNET18, Architecture
from .catalogue import ModelEntry, check_name, install, list_models, user_folder
from .deformable_importer import recognize_deformable

_NAMES_SHOWN = 5
_WRAPPER_PREFIX = "module."
_UNKNOWN = "not stated in the file"


def import_checkpoint(
    path: Path,
    name: str,
    *,
    licence: str = _UNKNOWN,
    training_data: str = _UNKNOWN,
    diffeomorphic: bool = False,
) -> ModelEntry:
    """Import a published SAM, UAE or LapIRN checkpoint, or weights trained by us, under a name.

    Afterwards it is a model like any other.

    Args:
        path: the local file.
        name: how to call the model.
        licence, training_data: what the catalogue shall say.
        diffeomorphic: that a LapIRN checkpoint is of that variant, which the file does not tell.

    Raises:
        UsageError: if the name cannot be used or is taken.
        InputError: if the file cannot be read safely or does not hold exactly such weights.
    """
    check_name(name)
    if any(entry.name == name for entry in list_models()):
        raise UsageError(f"there is already a model named {name!r}; remove it first or choose another name")
    weights = _without_wrapper(read_tensors(path))
    deformable = recognize_deformable(path, weights, diffeomorphic=diffeomorphic)
    if deformable is not None:
        network, spacing, configuration = deformable.network, deformable.spacing, deformable.configuration
        weights = deformable.weights
    else:
        architecture = recognize(weights, path)
        network, spacing = architecture.name, architecture.spacing
        configuration = architecture.configuration_of(weights)
        check_layout(weights, architecture, configuration, path)
    entry = ModelEntry(
        name=name,
        architecture=network,
        file=f"{name}.safetensors",
        sha256="",
        spacing=spacing,
        training_data=training_data,
        licence=licence,
        date=datetime.date.today().isoformat(),
        configuration=configuration,
        folder=user_folder(),
    )
    return install(entry, weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU; no code of the file is run.

    Raises:
        InputError: if the file is absent, is no checkpoint, or holds other Python objects than plain values.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} holds no state dict")
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"the state dict of {path} holds values that are not tensors: {_some(strange)}")
    return {str(key): value for key, value in state.items()}


def recognize(weights: Mapping[str, Tensor], path: Path) -> Architecture:
    """The architecture that most of the tensors belong to, by name.

    Raises:
        InputError: if not one tensor belongs to any.
    """
    shares = {
        len(weights.keys() & _expected(architecture, architecture.configuration_of(weights)).keys()): architecture
        for architecture in ARCHITECTURES.values()
    }
    most = max(shares)
    if most == 0:
        known = " or ".join(sorted(ARCHITECTURES))
        raise InputError(f"{path} is not a {known} checkpoint: none of its tensors belongs there")
    return shares[most]


def check_layout(
    weights: Mapping[str, Tensor], architecture: Architecture, configuration: Mapping[str, Any], path: Path
) -> None:
    """Account for every tensor: names, shapes and values must be exactly those of the architecture.

    Raises:
        InputError: naming what is missing, unexpected, misshapen or not finite.
    """
    expected = _expected(architecture, configuration)
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    if architecture is SAM_RESNET18 and not any(name.startswith("backbone.") for name in weights):
        raise InputError(f"{path} holds only heads, not the backbone of {architecture.name}")
    misshapen = [
        f"{name} is {_shape(weights[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("not finite", broken),
        )
        if names
    ]
    if problems:
        raise InputError(f"{path} does not have exactly the tensors of {architecture.name}; {'; '.join(problems)}")


def _expected(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that an architecture would have: shapes without values."""
    with torch.device("meta"):
        return architecture.build(**configuration).state_dict()


def _load_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_explain_refusal(path, str(error))) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a readable PyTorch checkpoint") from error


def _explain_refusal(path: Path, reason: str) -> str:
    """What to do about a file that torch refuses to read without running code."""
    if "GLOBAL" not in reason and "Unsupported" not in reason:
        return f"{path} is not a readable PyTorch checkpoint"
    named = reason.split("GLOBAL ", 1)[-1].split(" ", 1)[0] if "GLOBAL " in reason else "an object of its own kind"
    return (
        f"{path} holds Python objects besides tensors and plain values ({named}), and reading those would "
        f"run code from the file; where you trust it, save its 'state_dict' alone with torch.save and import that"
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file") from error


def _without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names as inside a data-parallel wrapper, if all of them are."""
    if not all(name.startswith(_WRAPPER_PREFIX) for name in weights):
        return dict(weights)
    return {name[len(_WRAPPER_PREFIX) :]: value for name, value in weights.items()}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
