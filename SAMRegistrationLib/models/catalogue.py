"""Which models there are: those shipped with the package and those the user has imported.

A folder of models (see `folders`) holds ``catalogue.json`` and one safetensors file per model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError, UsageError
from .architectures import EmbeddingNetwork, find_architecture
from .folders import CATALOGUE_FILE, SHIPPED_FOLDER, user_folder

DEFAULT_MODEL = "sam-lite"
"""What "sam" stands for."""

_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED_NAMES = ("sam", "mind")


@dataclass(frozen=True)
class ModelEntry:
    """What the catalogue says about a model.

    Args:
        name: how the user asks for it.
        architecture: name of its network.
        file: name of the safetensors file beside the catalogue.
        sha256: checksum of that file, lower-case hexadecimal.
        spacing: isotropic working spacing in mm.
        training_data, licence, date: free text; the date as YYYY-MM-DD.
        accuracy: measured values by the name of the measure.
        configuration: arguments that the network is built with.
        folder: where the catalogue lies.
    """

    name: str
    architecture: str
    file: str
    sha256: str
    spacing: float
    training_data: str
    licence: str
    date: str
    accuracy: dict[str, float] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    folder: Path = SHIPPED_FOLDER

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def shipped(self) -> bool:
        return self.folder == SHIPPED_FOLDER

    @property
    def available(self) -> bool:
        """Whether the weights are there (their checksum is not looked at)."""
        return self.path.is_file()

    def as_json(self) -> dict[str, Any]:
        """The entry as it stands in the catalogue file, without the folder."""
        return {name: value for name, value in vars(self).items() if name != "folder"}


def list_models() -> list[ModelEntry]:
    """Shipped models, then the user's.

    Raises:
        InputError: if a catalogue file cannot be read.
    """
    return [*_read_catalogue(SHIPPED_FOLDER), *_read_catalogue(user_folder())]


def find_model(name: str) -> ModelEntry:
    """The model of that name; "sam" is the default model.

    Raises:
        UsageError: if there is none.
    """
    wanted = DEFAULT_MODEL if name == "sam" else name
    models = list_models()
    for entry in models:
        if entry.name == wanted:
            return entry
    known = ", ".join(entry.name for entry in models) or "none"
    raise UsageError(f"there is no model named {wanted!r}; installed models: {known}")


def verify(entry: ModelEntry) -> None:
    """Check that the weights are there, unchanged, and fit their architecture.

    Raises:
        InputError: if not, saying which of the three.
    """
    from . import quiz
    from .deformable import is_deformable, load_deformable

    if is_deformable(entry.architecture):
        load_deformable(entry)
    elif entry.architecture == quiz.ARCHITECTURE:
        quiz.build_quiz(entry)
    else:
        build_network(entry)


def load_weights(entry: ModelEntry) -> dict[str, Tensor]:
    """The tensors of a model by name, on the CPU, after their checksum was compared.

    Raises:
        InputError: if the file is absent, changed or damaged.
    """
    if not entry.available:
        raise InputError(f"the weights of model {entry.name} are missing: {entry.path}")
    found = file_checksum(entry.path)
    if found != entry.sha256:
        raise InputError(
            f"the weights of model {entry.name} are not the catalogued ones: {entry.path} has sha256 {found}, "
            f"expected {entry.sha256}"
        )
    try:
        return load_file(entry.path)
    except SafetensorError as error:
        raise InputError(f"{entry.path} is not a readable safetensors file: {error}") from error


def build_network(entry: ModelEntry) -> EmbeddingNetwork:
    """The embedding network of a model with its weights, in evaluation mode on the CPU, float32.

    Raises:
        InputError: as `load_weights`, or if the weights do not fit the architecture or are of another kind.
    """
    from .deformable import is_deformable

    if is_deformable(entry.architecture):
        raise InputError(
            f"the model {entry.name} predicts displacements and gives no features; it is used by the presets of "
            f"its network, {entry.architecture}"
        )
    return find_architecture(entry.architecture).with_weights(load_weights(entry), entry.configuration)


def install(entry: ModelEntry, weights: Mapping[str, Tensor]) -> ModelEntry:
    """Write weights and their entry into the entry's folder; its checksum is filled in.

    An entry of the same name is replaced. Files appear by rename, the catalogue last, so that an interrupted
    installation leaves the catalogue as it was.

    Raises:
        UsageError: if the name cannot be used.
        InputError: if the folder cannot be written.
    """
    check_name(entry.name)
    try:
        entry.folder.mkdir(parents=True, exist_ok=True)
        temporary = entry.path.with_name(f".{entry.file}.{os.getpid()}.part")
        try:
            tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
            save_file(tensors, temporary)
            temporary.chmod(0o644)
            complete = ModelEntry(**{**vars(entry), "sha256": file_checksum(temporary)})
            temporary.replace(entry.path)
        finally:
            temporary.unlink(missing_ok=True)
        others = [other for other in _read_catalogue(entry.folder) if other.name != entry.name]
        _write_catalogue(entry.folder, [*others, complete])
    except (OSError, SafetensorError) as error:
        raise InputError(f"the model cannot be written into {entry.folder}: {error}") from error
    return complete


def remove(name: str) -> ModelEntry:
    """Delete a model of the user, its entry first.

    Raises:
        UsageError: if there is no such model, or it is shipped with the package.
        InputError: if the folder cannot be written.
    """
    entry = find_model(name)
    if entry.shipped:
        raise UsageError(f"{entry.name} is shipped with the package and cannot be removed")
    try:
        _write_catalogue(entry.folder, [other for other in _read_catalogue(entry.folder) if other != entry])
        entry.path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"model {entry.name} cannot be removed from {entry.folder}: {error}") from error
    return entry


def check_name(name: str) -> None:
    """Raise UsageError unless a model may be called that."""
    if not _NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a model: use up to 64 letters, digits, dots, hyphens and underscores"
        )
    if name in _RESERVED_NAMES:
        raise UsageError(f"the name {name!r} has a meaning of its own; choose another for the model")


def file_checksum(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_catalogue(folder: Path) -> list[ModelEntry]:
    path = folder / CATALOGUE_FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["models"]
        models = [ModelEntry(**entry, folder=folder) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the catalogue of models {path} cannot be read: {error!r}") from error
    for entry in models:
        if Path(entry.file).name != entry.file:
            raise InputError(f"the catalogue of models {path} names a file outside its folder: {entry.file}")
    return models


def _write_catalogue(folder: Path, entries: list[ModelEntry]) -> None:
    text = json.dumps({"models": [entry.as_json() for entry in entries]}, indent=2, ensure_ascii=False)
    temporary = folder / f".{CATALOGUE_FILE}.{os.getpid()}.part"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / CATALOGUE_FILE)
