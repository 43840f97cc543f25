"""How much memory a registration takes at its peak, known before it starts."""

from __future__ import annotations

import torch

from .features.base import FeatureExtractor
from .features.memory import require_memory
from .grid import Grid
from .presets import Preset

# Measured on a CPU as the growth of the process between two sizes of volume, with a tenth added.
BYTES_PER_WORKING_VOXEL = {
    "align": 100,
    "message_passing": 150,
    "learned": 400,
    "convex_search": 150,
    "instance_optimization": 230,
    "convexadam": 130,
    "sam_coarse": 170,
    "samconvex": 260,
}
"""Peak of every stage on MIND features, in bytes per voxel of the working grid."""

_UNKNOWN_STAGE = max(BYTES_PER_WORKING_VOXEL.values())

BYTES_ON_NETWORK_FEATURES = {"align": 180, "convex_search": 180, "instance_optimization": 180}
"""The same on features of a network, with the embedding of volumes; 174 between 128 and 256 cubed."""

NETWORK_BYTES_PER_WORKING_VOXEL = 400
"""What every other stage on features of a network stays below."""

RESULT_BYTES_PER_VOXEL = 80
"""Displacement, warped volume and their measures, per voxel of the fixed volume; always on the CPU."""

FIXED_BYTES = 150_000_000
"""Weights, libraries and small things, whatever the size of the volumes."""


def working_memory(preset: Preset, extractor: FeatureExtractor, voxels: int) -> int:
    """Bytes at the peak of a preset's stages, for `voxels` voxels of the larger volume at the working spacing."""
    costs = [BYTES_PER_WORKING_VOXEL.get(stage.name, _UNKNOWN_STAGE) for stage in preset.stages]
    if extractor.name != "mind":
        costs += [
            BYTES_ON_NETWORK_FEATURES.get(stage.name, NETWORK_BYTES_PER_WORKING_VOXEL) for stage in preset.stages
        ]
    return FIXED_BYTES + max(costs) * voxels


def require_memory_for(
    preset: Preset, extractor: FeatureExtractor, working: Grid, moving: Grid, fixed: Grid, device: torch.device
) -> None:
    """Refuse a registration that would not fit, before it starts.

    Args:
        preset: what is to be run.
        extractor: the features it uses.
        working: the fixed volume's grid at the working spacing.
        moving: the moving volume's grid at about the working spacing.
        fixed: the fixed volume's own grid, on which the result is given.
        device: where the stages run.

    Raises:
        NotEnoughMemoryError: if less is free than the largest part of it needs.
    """
    voxels = max(working.number_of_voxels, moving.number_of_voxels)
    size = " x ".join(str(n) for n in working.size)
    advice = "crop the volumes" + (f', or take the preset "{preset.lighter}"' if preset.lighter else "")
    needed = working_memory(preset, extractor, voxels)
    require_memory(needed, device, f'the preset "{preset.name}" at {size} voxels', advice)
    size = " x ".join(str(n) for n in fixed.size)
    needed = FIXED_BYTES + RESULT_BYTES_PER_VOXEL * fixed.number_of_voxels
    require_memory(needed, "cpu", f"the result on {size} voxels", "crop the fixed volume or make it coarser")
