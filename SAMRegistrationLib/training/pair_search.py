"""Finds correspondences between training subjects: registers them both ways and keeps what agrees.

A place counts if the way there and back ends where it began, if both ends lie inside the bodies, if the map
neither folds nor crushes its neighborhood, and if matching by the embedding itself leads to about the same place.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, NotEnoughMemoryError, RegistrationError, is_out_of_memory
from ..features.base import FeatureExtractor, FeatureMap, Features
from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..methods.problem import Problem
from ..pipeline import working_grid
from ..presets import Preset, Stage
from ..sampling import Outside, affine_map, sample_points, voxel_mesh
from ..stages import check_stages, run_stage
from ..transforms import Transform
from .cache import OUTSIDE, CachedVolume
from .pseudo_pairs import LATTICE_MM, PseudoPair, lattice_shape, pair_file_name, write_pseudo_pair

LARGEST_CYCLE_ERROR_MM = 4.0
SANE_JACOBIAN = (0.25, 4.0)
NEIGHBOR_MM = 4.0
"""Partners must look as much alike as places so far apart in one body usually do.

Carried-over labels of one pair of head-and-neck scans decided: with 4 mm 79 % of the kept places end in the same
structure, with 6 mm 72 %, and of all places 71 %.
"""

SEARCH_VOXELS = 4
MATCH_DISTANCE_MM = 8.0
"""Within so many feature voxels of its partner, the best match of a place lies no farther from it."""

LEAST_KEPT_SHARE = 0.05
"""Of the fixed body; where less agrees, the two scans show different parts, or the alignment went astray."""

ATTEMPTS_PER_PAIR = 50

PAIR_PRESET = Preset(
    name="pseudo-pairs",
    summary="Alignment, one wide search in both directions, and a short descent.",
    features="sam",
    fallback=None,
    spacing=2.0,
    stages=(
        Stage("align", {"model": "affine"}),
        Stage("convex_search", {"mind_share": 0.6}),
        Stage(
            "instance_optimization",
            {
                "block": 2,
                "lattice": 2,
                "iterations": 60,
                "learning_rate": 0.7,
                "control_spacing": 1,
                "smoothing": 2,
                "diffusion": 0.7,
                "mind_weight": 12.0,
                "feature_weight": 3.0,
            },
        ),
    ),
)


class _KeptFeatures:
    """An extractor that embeds each of two given volumes once, however often they are asked for."""

    def __init__(self, extractor: FeatureExtractor, volumes: tuple[Image, Image]) -> None:
        self.name = extractor.name
        self.spacing = extractor.spacing
        self.suits = extractor.suits
        self.feature_grids = extractor.feature_grids
        self._extractor = extractor
        self._kept = {_place_of(volume.data): extractor.extract(volume) for volume in volumes}

    def extract(self, image: Image) -> Features:
        """The features of a volume, with the grids they lie on."""
        kept = self._kept.get(_place_of(image.data))
        return self._extractor.extract(image) if kept is None else kept

    def extract_tensor(self, volume: Tensor) -> tuple[Tensor, Tensor | None]:
        """The features of a volume that is sampled as the extractor wants it."""
        kept = self._kept.get(_place_of(volume))
        if kept is None:
            return self._extractor.extract_tensor(volume)
        return kept.fine.data, None if kept.coarse is None else kept.coarse.data


def _place_of(volume: Tensor) -> tuple[object, ...]:
    """Where a volume (..., z, y, x) lies in memory, which tells it from all others as long as it is kept."""
    return volume.data_ptr(), tuple(volume.shape[-3:]), volume.stride()[-3:]


def draw_pairs(volumes: list[CachedVolume], count: int, seed: int) -> list[tuple[CachedVolume, CachedVolume]]:
    """Up to `count` different pairs of different subjects of one region, none in both orders.

    A region is drawn as often as in training: by the square root of its number of volumes.

    Raises:
        InputError: if no region has two subjects.
    """
    regions: dict[str, list[CachedVolume]] = {}
    for volume in volumes:
        regions.setdefault(volume.region, []).append(volume)
    usable = [members for members in regions.values() if len({volume.subject for volume in members}) > 1]
    if not usable:
        raise InputError("There are no two subjects of one body region to make pairs of.")
    generator = random.Random(seed)
    weights = [math.sqrt(len(members)) for members in usable]
    drawn: dict[frozenset[str], tuple[CachedVolume, CachedVolume]] = {}
    for _ in range(ATTEMPTS_PER_PAIR * count):
        if len(drawn) == count:
            break
        first, second = generator.sample(generator.choices(usable, weights)[0], 2)
        if first.subject != second.subject:
            drawn.setdefault(frozenset((first.name, second.name)), (first, second))
    return list(drawn.values())


def find_pseudo_pairs(
    pairs: list[tuple[CachedVolume, CachedVolume]],
    extractor: FeatureExtractor,
    folder: Path,
    *,
    preset: Preset = PAIR_PRESET,
    device: torch.device | str = "cpu",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Write the file of every pair that has none yet in `folder`, and say what share of it was kept.

    A pair that does not fit into memory is left out, so that a later call tries it again.

    Raises:
        InputError: if the preset is not valid.
        RegistrationError: if a file cannot be written.
    """
    check_stages(preset.stages)
    for index, (fixed, moving) in enumerate(pairs):
        label = f"{index + 1}/{len(pairs)} {fixed.name} {moving.name}"
        if (folder / pair_file_name(fixed.name, moving.name)).is_file():
            say(f"{label}: there already")
            continue
        try:
            pair, sentence = search_pair(fixed, moving, extractor, preset=preset, device=device, seed=seed)
            write_pseudo_pair(folder, pair)
            say(f"{label}: {sentence}")
        except OSError as error:
            raise RegistrationError(f"{folder} cannot be written: {error}.") from error
        except (RuntimeError, MemoryError, NotEnoughMemoryError) as error:
            if not isinstance(error, NotEnoughMemoryError) and not is_out_of_memory(error):
                raise
            say(f"{label}: left out, memory ran out")


