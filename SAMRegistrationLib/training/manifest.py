"""What a training manifest says: volumes, their body regions, and their labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

USABLE_MODALITIES = ("CT", "CBCT")

REGION_GROUPS = {
    "head and neck": ("head", "neck"),
    "trunk": ("thorax", "chest", "abdomen", "pelvis", "trunk"),
    "limb": ("limb", "leg", "arm", "extremity"),
}
"""A region is the first group one of whose words the manifest's region text contains; limbs are tried first."""

UNSPECIFIC_LABELS = {"auto4": (1,)}
"""Label values by scheme that name no structure (auto4: 1 is the rest of the body)."""


@dataclass(frozen=True)
class LabelFile:
    """A label map of a volume, and the scheme that gives its values their meaning."""

    path: Path
    scheme: str


@dataclass(frozen=True)
class Volume:
    """One volume of a manifest. `region` is a key of `REGION_GROUPS` or "other"."""

    name: str
    path: Path
    subject: str
    region: str
    modality: str
    licence: str
    source: str
    labels: tuple[LabelFile, ...]


def read_manifest(path: Path) -> list[Volume]:
    """Read a manifest: JSON with a list ``items`` of objects with at least ``name`` and ``file``.

    Paths are relative to the manifest. Known fields: modality, region, subject, licence, source and ``labels``
    (objects with ``file`` and ``scheme``).

    Raises:
        InputError: if the file is missing, is no such JSON, or is empty.
    """
    try:
        items = json.loads(path.read_text())["items"]
        volumes = [_volume(item, path.parent) for item in items]
    except FileNotFoundError:
        raise InputError(f"The manifest {path} does not exist.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The manifest {path} is not valid: it needs a list 'items' with 'name' and 'file'."
        ) from error
    if not volumes:
        raise InputError(f"The manifest {path} is empty.")
    return volumes


def read_excluded_names(path: Path, chosen: str | None = None) -> set[str]:
    """Names of the volumes kept out of training: those in any list of the split file, or in the `chosen` one.

    Raises:
        InputError: if the file cannot be read or lacks that list.
    """
    try:
        content = json.loads(path.read_text())
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        return {name for value in ([lists[chosen]] if chosen else lists.values()) for name in value}
    except KeyError:
        raise InputError(f"The split file {path} has no list named {chosen}.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"The split file {path} cannot be read: {error}.") from error


def read_training_volumes(path: Path, held_out: Path | None) -> tuple[list[Volume], list[Volume]]:
    """A manifest's volumes that may be trained on, and those that the split file, if any, keeps out.

    Raises:
        InputError: if a file cannot be read, or nothing is left to train on.
    """
    excluded = read_excluded_names(held_out) if held_out else set()
    everything = read_manifest(path)
    chosen = [volume for volume in everything if volume.name not in excluded]
    if not chosen:
        raise InputError(f"Every volume of {path} is held out of training.")
    return chosen, [volume for volume in everything if volume.name in excluded]


def region_group(text: str) -> str:
    """The sampling group of a manifest's free region text."""
    lowered = text.lower()
    for group in ("limb", "head and neck", "trunk"):
        if any(word in lowered for word in REGION_GROUPS[group]):
            return group
    return "other"


def regions(volumes: Iterable[Volume]) -> dict[str, list[Volume]]:
    """Volumes by region, in the order of the manifest."""
    groups: dict[str, list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(volume.region, []).append(volume)
    return groups


def _volume(item: dict[str, Any], folder: Path) -> Volume:
    labels = tuple(
        LabelFile(folder / label["file"], str(label.get("scheme", "unnamed")))
        for label in item.get("labels") or ()
    )
    return Volume(
        name=str(item["name"]),
        path=folder / item["file"],
        subject=str(item.get("subject", item["name"])),
        region=region_group(str(item.get("region", ""))),
        modality=str(item.get("modality", "CT")),
        licence=str(item.get("licence", "not stated")),
        source=str(item.get("source", "not stated")),
        labels=labels,
    )
