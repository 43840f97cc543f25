"""Pairs with known truth: a real CT as the fixed volume, and what a generated motion makes of it as the other.

An entry of a suite names a `volume`, a `seed`, the steps of its `motion` and the changes of appearance of each
side, every step by its `kind` and the options of the function of that name in `synthetic`:

    {"name": "breath", "dataset": "generated", "volume": "thorax/a.nii.gz", "seed": 1,
     "motion": [{"kind": "breathing", "amplitude_mm": -15}], "moving": [{"kind": "noise", "sigma_hu": 20}]}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import synthetic
from ..body import body_mask
from ..errors import InputError
from ..image import Image
from ..image_io import read_image
from .datasets import Dataset
from .geometry import stored
from .pairs import Pair, Start, Truth

NEAR_SLIDING_MM = 10.0
AWAY, NEAR = 1, 2
"""Values of the mask of a generated pair: the body, and of it what lies close to a sliding surface."""

MOTIONS: dict[str, Callable[..., synthetic.Deformation]] = {
    "breathing": synthetic.breathing,
    "elastic": synthetic.elastic,
    "rotation": synthetic.rotation,
}
CHANGES: dict[str, Callable[..., Image]] = {
    "contrast_phase": synthetic.contrast_phase,
    "crop_field_of_view": synthetic.crop_field_of_view,
    "noise": synthetic.noise,
    "shading": synthetic.shading,
    "streaks": synthetic.streaks,
    "thick_slices": synthetic.thick_slices,
    "trim": synthetic.trim,
}

Step = dict[str, Any]


def read_pairs(dataset: Dataset) -> list[Pair]:
    """One pair per entry; nothing is generated before the pair is prepared.

    Raises:
        InputError: if an entry names a volume, a motion, a change or an option that there is not.
    """
    return [_pair(entry, dataset) for entry in dataset.entries]


def _pair(entry: dict[str, Any], dataset: Dataset) -> Pair:
    name = entry["name"]
    volume = dataset.root / entry.get("volume", "")
    if not volume.is_file():
        raise InputError(f"pair {name!r} needs {volume}, which is not there (see --data)")
    recipe = Recipe(
        int(entry.get("seed", 0)),
        _checked(entry.get("motion", ()), MOTIONS, name),
        _checked(entry.get("fixed", ()), CHANGES, name),
        _checked(entry.get("moving", ()), CHANGES, name),
    )
    if not recipe.motion:
        raise InputError(f"pair {name!r} of the suite has no motion")
    return Pair(
        name=name,
        family=entry.get("family", dataset.name),
        fixed=volume,
        moving=volume,
        start=Start.IDENTITY,
        same_contrast=bool(entry.get("same_contrast", True)),
        preparation=recipe,
    )


def _checked(steps: Sequence[Step], known: dict[str, Callable[..., Any]], name: str) -> tuple[Step, ...]:
    for step in steps:
        if step.get("kind") not in known:
            raise InputError(f"pair {name!r}: unknown step {step.get('kind')!r}; there are {', '.join(known)}")
        options = set(inspect.signature(known[step["kind"]]).parameters) - {"image", "seed"}
        if unknown := sorted(step.keys() - options - {"kind"}):
            raise InputError(f"pair {name!r}: {step['kind']} has no option {unknown[0]!r}")
    return tuple(steps)


@dataclass(frozen=True)
class Recipe:
    """How a pair is generated from one volume; as a preparation it writes the pair's files.

    Args:
        seed: of the first random step; each further one takes the next number.
        motion: steps of the deformation, the first one first.
        fixed: changes of the fixed volume's appearance.
        moving: changes of the moving volume's appearance, after the motion.
    """

    seed: int
    motion: tuple[Step, ...]
    fixed: tuple[Step, ...] = ()
    moving: tuple[Step, ...] = ()

    def prepare(self, pair: Pair, folder: Path) -> Pair:
        files = {part: folder / f"{pair.name}_{part}.nii.gz" for part in ("fixed", "moving", "truth", "mask")}
        if not all(file.is_file() for file in files.values()):
            made = generate(read_image(pair.fixed), self)
            parts = {
                "fixed": made.fixed.to_sitk("int16"),
                "moving": made.moving.to_sitk("int16"),
                "truth": made.deformation.displacement(made.fixed.grid).to_image(),
                "mask": made.mask.to_sitk("uint8"),
            }
            files = {part: stored(folder, f"{pair.name}_{part}", image) for part, image in parts.items()}
        return replace(
            pair,
            fixed=files["fixed"],
            moving=files["moving"],
            truth=Truth(files["mask"], field=files["truth"]),
            preparation=None,
        )


@dataclass(frozen=True, eq=False)
class GeneratedPair:
    """Two volumes and the map between them.

    Args:
        fixed: the given volume with its changes of appearance.
        moving: the deformed one with its own.
        deformation: from fixed to moving world.
        mask: on the fixed grid `AWAY` in the body, `NEAR` within 10 mm of a sliding surface, 0 outside the body.
    """

    fixed: Image
    moving: Image
    deformation: synthetic.Deformation
    mask: Image


def generate(volume: Image, recipe: Recipe) -> GeneratedPair:
    """Carry out a recipe; the same recipe and volume give the same pair.

    Raises:
        ValueError: if the volume cannot be deformed so, such as breathing without lungs.
    """
    seeds = iter(range(recipe.seed, recipe.seed + len(recipe.motion) + len(recipe.fixed) + len(recipe.moving)))
    deformation = synthetic.Deformation(())
    for step in recipe.motion:
        deformation = deformation.then(_applied(MOTIONS, step, volume, next(seeds)))
    moving = synthetic.deform(volume, deformation)
    fixed = volume
    for step in recipe.fixed:
        fixed = _applied(CHANGES, step, fixed, next(seeds))
    for step in recipe.moving:
        moving = _applied(CHANGES, step, moving, next(seeds))
    body = body_mask(fixed)
    near = deformation.slip_distance(fixed.grid) <= NEAR_SLIDING_MM
    mask = torch.where(near, float(NEAR), float(AWAY)) * body
    return GeneratedPair(fixed, moving, deformation, fixed.with_data(mask))


def _applied(functions: dict[str, Callable[..., Any]], step: Step, image: Image, seed: int) -> Any:
    options = {key: value for key, value in step.items() if key != "kind"}
    function = functions[step["kind"]]
    if "seed" in inspect.signature(function).parameters:
        options["seed"] = seed
    return function(image, **options)


def near_sliding(mask: Path) -> np.ndarray[Any, Any] | None:
    """The voxels (z, y, x) of a generated mask that lie close to a sliding surface; None if there are none."""
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    return values == NEAR if (values == NEAR).any() else None
