"""The pairs whose points are looked up, with the truth: moved views of volumes, and two people with organs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SAMRegistrationLib.alignment.feature_alignment import body_grid
from SAMRegistrationLib.benchmark.geometry import rigid_about, rotation
from SAMRegistrationLib.body import Regions
from SAMRegistrationLib.grid import FloatArray, Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.image_io import read_image, read_labels
from SAMRegistrationLib.methods.sam_affine import aligned_volume
from SAMRegistrationLib.sampling import Interpolation
from SAMRegistrationLib.synthetic import contrast_phase, crop_field_of_view, noise
from SAMRegistrationLib.transforms import AffineTransform

SEED = 20261122
LARGEST_ANGLE, LARGEST_SHIFT_MM = 45.0, 200.0
SCALES = (0.9, 1.1)
KEPT = (0.6, 1.0)
CONTRAST_HU, NOISE_HU = 80.0, 25.0
BODY_MARGIN_MM = 10.0
MOST_POINTS = 100
LEAST_ORGAN_VOXELS = 20
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")
"""In the order of their labels, from 1 on."""

TUBES = ("SpinalCord", "Esophagus")
"""Organs whose contours end at arbitrary levels."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two volumes and points whose partners are known.

    Args:
        name: unique; those of moved views end in `_self`.
        fixed: the volume that the points belong to.
        moving: the volume in which they are looked for.
        points: (n, 3) in the fixed world, LPS mm.
        truth: (n, 3) in the moving world.
        organs: names of the organs whose centers the points are; empty for a moved view.
        tubes: of organs that are tubes, their center lines (k, 3) in the fixed and in the moving world, one point
            a slice.
        degrees: by how much a moved view is turned.
    """

    name: str
    fixed: Image
    moving: Image
    points: FloatArray
    truth: FloatArray
    organs: tuple[str, ...] = ()
    tubes: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    degrees: float = 0.0


def pairs_of(data: Path, split: Path) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """Names of all pairs and how to make them, both kinds in turn."""
    items = {item["name"]: item for item in json.loads((data / "manifest.json").read_text())["items"]}
    held_out = json.loads(split.read_text())
    people = [name for name in held_out["validation"] if name in items]
    trunk = [name for name in held_out["validation_trunk"] if items[name]["modality"] == "CT"]
    for index, name in enumerate([*people, *trunk]):
        file = data / items[name]["file"]
        yield f"{name}_self", lambda n=name, f=file, i=index: self_pair(n, read_image(f, "CT"), i)
        if index < len(people):
            other = people[(index + 1) % len(people)]
            yield f"{name}_{other}", lambda a=name, b=other: inter_pair(items[a], items[b], data)


def self_pair(name: str, volume: Image, seed: int) -> Pair:
    """A volume against a moved view of itself."""
    random = np.random.default_rng([SEED, seed])
    axis = random.normal(size=3)
    degrees = float(random.uniform(0, LARGEST_ANGLE))
    direction = random.normal(size=3)
    shift = direction / np.linalg.norm(direction) * random.uniform(0, LARGEST_SHIFT_MM)
    regions = Regions.of(volume)
    turn = rotation(axis / np.linalg.norm(axis), np.radians(degrees)) * random.uniform(*SCALES)
    to_moving = AffineTransform(rigid_about(turn, volume.grid.center, shift))
    moving = _moved(volume, to_moving, regions)
    moving = crop_field_of_view(moving, seed, keep=float(random.uniform(*KEPT)))
    moving = noise(contrast_phase(moving, seed, CONTRAST_HU), seed, NOISE_HU)
    points = body_grid(volume.with_data(_on(regions, volume.grid)), most=8 * MOST_POINTS)
    truth = to_moving.transform_points(points)
    shown = moving.grid.contains(truth)
    chosen = random.permutation(np.flatnonzero(shown))[:MOST_POINTS]
    return Pair(f"{name}_self", volume, moving, points[chosen], truth[chosen], degrees=degrees)


def _on(regions: Regions, grid: Grid) -> torch.Tensor:
    return regions.body_image.resampled(grid, Interpolation.NEAREST, default=0).data


def _moved(volume: Image, to_moving: AffineTransform, regions: Regions) -> Image:
    """The volume under a linear map, resampled on an upright grid around its body."""
    body = np.argwhere(regions.body.numpy())[:, ::-1]
    ends = to_moving.transform_points(regions.image.grid.to_world(body))
    low, high = ends.min(axis=0) - BODY_MARGIN_MM, ends.max(axis=0) + BODY_MARGIN_MM
    spacing = volume.grid.spacing
    size = np.ceil((high - low) / spacing).astype(int)
    grid = Grid(tuple(size), spacing, tuple(low + np.asarray(spacing) / 2))
    return aligned_volume(volume, to_moving.inverse(), grid)


def inter_pair(first: dict[str, Any], second: dict[str, Any], data: Path) -> Pair:
    """Two people with the centers of the organs that both have."""
    images, organs = [], []
    for item in (first, second):
        image = read_image(data / item["file"], "CT")
        labels = read_labels(data / item["labels"][0]["file"], image)
        images.append(image)
        organs.append(organ_voxels(labels))
    common = [name for name in organs[0] if name in organs[1]]
    points, truth = (
        np.array([image.grid.to_world(each[name].mean(axis=0)) for name in common])
        for image, each in zip(images, organs, strict=True)
    )
    lines = [
        {name: center_line(each[name], image.grid) for name in common if name in TUBES}
        for image, each in zip(images, organs, strict=True)
    ]
    tubes = {name: (lines[0][name], lines[1][name]) for name in lines[0]}
    return Pair(f"{first['name']}_{second['name']}", *images, points, truth, tuple(common), tubes)


def organ_voxels(labels: Image) -> dict[str, FloatArray]:
    """The voxels (n, 3) as (x, y, z) of every organ that has enough of them."""
    values = labels.data.numpy().astype(int)
    voxels = {name: np.argwhere(values == value)[:, ::-1] for value, name in enumerate(ORGANS, start=1)}
    return {name: inside for name, inside in voxels.items() if len(inside) >= LEAST_ORGAN_VOXELS}


def center_line(voxels: FloatArray, grid: Grid) -> FloatArray:
    """The center of an organ in every slice that has it (k, 3), from the lowest slice index to the highest."""
    slices = np.unique(voxels[:, 2])
    return grid.to_world(np.array([voxels[voxels[:, 2] == z].mean(axis=0) for z in slices]))
