"""SAM-affine: a linear alignment by matched embeddings, repeated on the aligned volume where that may help.

Tian et al., SAME (MICCAI 2021), section 2.2. Embeddings bear moderate turns only. Of a patient turned further they
find no partners, and intensities decide; then the embeddings of the moving volume, turned back, decide again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from ..alignment import Alignment, align, judge
from ..features.base import FeatureExtractor, Features
from ..grid import Grid
from ..image import Image
from ..sampling import sample, voxel_mesh
from ..transforms import AffineTransform

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
    moving_features = extractor.extract(moving)
    first = align(fixed, moving, features, moving_features, model, initial, fixed_mask, moving_mask, seed)
    if features.coarse is None or _turn_as_stored(first.transform, fixed, moving) <= LARGE_TURN_DEGREES:
        return first
    aligned = aligned_volume(moving, first.transform, fixed.grid)
    again = extractor.extract(aligned)
    second = align(fixed, aligned, features, again, model, AffineTransform(), fixed_mask, seed=seed)
    transform = first.transform.compose(second.transform)
    score = judge(fixed, moving, transform, fixed_mask, moving_mask, seed)
    # Turned embeddings do not match; where upright ones do, they are trusted more than intensities, as in `align`.
    if (second.method == "features" and not second.warnings) or score > first.score:
        return replace(second, transform=transform, score=score)
    return first


def aligned_volume(moving: Image, transform: AffineTransform, grid: Grid) -> Image:
    """The moving volume as it lies on a fixed grid under a linear map; its background outside."""
    to_moving = moving.grid.world_to_voxel @ transform.matrix @ grid.voxel_to_world
    mesh = voxel_mesh(grid.shape, to_moving, moving.data.device)
    values = sample(moving.tensor(), mesh, fill=moving.background)[0, 0]
    return Image(values, grid, moving.pixel_type, moving.modality)


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
