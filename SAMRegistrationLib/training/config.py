"""Every constant of a training run, with the values of the shipped recipe as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .settings import LoopSettings, from_plain


@dataclass(frozen=True)
class ViewConfig:
    """How two views of one volume are cut out; lengths in mm, angles in degrees.

    Args:
        shape: voxels of a view (z, y, x), multiples of 16.
        spacing: smallest and largest voxel size common to both views, drawn log-uniformly.
        scale: largest factor by which one view's voxel size deviates from the common one, either way.
        tilt, turn: standard deviations of the rotations about x and y, and about z.
        largest_angle: where those are cut off.
        quarter_turn_probability: how often one view is turned about z by up to `quarter_turn`.
        elastic: largest standard deviation of the control points of the elastic deformation.
        elastic_grid: control points (z, y, x) per view.
        offset: standard deviation of the distance between the view centers along each axis.
        far_probability, far_offset: how often the views lie far apart, and how far.
        label_probability: how often a view is centered near a labelled voxel instead of any body voxel.
    """

    shape: tuple[int, int, int] = (112, 112, 128)
    spacing: tuple[float, float] = (1.8, 3.0)
    scale: float = 1.25
    tilt: float = 8.0
    turn: float = 10.0
    largest_angle: float = 25.0
    quarter_turn_probability: float = 0.2
    quarter_turn: float = 100.0
    elastic: float = 7.0
    elastic_grid: tuple[int, int, int] = (5, 5, 6)
    offset: float = 20.0
    far_probability: float = 0.15
    far_offset: float = 60.0
    label_probability: float = 0.6


@dataclass(frozen=True)
class PhotometricConfig:
    """How often each change of the grey values happens to a view, and how strong it may be.

    Of a view cut to a slab, as a scan ends above and below, `slab_share` of its length along the body is left.
    """

    noise_probability: float = 0.5
    noise_hu: float = 60.0
    blur_probability: float = 0.25
    blur_voxels: float = 1.2
    thick_slice_probability: float = 0.25
    contrast_probability: float = 0.5
    contrast_hu: float = 120.0
    window_probability: float = 0.5
    shading_probability: float = 0.2
    shading_hu: float = 120.0
    streak_probability: float = 0.1
    streak_hu: float = 300.0
    cut_probability: float = 0.4
    slab_probability: float = 0.2
    slab_share: tuple[float, float] = (0.3, 0.75)
    erosion_probability: float = 0.3


@dataclass(frozen=True)
class LossConfig:
    """InfoNCE and contrast between subjects; lengths in mm.

    Args:
        queries: points per direction of a pair of views (published: 100).
        pool: places drawn per view, of which negatives are taken.
        mined_negatives: per point, the most similar wrong places of the other view's whole extent, for the pool.
        hard_negatives, random_negatives, other_negatives: per point, the most similar places of both views, any
            places of both views, and (coarse only) places of other body regions.
        temperature: 0.07, not the published 0.5, for the vectors are few and short.
        fine_radius, coarse_radius: negatives lie farther than this from the point.
        organ_queries, organ_targets: places per structure that look for it, and that are to be found.
        organ_negatives: the most similar wrong places in the other subject's whole view, per looking place.
        organ_weight, atlas_weight: of the two losses between subjects; 0 leaves one out.
        atlas_sigma, atlas_reach: how blurred the correspondence by landmarks is, and how far it goes from them.
        correspondence_weight: of the fine and of the coarse contrast at the places that pseudo-pairs connect.
        correspondence_sigma: how exactly such a place is known.
        correspondence_radius: negatives of these lie farther than this from the place (coarse ones at least
            `coarse_radius`).
    """

    queries: int = 384
    pool: int = 6144
    hard_negatives: int = 200
    random_negatives: int = 1500
    mined_negatives: int = 32
    other_negatives: int = 1500
    temperature: float = 0.07
    fine_radius: float = 4.0
    coarse_radius: float = 18.0
    organ_queries: int = 40
    organ_targets: int = 256
    organ_negatives: int = 64
    organ_weight: float = 2.0
    atlas_sigma: float = 12.0
    atlas_reach: float = 60.0
    atlas_weight: float = 0.3
    correspondence_weight: float = 0.5
    correspondence_sigma: float = 3.0
    correspondence_radius: float = 12.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoopSettings):
    """One training run.

    Args:
        pairs: pairs of volumes per iteration and process; the two subjects of a pair come from one body region.
        region_weights: how often each body region is drawn; empty means the square root of its subject count.
        pseudo_pair_probability: how often a pair of subjects is taken from the pseudo-pairs of its region, if the
            run has any.
    """

    architecture: str = "sam-lite"
    pairs: int = 2
    iterations: int = 3000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    average_decay: float = 0.998
    region_weights: dict[str, float] = field(default_factory=dict)
    pseudo_pair_probability: float = 0.5
    views: ViewConfig = ViewConfig()
    photometric: PhotometricConfig = PhotometricConfig()
    loss: LossConfig = LossConfig()

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainingConfig:
        """Rebuild from `to_dict`, or from JSON where tuples have become lists.

        Raises:
            TypeError: if a setting is unknown.
        """
        parts = {"views": ViewConfig, "photometric": PhotometricConfig, "loss": LossConfig}
        config: TrainingConfig = from_plain(TrainingConfig, values, parts)
        return config
