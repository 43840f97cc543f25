"""What this machine offers for registration, and what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__
from .device import try_device
from .models.catalogue import list_models

REQUIRED = ("torch", "SimpleITK", "numpy", "safetensors")
OPTIONAL = {"matplotlib": "pictures", "tensorboard": "training logs", "monai": "training"}


def diagnosis() -> tuple[bool, list[str]]:
    """Whether everything needed is there, and the findings as lines of text."""
    lines = [f"samreg {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    missing = [name for name in REQUIRED if _version(name) is None]
    lines += [f"{name:14} {_version(name) or 'MISSING'}" for name in REQUIRED]
    lines += [f"{name:14} {_version(name) or f'not installed (only for {use})'}" for name, use in OPTIONAL.items()]
    works, devices = _devices()
    lines += devices
    for entry in list_models():
        lines.append(f"model {entry.name}: {'ready' if entry.available else 'weights missing'}")
    return works and not missing, lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> tuple[bool, list[str]]:
    """Every device, tried with a small convolution."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    lines, works = [], True
    for name in names:
        title = "" if name == "cpu" else f" ({torch.cuda.get_device_name(name)})"
        try:
            try_device(name)
            lines.append(f"device {name}{title}: works")
        except RuntimeError as error:
            works = False
            lines.append(f"device {name}{title}: FAILS, {str(error).splitlines()[0]}")
    return works, lines
