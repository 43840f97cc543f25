"""Random views of a volume, with the source position of every voxel riding along.

All lengths are mm in the cached volume's own frame: (x, y, z) from the center of its first voxel.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..networks.sam_lite import FINE_STRIDE
from .cache import AIR, FIRST_LABEL, OUTSIDE
from .config import ViewConfig

INVERSION_STEPS = 7
INVERSION_TOLERANCE = 0.5


@dataclass(frozen=True)
class Source:
    """A volume on the device: image (1, 1, z, y, x) in HU, codes of the same shape, voxel size in mm."""

    image: Tensor
    codes: Tensor
    spacing: float

    @functools.cached_property
    def labelled_places(self) -> Tensor:
        """Every fourth voxel along each axis that has a label, (n, 3) in mm, on the CPU."""
        return self._places(self._every_fourth >= FIRST_LABEL)

    @functools.cached_property
    def body_places(self) -> Tensor:
        """Every fourth voxel along each axis that lies in the body, (n, 3) in mm, on the CPU."""
        return self._places(self._every_fourth != OUTSIDE)

    @functools.cached_property
    def _every_fourth(self) -> Tensor:
        return self.codes[0, 0, ::4, ::4, ::4].cpu()

    def _places(self, chosen: Tensor) -> Tensor:
        return torch.nonzero(chosen).flip(1).float() * 4 * self.spacing


@dataclass(frozen=True)
class Placement:
    """Where a view lies: view voxel v (x, y, z from the view's center) sits at center + matrix @ v, elastic aside.

    `matrix` (3, 3) holds rotation and voxel size; `control` (1, 3, k, k, k) the elastic displacement in mm.
    """

    center: Tensor
    matrix: Tensor
    control: Tensor

    def to(self, device: torch.device) -> Placement:
        """The same on a device."""
        return Placement(self.center.to(device), self.matrix.to(device), self.control.to(device))


@dataclass(frozen=True)
class View:
    """A view: image (1, 1, d, h, w) in HU; per fine voxel the source position, the code and whether it counts.

    `mesh` (3, d/2, h/2, w/2) in mm, `codes` and `visible` (d/2, h/2, w/2). `matrix` maps one fine voxel to mm.
    """

    image: Tensor
    mesh: Tensor
    codes: Tensor
    visible: Tensor
    matrix: Tensor


def draw_placements(
    source: Source, config: ViewConfig, generator: torch.Generator, anchor: Tensor | None = None
) -> tuple[Placement, Placement]:
    """Two placements on the source's device around one point: `anchor` (3,) in mm on the CPU, or any of a body."""
    if anchor is None:
        anchor = _draw_anchor(source, config, generator)
    low, high = (math.log(value) for value in config.spacing)
    spacing = math.exp(_uniform(generator, low, high))
    far = _uniform(generator) < config.far_probability
    offset = config.far_offset if far else config.offset
    turned = int(_uniform(generator) < 0.5) if _uniform(generator) < config.quarter_turn_probability else None
    first, second = (
        _draw_placement(anchor, spacing, offset, config, generator, quarter_turn=turned == index)
        for index in range(2)
    )
    return first.to(source.image.device), second.to(source.image.device)


def cut_view(source: Source, placement: Placement, shape: tuple[int, int, int]) -> View:
    """Sample image, codes and positions of a view of `shape` voxels (z, y, x)."""
    positions = positions_of(placement, shape)
    mesh = functional.avg_pool3d(positions, FINE_STRIDE)
    voxels = positions / source.spacing
    box = touched_box(voxels, source.image.shape)
    image = sample_box(source.image, box, voxels, outside=AIR)
    codes = sample_box(source.codes, box, mesh / source.spacing, "nearest")[0, 0]
    return View(image, mesh[0], codes, codes != OUTSIDE, placement.matrix * FINE_STRIDE)


def locate(view: View, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where source points appear in a view.

    Args:
        points: (n, 3) source positions in mm.

    Returns:
        Fine voxel coordinates (n, 3) as (x, y, z), and a mask (n,) of the points that lie inside the view and
        whose position could be inverted to within half a mm.
    """
    size = size_tensor(view.mesh.shape[1:], points.device)
    center = (size - 1) / 2
    # Unlike `inv`, this does not wait to see whether the matrix is singular, which a rotation is not.
    inverse = torch.linalg.inv_ex(view.matrix).inverse.T
    voxels = center.expand_as(points)
    for _ in range(INVERSION_STEPS):
        voxels = torch.addmm(voxels, points - sample_map(view.mesh, voxels), inverse)
    residual = points - sample_map(view.mesh, voxels)
    inside = ((voxels >= 0) & (voxels <= size - 1)).all(dim=1)
    return voxels, inside & (residual.norm(dim=1) < INVERSION_TOLERANCE)


def sample_map(values: Tensor, voxels: Tensor) -> Tensor:
    """Trilinear values (n, c) of a map (c, d, h, w) at voxel coordinates (n, 3) in (x, y, z); edges repeat."""
    scale = 2 / size_tensor(values.shape[1:], voxels.device)
    cube = torch.addcmul(scale / 2 - 1, voxels, scale)[None, None, None]
    sampled = functional.grid_sample(
        values[None], cube.to(values.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0, 0].T


@functools.lru_cache(maxsize=64)
def size_tensor(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The size (x, y, z) of an array of `shape` (z, y, x) as float32; not to be changed.

    Kept, since a GPU is slow at receiving many small tensors.
    """
    return torch.tensor(shape[::-1], dtype=torch.float32, device=device)


def _draw_anchor(source: Source, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """A random labelled or body voxel, as a position in mm (the center where the volume has neither)."""
    near_label = _uniform(generator) < config.label_probability
    candidates = source.labelled_places if near_label else source.body_places
    if len(candidates) == 0:
        candidates = source.body_places
    if len(candidates) == 0:
        return torch.tensor(source.image.shape[:1:-1]) * source.spacing / 2
    return candidates[int(_uniform(generator) * len(candidates))]


def _draw_placement(
    anchor: Tensor,
    spacing: float,
    offset: float,
    config: ViewConfig,
    generator: torch.Generator,
    *,
    quarter_turn: bool,
) -> Placement:
    limit = math.radians(config.largest_angle)
    deviations = torch.tensor([config.tilt, config.tilt, config.turn]).deg2rad()
    angles = (torch.randn(3, generator=generator) * deviations).clamp(-limit, limit)
    if quarter_turn:
        angles[2] = math.radians(_uniform(generator, -config.quarter_turn, config.quarter_turn))
    stretch = math.log(config.scale)
    size = spacing * math.exp(_uniform(generator, -stretch, stretch))
    center = anchor + torch.randn(3, generator=generator) * offset
    amplitude = _uniform(generator) * config.elastic
    control = torch.randn((1, 3, *config.elastic_grid), generator=generator) * amplitude
    return Placement(center, rotation_matrix(angles) * size, control)


def rotation_matrix(angles: Tensor) -> Tensor:
    """Rotation (3, 3) about x, then y, then z by `angles` (3,) in radians."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().tolist(), angles.cos().tolist()
    about_x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def positions_of(placement: Placement, shape: tuple[int, int, int]) -> Tensor:
    """Source position in mm of every view voxel, (1, 3, d, h, w)."""
    device = placement.center.device
    z, y, x = (torch.arange(size, device=device) - (size - 1) / 2 for size in shape)
    offsets = functional.interpolate(placement.control, size=shape, mode="trilinear", align_corners=True)
    components = [
        placement.center[axis]
        + placement.matrix[axis, 0] * x[None, None, :]
        + placement.matrix[axis, 1] * y[None, :, None]
        + placement.matrix[axis, 2] * z[:, None, None]
        for axis in range(3)
    ]
    return offsets.add_(torch.stack(components)[None])


def resample_source(source: Source, positions: Tensor) -> Tensor:
    """HU (1, 1, d, h, w) at positions (1, 3, d, h, w) in mm; air outside the volume."""
    return sample_at(source.image, positions / source.spacing, outside=AIR)


Box = tuple[slice, slice, slice]


def sample_at(values: Tensor, voxels: Tensor, mode: str = "bilinear", *, outside: float = 0.0) -> Tensor:
    """Values (1, C, d, h, w) of a volume (1, C, z, y, x) at its voxel positions (1, 3, d, h, w)."""
    return sample_box(values, touched_box(voxels, values.shape), voxels, mode, outside=outside)


def sample_box(
    values: Tensor, box: Box, voxels: Tensor, mode: str = "bilinear", *, outside: float = 0.0
) -> Tensor:
    """Values of (1, C, z, y, x) at voxel positions (1, 3, d, h, w) that touch only a box of it.

    Only the box is converted to float, which is what keeps large volumes cheap.
    """
    start = voxels.new_tensor([part.start for part in reversed(box)])
    cut = values[:, :, box[0], box[1], box[2]].float() - outside
    size = voxels.new_tensor(cut.shape[:1:-1])
    cube = (2 * (voxels.permute(0, 2, 3, 4, 1) - start) + 1) / size - 1
    sampled = functional.grid_sample(cut, cube, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled + outside


def touched_box(voxels: Tensor, shape: tuple[int, ...]) -> Box:
    """The voxels (z, y, x) that sampling (1, C, z, y, x) at positions can touch; at least one along each axis.

    The extent is read from the device in one go, since each reading waits for all that was asked of a GPU before.
    """
    extent = torch.stack(torch.aminmax(voxels[0].flatten(1), dim=1))
    slices = []
    for low, high, size in zip(*extent.flip(1).tolist(), shape[2:], strict=True):
        start = min(max(0, math.floor(low) - 1), size - 1)
        stop = max(start + 1, min(size, math.ceil(high) + 2))
        slices.append(slice(start, stop))
    return slices[0], slices[1], slices[2]


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
