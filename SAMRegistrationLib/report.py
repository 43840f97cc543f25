"""What a registration did, as the content of `report.json`."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .field import DisplacementField
from .files import checksum, write_text
from .image import Image
from .metrics import FieldQuality, StageRecorder, similarity

SCHEMA = "samreg-report"
SCHEMA_VERSION = 1


def build_report(
    *,
    inputs: Mapping[str, Mapping[str, Any]],
    preset: str,
    settings: Mapping[str, Any],
    device: torch.device | str,
    recorder: StageRecorder,
    similarity_before: Mapping[str, Any],
    similarity_after: Mapping[str, Any],
    field: FieldQuality,
    warnings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of one registration, ready for JSON.

    Args:
        inputs: name (`fixed`, `moving`, ...) to what `describe_input` says of it.
        preset: name of the preset that was used.
        settings: its values, with whatever the caller changed.
        device: where it ran.
        recorder: the record of its stages.
        similarity_before: `similarity_under` no displacement.
        similarity_after: `similarity_under` the result.
        field: quality of the total displacement.
        warnings: sentences for the user.
        details: what single stages found, by the name of the stage (scores, residuals, iterations).
    """
    cost = recorder.summary()
    return json_ready(
        {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "samreg_version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "inputs": inputs,
            "preset": preset,
            "settings": settings,
            "machine": describe_machine(device),
            "seconds": cost["seconds"],
            "peak_memory_mib": cost["peak_memory_mib"],
            "device_peak_memory_mib": cost["device_peak_memory_mib"],
            "stages": cost["stages"],
            "similarity": {"before": similarity_before, "after": similarity_after},
            "field": asdict(field),
            "details": details or {},
            "warnings": list(warnings),
        }
    )


def write_report(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report or evaluation as JSON, complete or not at all.

    Raises:
        InputError: if the place cannot be written.
    """
    write_text(path, json.dumps(json_ready(report), indent=2, allow_nan=False) + "\n")


def describe_input(image: Image | None, path: Path | None = None) -> dict[str, Any]:
    """Which data went in: the file with its SHA-256, and the geometry if it is a volume.

    A volume that came from no file is told by the SHA-256 of its float32 values.
    """
    if path is not None:
        description: dict[str, Any] = {"path": str(path), "sha256": checksum(path)}
    elif image is not None:
        values = np.ascontiguousarray(image.data.cpu().numpy())
        description = {"path": None, "sha256": hashlib.sha256(values.data).hexdigest()}
    else:
        raise ValueError("an input is a volume, a file or both")
    if image is not None:
        description |= {"modality": image.modality, "pixel_type": image.pixel_type, **asdict(image.grid)}
    return json_ready(description)


def describe_machine(device: torch.device | str) -> dict[str, Any]:
    """Where a result was computed, as far as it explains time and last digits."""
    device = torch.device(device)
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def similarity_under(
    field: DisplacementField, fixed: Image, moving: Image, region: torch.Tensor | None = None
) -> dict[str, float | None]:
    """How alike the fixed and the warped moving volume look where both have data.

    Args:
        field: the displacement on the fixed grid.
        fixed: the fixed volume.
        moving: the moving volume.
        region: voxels of the fixed grid (z, y, x) to look at.

    Returns:
        The measures of `metrics.similarity`, None where the volumes do not overlap, and `overlap`, the share of
        the region's voxels whose partner lies inside the moving volume.
    """
    warped = field.warp(moving, default=math.nan).data
    both = ~torch.isnan(warped)
    share = float(both.double().mean()) if region is None else float(both[region].double().mean())
    both = both if region is None else both & region
    if not bool(both.any()):
        return {"overlap": share, "normalized_cross_correlation": None, "mutual_information": None}
    return {"overlap": share, **similarity(fixed.data.to(warped.device), warped, both)}


def json_ready(value: Any) -> Any:
    """The value in JSON's own types; NaN and infinity become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return json_ready(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return json_ready(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, Enum):
        return json_ready(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
