"""This library's presets, through its public Python interface, with the features of choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk

from ..presets import Preset, load_preset
from .peers.contract import Matrix, Outcome, Task

if TYPE_CHECKING:
    from ..transforms import Transform

MIND_SHARE = 0.6
"""Of MIND in the searches on joined features, as in the preset `default`."""

MIND_WEIGHT, SAM_WEIGHT = 12.0, 3.0
"""In the descents on joined features, as in the preset `default`."""

LONE_WEIGHT = 12.0
"""In the descents on one kind of features, as in the preset `samconvex-io`."""

FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "sam": {
        "sam_coarse": {"mind_share": 0.0},
        "samconvex": {"mind_share": 0.0},
        "convex_search": {"mind_share": 0.0},
        "instance_optimization": {"mind_weight": 0.0, "feature_weight": LONE_WEIGHT},
    },
    "mind": {
        "instance_optimization": {"mind_weight": LONE_WEIGHT, "feature_weight": 0.0},
    },
    "both": {
        "sam_coarse": {"mind_share": MIND_SHARE},
        "samconvex": {"mind_share": MIND_SHARE},
        "convex_search": {"mind_share": MIND_SHARE},
        "instance_optimization": {"mind_weight": MIND_WEIGHT, "feature_weight": SAM_WEIGHT},
    },
}
"""Settings per stage for SAM alone, MIND alone and both joined."""


def load() -> None:
    """Nothing is missing; only the import time of the library is spent here."""
    from .. import pipeline  # noqa: F401


def register(task: Task) -> Outcome:
    """Register with the preset that `settings` name: `preset`, and `features` where not those that it ships with.

    With MIND alone the linear alignment goes by intensities, since MIND matches nothing across a body; with both
    it goes by SAM.
    """
    import torch

    from ..pipeline import register as register_volumes
    from ..transforms import AffineTransform

    torch.set_num_threads(task.threads)
    preset, features = task.settings["preset"], task.settings.get("features")
    chosen = load_preset(preset)
    result = register_volumes(
        task.fixed,
        task.moving,
        preset=with_features(chosen, features) if features else chosen,
        device=task.device,
        initial=None if task.start is None else AffineTransform(task.start),
        seed=task.seed,
    )
    return Outcome(
        _parts(result.transform, task),
        seconds={stage["name"]: stage["seconds"] for stage in result.report["stages"]},
        settings={"preset": result.report["preset"], **result.report["settings"]},
        warnings=tuple(result.report["warnings"]),
    )


def _parts(transform: Transform, task: Task) -> tuple[Matrix | Path, ...]:
    """A transform of this library as matrices and files of displacements."""
    from ..field import DisplacementField, displacement_on
    from ..image_io import read_image
    from ..transforms import AffineTransform, CompositeTransform

    parts: list[Matrix | Path] = []
    for part in transform.transforms if isinstance(transform, CompositeTransform) else (transform,):
        if isinstance(part, AffineTransform):
            parts.append(part.matrix)
            continue
        if not isinstance(part, DisplacementField):
            part = displacement_on(part, read_image(task.fixed).grid)
        file = task.folder / f"displacement{len(parts)}.mha"
        sitk.WriteImage(part.to_image(), str(file))
        parts.append(file)
    return tuple(parts)


def with_features(preset: Preset, features: str) -> Preset:
    """The preset on "sam", "mind" or "both".

    Raises:
        ValueError: for other features.
    """
    if features not in FEATURES:
        raise ValueError(f"no features {features!r}; there are {', '.join(FEATURES)}")
    changes = FEATURES[features]
    stages = tuple(
        replace(stage, settings={**stage.settings, **changes.get(stage.name, {})}) for stage in preset.stages
    )
    extractor = "mind" if features == "mind" else "sam"
    # A fallback to MIND would be reported under the wrong name.
    return replace(preset, features=extractor, fallback=None, stages=stages)
