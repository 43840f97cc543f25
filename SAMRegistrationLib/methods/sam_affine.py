"""SAM-affine: a linear alignment by matched embeddings, repeated on the aligned volume where that may help.

Tian et al., SAME (MICCAI 2021), section 2.2. Embeddings bear moderate turns only. Where too few matches agree, the
moving volume is tried turned by quarters in the axial plane. What intensities or turned embeddings find is then
matched once more with the embeddings of the moving volume as it was aligned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..alignment import Alignment, PlacedFeatures, agreement, align, judge
from ..features.base import FeatureExtractor, Features
from ..field import displacement_on
from ..grid import Grid
from ..image import Image
from ..sampling import Interpolation, sample_mapped, voxel_mesh
from ..transforms import AffineTransform, Transform

QUARTER_TURNS = (90, 180, 270)
"""Degrees about the long axis that are tried where a patient as stored is not recognized."""

LARGE_TURN_DEGREES = 15.0
"""From here on the features of the aligned volume are worth extracting."""


def sam_affine(
    fixed: Image,
    moving: Image,
    extractor: FeatureExtractor,
    *,
    model: str = "affine",
    initial: AffineTransform | None = None,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
    fixed_features: Features | None = None,
) -> Alignment:
    """Align two volumes by an extractor's features.

    Args:
        fixed: any volume.
        moving: any volume.
        extractor: of embeddings; with features that have no coarse map the volumes are aligned by intensities.
        model: "affine", "similarity", "rigid" or "translation".
        initial: where to begin.
        fixed_mask: (z, y, x) bool on the fixed grid.
        moving_mask: (z, y, x) bool on the moving grid.
        seed: of everything random.
        fixed_features: of the fixed volume by this extractor, where they are known already.

    Raises:
        InputError: if no plausible alignment is found.
    """
    features = fixed_features or extractor.extract(fixed)
    options: dict[str, Any] = {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "seed": seed}
    stored = extractor.extract(moving)
    found = _align_as_stored(fixed, moving, extractor, features, stored, model, initial, options)
    if features.coarse is None or found.reliable or initial is not None:
        return found
    recognized = _recognized_turn(fixed, moving, extractor, features, options)
    if recognized is None:
        return found
    turn, turned, turned_features = recognized
    upright = _align_as_stored(fixed, turned, extractor, features, turned_features, model, None, options)
    back = turn.inverse()
    embedded = upright.embedded and upright.embedded.followed_by(back)
    return replace(upright, transform=back.compose(upright.transform), embedded=embedded)


def _align_as_stored(
    fixed: Image,
    moving: Image,
    extractor: FeatureExtractor,
    features: Features,
    moving_features: Features,
    model: str,
    initial: AffineTransform | None,
    options: dict[str, Any],
) -> Alignment:
    """Align, and once more with the features of the aligned volume if that was turned far."""
    first = align(fixed, moving, features, moving_features, model, initial, **options)
    if features.coarse is None or _turn_as_stored(first.transform, fixed, moving) <= LARGE_TURN_DEGREES:
        return replace(first, embedded=PlacedFeatures(moving_features, AffineTransform()))
    aligned = aligned_volume(moving, first.transform, fixed.grid)
    again = extractor.extract(aligned)
    options_again = {**options, "moving_mask": None}
    second = align(fixed, aligned, features, again, model, AffineTransform(), **options_again)
    transform = first.transform.compose(second.transform)
    score = judge(fixed, moving, transform, **options)
    # Turned embeddings do not match; where upright ones do, they are trusted more than intensities, as in `align`.
    if (second.method == "features" and not second.warnings) or score > first.score:
        embedded = PlacedFeatures(again, first.transform)
        return replace(second, transform=transform, score=score, embedded=embedded)
    return first


def _recognized_turn(
    fixed: Image, moving: Image, extractor: FeatureExtractor, features: Features, options: dict[str, Any]
) -> tuple[AffineTransform, Image, Features] | None:
    """The quarter turn after which most matches agree, with the turned volume and its features.

    None if too few agree after any.
    """
    best, most = None, 0.0
    for degrees in QUARTER_TURNS:
        turn = quarter_turn(moving.grid, degrees)
        turned = replace(moving, grid=turned_grid(moving.grid, turn))
        turned_features = extractor.extract(turned)
        share = agreement(fixed, turned, features, turned_features, **options)
        if share > most:
            best, most = (turn, turned, turned_features), share
    return best


def quarter_turn(grid: Grid, degrees: int) -> AffineTransform:
    """The rotation by a multiple of 90 degrees about the long (S) axis through a grid's center."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[degrees // 90 % 4]
    return AffineTransform.about_center([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], grid.center)


def turned_grid(grid: Grid, turn: AffineTransform) -> Grid:
    """The same voxels after a rigid motion."""
    return Grid.from_voxel_to_world(grid.size, turn.matrix @ grid.voxel_to_world)


def aligned_volume(
    moving: Image,
    transform: Transform,
    grid: Grid,
    interpolation: Interpolation = Interpolation.LINEAR,
    fill: float | None = None,
) -> Image:
    """The moving volume as it lies on a fixed grid under a map; `fill`, or its background, outside."""
    device = moving.data.device
    if not isinstance(transform, AffineTransform):
        return displacement_on(transform, grid).to(device).warp(moving, interpolation, fill)
    # A linear map needs no displacement of every voxel in memory.
    to_moving = moving.grid.world_to_voxel @ transform.matrix @ grid.voxel_to_world
    values = sample_mapped(
        moving.tensor(),
        grid.shape,
        lambda slab: voxel_mesh(grid.shape, to_moving, device, slab),
        interpolation,
        fill=moving.background if fill is None else fill,
    )
    return Image(values[0, 0], grid, moving.pixel_type, moving.modality)


def _turn_as_stored(transform: AffineTransform, fixed: Image, moving: Image) -> float:
    """How far the contents are turned as features see them, along the stored axes closest to L, P, S."""
    to_world, from_world = fixed.canonical().grid.axes, moving.canonical().grid.axes.T
    matrix = np.eye(4)
    matrix[:3, :3] = from_world @ transform.matrix[:3, :3] @ to_world
    return turn_degrees(AffineTransform(matrix))


def turn_degrees(transform: AffineTransform) -> float:
    """The angle of the rotation closest to a linear map."""
    u, _, vt = np.linalg.svd(transform.matrix[:3, :3])
    return float(np.rad2deg(np.arccos(np.clip((np.trace(u @ vt) - 1) / 2, -1, 1))))
