"""Real CTs and their deformed copies, badly aligned inside a box, with streaks that nothing can align."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from SAMRegistrationLib import DisplacementField, Image, RegionOfInterest, read_image
from SAMRegistrationLib.body import body_mask
from SAMRegistrationLib.synthetic import Deformation, ElasticMotion, deform, elastic, noise, streaks
from SAMRegistrationLib.synthetic.streaks import METAL_HU

VOLUMES = (
    "thorax/lidc0314.nii.gz",
    "thorax/lidc0405.nii.gz",
    "thorax/cmbcrc01068.nii.gz",
    "thorax/acrin6668_042.nii.gz",
    "lung_pairs/plm_t0.nii.gz",
    "abdomen/ts_example.nii.gz",
    "abdomen_ct_cbct/panc001_ct.nii.gz",
    "head_neck/vhm_head.nii.gz",
    "legs/vhf_legs.nii.gz",
)
"""The CTs that hold a box of 64 voxels and its margin; one phase of the one that has several."""

FIRST_SEED, SEEDS_PER_VOLUME = 100, 10
BOX_VOXELS = 64
MARGIN_MM = 20.0
GLOBAL_MM, GLOBAL_SCALE_MM = 8.0, 40.0
NOISE_HU = 10.0


@dataclass(frozen=True)
class Case:
    """A pair with its truth and the box that a person would draw."""

    name: str
    fixed: Image
    moving: Image
    truth: Deformation
    box: RegionOfInterest


@dataclass(frozen=True)
class LocalMotion:
    """How large the motion in the box is, in mm, and at which scale."""

    amplitude: float
    scale: float


def make_case(data: Path, volume: str, motion: LocalMotion) -> Case:
    """A volume of the data folder and its deformed copy, both with noise and streaks of their own."""
    image = read_image(data / volume, "CT")
    seed = FIRST_SEED + SEEDS_PER_VOLUME * VOLUMES.index(volume)
    body = torch.nonzero(body_mask(image)).double().mean(dim=0).flip(0).numpy()
    half = np.asarray(image.grid.spacing) * (BOX_VOXELS / 2 - 0.01)
    center = image.grid.to_world(np.rint(body) - 0.5)
    box = RegionOfInterest(center, half)
    truth = elastic(image, seed, GLOBAL_MM, GLOBAL_SCALE_MM).then(local_motion(image, box, seed + 1, motion))
    fixed = noise(streaked(image, box, seed + 2), seed + 3, NOISE_HU)
    moving = noise(streaked(deform(image, truth), box, seed + 4), seed + 5, NOISE_HU)
    return Case(Path(volume).name.removesuffix(".nii.gz"), fixed, moving, truth, box)


def streaked(image: Image, box: RegionOfInterest, seed: int) -> Image:
    """A volume with metal and streaks; the metal itself lies beside the box, where a person would draw none."""
    inside = box.mask(image.grid)
    for trial in range(seed, seed + 1000, 37):
        found = streaks(image, trial)
        if not bool(((found.data >= METAL_HU) & (image.data < METAL_HU))[inside].any()):
            return found
    raise ValueError(f"the metal of every seed from {seed} on lies in the box")


def local_motion(image: Image, box: RegionOfInterest, seed: int, motion: LocalMotion) -> Deformation:
    """An elastic motion of a small scale that is confined to a box."""
    margin = 0.3 * float(box.half_size.min())
    inner = box.grown(-margin)
    (step,) = elastic(image, seed, motion.amplitude, motion.scale).steps
    assert isinstance(step, ElasticMotion)
    window = inner.weight(step.field.grid, margin)
    return Deformation((ElasticMotion(DisplacementField(step.field.data * window, step.field.grid)),))
