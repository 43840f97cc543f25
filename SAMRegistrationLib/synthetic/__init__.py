"""Pairs with known truth: a real CT under generated deformations and changes of appearance, all from a seed.

The given volume is the fixed one; `deform` makes the moving one from it, such that the moving volume at
`deformation.transform_points(x)` shows what the fixed one shows at x.

    motion = breathing(image, seed=1, amplitude_mm=15).then(rotation(image, seed=1, degrees=10))
    moving = noise(deform(image, motion), seed=1)
    truth = motion.displacement(image.grid)
"""

from .appearance import contrast_phase, crop_field_of_view, noise, shading, thick_slices, trim
from .breathing import BreathingMotion, breathing
from .deformation import Deformation, ElasticMotion, Step, deform
from .motions import elastic, rotation
from .streaks import streaks

__all__ = [
    "BreathingMotion",
    "Deformation",
    "ElasticMotion",
    "Step",
    "breathing",
    "contrast_phase",
    "crop_field_of_view",
    "deform",
    "elastic",
    "noise",
    "rotation",
    "shading",
    "streaks",
    "thick_slices",
    "trim",
]
