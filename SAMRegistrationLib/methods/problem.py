"""What every registration method works on: two volumes, one working grid, and what is known so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..alignment import PlacedFeatures
from ..body import looks_like_ct, surroundings
from ..features.base import FeatureExtractor, FeatureMap, Features
from ..features.scan_ends import shown_part
from ..field import DisplacementField
from ..grid import Grid
from ..image import Image
from ..sampling import Interpolation, Outside, sample, slabs, voxel_mesh
from ..solvers.ops import upsample
from ..transforms import AffineTransform, CompositeTransform, Transform

Progress = Callable[[float], None]
"""Told the finished fraction of a stage; may raise `Cancelled`."""

GRID_MULTIPLE = 16
"""Working grids have sizes that every level and stride divides."""


def no_progress(_: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class WarpedVolume:
    """The moving volume as it lies on the working grid.

    Args:
        values: (1, 1, z, y, x).
        valid: (1, 1, z, y, x) bool, where the moving volume and its mask have data.
    """

    values: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TrainedObjective:
    """What the network that predicted a displacement was trained on, for an optimization that goes on from there.

    Args:
        losses: weights and constants by the names of the training's configuration.
        normalization: of the intensities.
    """

    losses: dict[str, float]
    normalization: Callable[[Tensor], Tensor]


@dataclass
class Problem:
    """A pair of volumes on its way to a transform.

    Args:
        fixed: the fixed volume, sampled on the working grid (isotropic, axes closest to L, P, S).
        moving: the moving volume, axes closest to L, P, S, at about the working spacing or coarser.
        extractor: gives features of volumes on the working grid.
        fixed_mask: (z, y, x) bool on the working grid, where to register; None for everywhere.
        moving_mask: (z, y, x) bool on the moving volume's grid; None for everywhere.
        initial: the map that follows the displacement, usually affine.
        embedded: features of the moving volume that serve again under maps like those they were made for.
        displacement: (1, 3, z, y, x) in voxels of its own shape over the working grid's box; None before a
            deformable method ran.
        trained: what the network behind the displacement was trained on, where one has run.
        seed: of everything random.
        warnings: sentences for the user.
        details: what the stages found, for the report.
        progress: told the finished fraction of the running stage.
        in_last_stage: whether no stage will follow that asks for the same features.

    What the stages need again and again (the moving volume under the initial map, features of both volumes) is
    computed once and kept until the initial map is replaced.
    """

    fixed: Image
    moving: Image
    extractor: FeatureExtractor
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    initial: Transform = field(default_factory=AffineTransform)
    embedded: PlacedFeatures | None = None
    displacement: Tensor | None = None
    trained: TrainedObjective | None = None
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    progress: Progress = no_progress
    in_last_stage: bool = False
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _kept_initial: Transform | None = field(default=None, init=False, repr=False)

    @property
    def grid(self) -> Grid:
        """The working grid."""
        return self.fixed.grid

    @property
    def device(self) -> torch.device:
        return self.fixed.data.device

    def field(self) -> DisplacementField | None:
        """The displacement found so far, in mm on a grid of its own resolution."""
        if self.displacement is None:
            return None
        return DisplacementField.from_voxels(self.displacement, self.grid.resized(self.displacement.shape[:1:-1]))

    def transform(self) -> Transform:
        """The whole map found so far, from the fixed to the moving world."""
        found = self.field()
        return self.initial if found is None else CompositeTransform([found, self.initial])

    def after_existing(self, found: Tensor) -> Tensor:
        """The displacement of going through `found` first and then through the current one, if there is one.

        Args:
            found: (1, 3, z, y, x) in voxels of its own shape over the working grid's box.

        Returns:
            The same on the finer of both grids.
        """
        existing = self.field()
        if existing is None:
            return found
        shape = tuple(max(a, b) for a, b in zip(existing.data.shape[2:], found.shape[2:], strict=True))
        common = self.grid.resized(shape[::-1])
        first = DisplacementField.from_voxels(found, self.grid.resized(found.shape[:1:-1]))
        first = first.resampled(common, Outside.EDGE)
        second = existing if existing.grid.size == common.size else existing.resampled(common)
        return second.compose(first).to_voxels()

    def warped(self, displacement: Tensor | None = None) -> WarpedVolume:
        """The moving volume on the working grid, under `displacement` (the current one by default)."""
        return self._under(self.displacement if displacement is None else displacement)

    def _under(self, u: Tensor | None) -> WarpedVolume:
        field = (
            None if u is None else DisplacementField.from_voxels(upsample(u, self.grid.shape), self.grid).data[0]
        )
        to_voxels = AffineTransform(self.moving.grid.world_to_voxel)
        source, shape = self.moving.tensor(), self.grid.shape
        values = source.new_empty(1, 1, *shape)
        valid = torch.empty(1, 1, *shape, dtype=torch.bool, device=self.device)
        for slab in slabs(shape, self.device):
            world = voxel_mesh(shape, self.grid.voxel_to_world, self.device, slab)
            if field is not None:
                world += field[:, slab]
            voxel = to_voxels.map_world(self.initial.map_world(world))
            values[:, :, slab] = sample(source, voxel, fill=self.moving.background)
            valid[:, :, slab] = self._valid_at(voxel)
        return WarpedVolume(values, valid)

    def _valid_at(self, voxel: Tensor) -> Tensor:
        """Where the moving volume and its mask have data, at positions (3, z, y, x) in its voxels."""
        mask = self.moving_mask
        if mask is not None:
            return sample(mask[None, None].float(), voxel, Interpolation.NEAREST) > 0.5
        size = torch.tensor(self.moving.grid.size, device=self.device).view(3, 1, 1, 1)
        return ((voxel >= -0.5) & (voxel < size - 0.5)).all(dim=0)[None, None]

    def volumes(self) -> tuple[Tensor, Tensor]:
        """Fixed and moving volume (1, 1, z, y, x) on the working grid, the moving one under the initial map."""
        return self.fixed.tensor(), self._aligned().values

    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        """Where both volumes have data on the working grid, the moving one under the initial map.

        Each is (1, 1, z, y, x) float32, 1 where its voxels count, or None where all do.
        """
        fixed = None if self.fixed_mask is None else self.fixed_mask[None, None].float()
        valid = self._aligned().valid
        return fixed, None if bool(valid.all()) else valid.float()

    def shown_slices(self) -> tuple[int, int]:
        """The first and the last slice of the fixed volume that show its body in full: all but of a masked CT."""
        return cast("tuple[int, int]", self._once("fixed ends", self._shown_slices))

    def _shown_slices(self) -> tuple[int, int]:
        return shown_part(self.fixed.tensor()) if looks_like_ct(self.fixed) else (0, self.grid.shape[0] - 1)

    def near_bodies(self) -> Tensor:
        """1 where either volume shows its body or the air along its skin, the moving one under the initial map.

        What lies beyond, half of a usual CT, is air and couch: it says nothing and takes time. (1, 1, z, y, x) at
        half the resolution of the working grid.
        """
        return cast(Tensor, self._under_initial("near bodies", self._near_bodies))

    def _near_bodies(self) -> Tensor:
        grid = self.grid.resized([max(1, n // 2) for n in self.grid.size])
        world = voxel_mesh(grid.shape, grid.voxel_to_world, self.device)
        return torch.maximum(_near(self.fixed, world), _near(self.moving, self.initial.map_world(world)))

    def features(self, extractor: FeatureExtractor | None = None) -> tuple[Features, Features]:
        """Features of `volumes()`, by the problem's own extractor unless another one is given."""
        chosen = extractor or self.extractor
        moving = self._under_initial(f"moving {chosen.name}", lambda: self._moving_features(chosen))
        return self.fixed_features(chosen), moving

    def _moving_features(self, extractor: FeatureExtractor) -> Features:
        if self.embedded is not None and extractor is self.extractor and isinstance(self.initial, AffineTransform):
            known = self.embedded.under(self.initial, *extractor.feature_grids(self.grid))
            # What was read is kept itself; both would be too much.
            self.embedded = None
            if known is not None:
                return known
        return self._extract(extractor, self.volumes()[1])

    def fixed_features(self, extractor: FeatureExtractor | None = None) -> Features:
        """Features of the fixed volume, which no map changes."""
        chosen = extractor or self.extractor
        key = f"fixed {chosen.name}"
        return cast(Features, self._once(key, lambda: self._extract(chosen, self.fixed.tensor())))

    def forget_features(self) -> None:
        """Let go of all features, which are computed anew for whoever asks again."""
        self._kept = {name: value for name, value in self._kept.items() if not isinstance(value, Features)}
        self.embedded = None

    def forget(self) -> None:
        """Let go of all that was kept for the stages."""
        self._kept, self.embedded = {}, None

    def _aligned(self) -> WarpedVolume:
        """The moving volume under the initial map alone."""
        return cast(WarpedVolume, self._under_initial("aligned", lambda: self._under(None)))

    def _under_initial(self, key: str, compute: Callable[[], Any]) -> Any:
        """What was computed under the present initial map, or compute it."""
        if self._kept_initial is not self.initial:
            self._kept = {name: value for name, value in self._kept.items() if name.startswith("fixed ")}
            self._kept_initial = self.initial
        return self._once(key, compute)

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            # Tensors made in inference mode could not take part in an optimization later.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = compute()
        return self._kept[key]

    def features_of(self, volume: Tensor) -> Features:
        """The features of a volume (1, 1, z, y, x) over the working grid's box, at any pyramid level of it."""
        return self._extract(self.extractor, volume)

    def _extract(self, extractor: FeatureExtractor, volume: Tensor) -> Features:
        fine, coarse = extractor.extract_tensor(volume)
        grids = extractor.feature_grids(self.grid.resized(volume.shape[:1:-1]))
        if coarse is None or grids[1] is None:
            return Features(FeatureMap(fine, grids[0]))
        return Features(FeatureMap(fine, grids[0]), FeatureMap(coarse, grids[1]))


def _near(image: Image, world: Tensor) -> Tensor:
    """1 at world positions (3, z, y, x) in a body or in the air along its skin: (1, 1, z, y, x)."""
    near = surroundings(image)
    voxel = AffineTransform(near.grid.world_to_voxel).map_world(world)
    return sample(near.tensor(), voxel, Interpolation.NEAREST)


def at_shape(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A volume (1, C, z, y, x) averaged or interpolated to another shape of the same box."""
    if tuple(volume.shape[2:]) == tuple(shape):
        return volume
    return functional.interpolate(volume, size=tuple(shape), mode="area")