def search_pair(
    fixed: CachedVolume,
    moving: CachedVolume,
    extractor: FeatureExtractor,
    *,
    preset: Preset = PAIR_PRESET,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[PseudoPair, str]:
    """Register two cached volumes both ways; what agrees, and a sentence on how much that is.

    A pair that cannot be aligned, or of which less than `LEAST_KEPT_SHARE` agrees, is given as rejected.
    """
    rejected = PseudoPair.rejected(fixed.name, moving.name, fixed.spacing)
    volumes = image_of(fixed, device), image_of(moving, device)
    features = _KeptFeatures(extractor, volumes)
    try:
        there = _registered(volumes, features, preset, seed)
        back = _registered(volumes[::-1], features, preset, seed)
    except InputError as error:
        return rejected, f"rejected, {error}"
    codes = [torch.from_numpy(volume.labels()).to(device) for volume in (fixed, moving)]
    pair, share = _agreeing(fixed, moving, (there, back), features, volumes, (codes[0], codes[1]))
    if share < LEAST_KEPT_SHARE:
        return rejected, f"rejected, only {share:.0%} of the body agrees"
    return pair, f"kept {share:.0%} of the body"


def image_of(volume: CachedVolume, device: torch.device | str) -> Image:
    """A cached volume in its own frame (axes along x, y, z, first voxel at 0), padded for the solver's levels."""
    array = torch.from_numpy(volume.image())
    grid = Grid((array.shape[2], array.shape[1], array.shape[0]), (volume.spacing,) * 3)
    image = Image(array.to(device).float(), grid, "int16", "CT")
    return image.resampled(working_grid(grid, volume.spacing))


def _registered(volumes: tuple[Image, Image], features: FeatureExtractor, preset: Preset, seed: int) -> Transform:
    problem = Problem(volumes[0], volumes[1], features, seed=seed)
    for stage in preset.stages:
        run_stage(problem, stage, None)
    return problem.transform()


def _agreeing(
    fixed: CachedVolume,
    moving: CachedVolume,
    maps: tuple[Transform, Transform],
    features: FeatureExtractor,
    volumes: tuple[Image, Image],
    codes: tuple[Tensor, Tensor],
) -> tuple[PseudoPair, float]:
    """The pair, and which share of the fixed body agrees."""
    shape = lattice_shape(codes[0].shape, fixed.spacing)
    grid = Grid((shape[2], shape[1], shape[0]), (LATTICE_MM,) * 3)
    places = voxel_mesh(shape, grid.voxel_to_world, codes[0].device)
    mapped = maps[0].map_world(places)
    displacement = mapped - places
    cycle_error = (maps[1].map_world(mapped) - places).norm(dim=0)
    jacobian = DisplacementField(displacement[None], grid).jacobian_determinant()[0, 0]
    body = _inside(codes[0], places, fixed.spacing)
    agrees = (
        body
        & _inside(codes[1], mapped, moving.spacing)
        & (cycle_error < LARGEST_CYCLE_ERROR_MM)
        & (jacobian > SANE_JACOBIAN[0])
        & (jacobian < SANE_JACOBIAN[1])
    )
    own, other = (features.extract(volume).joined() for volume in volumes)
    agrees[agrees.clone()] = _alike(own, other, places[:, agrees], mapped[:, agrees])
    share = float(agrees.sum()) / max(1, int(body.sum()))
    return PseudoPair(fixed.name, moving.name, fixed.spacing, displacement.half().cpu(), agrees.cpu()), share


def _inside(codes: Tensor, positions: Tensor, spacing: float) -> Tensor:
    """Whether positions (3, ...) in mm of a cached volume's frame lie inside its body."""
    voxel = (positions / spacing).round().long()
    size = torch.tensor(codes.shape[::-1], device=codes.device).view(3, *[1] * (positions.dim() - 1))
    within = ((voxel >= 0) & (voxel < size)).all(dim=0)
    x, y, z = voxel.clamp(min=0).minimum(size - 1).unbind(0)
    return within & (codes[z, y, x] != OUTSIDE)


def _vectors(features: FeatureMap, positions: Tensor) -> Tensor:
    """Unit vectors (n, C) at positions (3, n) in mm."""
    voxels = affine_map(features.grid.world_to_voxel, positions).T
    return functional.normalize(sample_points(features.data, voxels, Outside.EDGE), dim=1)


def _alike(own: FeatureMap, other: FeatureMap, places: Tensor, mapped: Tensor) -> Tensor:
    """Whether a place and its partner look alike, and no place some way off looks more so.

    Args:
        own: joined features of the volume of `places`.
        other: joined features of the volume of `mapped`.
        places: (3, n) in mm.
        mapped: (3, n) in mm, the partners.

    Returns:
        (n,) bool.
    """
    vectors = _vectors(own, places)
    similarity = (vectors * _vectors(other, mapped)).sum(dim=1)
    shifts = torch.eye(3, device=places.device) * NEIGHBOR_MM
    neighbors = [_vectors(own, places + shift[:, None]) for shift in (*shifts, *-shifts)]
    usual = torch.stack([(vectors * neighbor).sum(dim=1) for neighbor in neighbors]).mean(dim=0)
    if len(usual) == 0:
        return torch.zeros_like(usual, dtype=torch.bool)
    return (similarity > usual.median()) & (_distance_of_match(vectors, other, mapped) <= MATCH_DISTANCE_MM)


def _distance_of_match(vectors: Tensor, other: FeatureMap, mapped: Tensor) -> Tensor:
    """How far from the partner (3, n) the most similar of `SEARCH_VOXELS` around lies, (n,) in mm."""
    rows = other.data[0].flatten(1).T.contiguous()
    size = torch.tensor(other.data.shape[:1:-1], device=mapped.device)
    middle = affine_map(other.grid.world_to_voxel, mapped).T
    nearest = middle.round().long()
    best = torch.full_like(middle[:, 0], -2.0)
    distance = torch.zeros_like(best)
    for offset in _ball(SEARCH_VOXELS):
        voxel = nearest + torch.tensor(offset, device=mapped.device)
        x, y, z = voxel.clamp(min=0).minimum(size - 1).unbind(1)
        similarity = (vectors * rows[(z * size[1] + y) * size[0] + x]).sum(dim=1)
        better = (similarity > best) & ((voxel >= 0) & (voxel < size)).all(dim=1)
        best = torch.where(better, similarity, best)
        distance = torch.where(better, (voxel - middle).norm(dim=1), distance)
    return distance * other.grid.spacing[0]


def _ball(radius: int) -> list[tuple[int, ...]]:
    steps = range(-radius, radius + 1)
    return [offset for offset in itertools.product(steps, repeat=3) if math.hypot(*offset) <= radius]
