"""Vectors of an embedded view at chosen places: the rows that the losses compare."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .cache import FIRST_LABEL, OUTSIDE
from .config import LossConfig
from .views import View, size_tensor

CORNERS = tuple((x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1))


@dataclass(frozen=True)
class DrawnPlaces:
    """One random draw of a view's places, as flat indices into its fine voxels, on the view's device.

    Args:
        visible: all that count.
        drawn: `LossConfig.pool` visible ones with replacement, then `LossConfig.organ_targets` of every structure.
        structures: the codes of the structures seen, in that order.
    """

    visible: Tensor
    drawn: Tensor
    structures: list[int]


def draw_places(views: list[View], config: LossConfig, generator: torch.Generator) -> list[DrawnPlaces]:
    """A draw for each view, all of one shape.

    The draws are made on the CPU, which waits once for a GPU to hand over what all views show, not once per
    structure.
    """
    shown = torch.stack([view.codes * view.visible for view in views]).flatten(1).cpu()
    return [_draw_from(codes, config, generator, views[0].codes.device) for codes in shown]


def _draw_from(codes: Tensor, config: LossConfig, generator: torch.Generator, device: torch.device) -> DrawnPlaces:
    visible = torch.nonzero(codes != OUTSIDE)[:, 0]
    seen = torch.bincount(codes.int(), minlength=FIRST_LABEL)[FIRST_LABEL:].nonzero()[:, 0] + FIRST_LABEL
    structures = seen.tolist()
    draws = [_draw(visible, config.pool, generator)]
    draws += [_draw(torch.nonzero(codes == code)[:, 0], config.organ_targets, generator) for code in structures]
    return DrawnPlaces(visible.to(device), torch.cat(draws).to(device), structures)


class EmbeddedView:
    """A view with its maps and one random draw of its places, which all losses share.

    `fine` (C, d, h, w) and `coarse` (C, d', h', w'), which divides the view into whole fine voxels, may be half
    precision. `pool` holds the drawn visible places (none if nothing is visible), `organs` those of every
    structure seen. Gathering them at once keeps the gradient of the large fine map cheap.
    """

    def __init__(self, view: View, fine: Tensor, coarse: Tensor, config: LossConfig, places: DrawnPlaces) -> None:
        self.view = view
        self.shape = fine.shape[1:]
        self.coarse_shape = coarse.shape[1:]
        self.fine_rows = fine.permute(1, 2, 3, 0).reshape(-1, fine.shape[0])
        self.coarse_rows = functional.normalize(
            coarse.permute(1, 2, 3, 0).reshape(-1, coarse.shape[0]).float(), dim=1
        )
        self.nodes = places.visible
        samples = self.at_nodes(places.drawn)
        first = len(samples) - len(places.structures) * config.organ_targets
        self.pool = samples.take(slice(0, first))
        starts = range(first, len(samples), config.organ_targets)
        self.organs = {
            code: samples.take(slice(start, start + config.organ_targets))
            for code, start in zip(places.structures, starts, strict=True)
        }

    def at_nodes(self, nodes: Tensor) -> Samples:
        """Samples at fine voxels given by flat indices (n,)."""
        positions = self.view.mesh.reshape(3, -1)[:, nodes].T
        fine = self.fine_rows.index_select(0, nodes).float()
        coarse = self.coarse_at(unravel(nodes, self.shape))
        return Samples(positions, self.view.codes.reshape(-1)[nodes], functional.normalize(fine, dim=1), coarse)

    def fine_at(self, voxels: Tensor) -> Tensor:
        """Unit fine vectors (n, C) at fine voxel coordinates (n, 3), trilinear and normalized again."""
        return functional.normalize(_trilinear(self.fine_rows, self.shape, voxels, scaled=True), dim=1)

    def coarse_at(self, voxels: Tensor) -> Tensor:
        """Unit coarse vectors (n, C) at fine voxel coordinates (n, 3), as matching upsamples them."""
        ratio = size_tensor(self.shape, voxels.device) / size_tensor(self.coarse_shape, voxels.device)
        return functional.normalize(
            _trilinear(self.coarse_rows, self.coarse_shape, (voxels + 0.5) / ratio - 0.5), dim=1
        )

    @functools.cached_property
    def everywhere(self) -> Tensor:
        """Joined unit vectors (n, 2C) of all `nodes`, without gradients, for looking through the whole view."""
        with torch.no_grad():
            fine = functional.normalize(self.fine_rows.index_select(0, self.nodes).float(), dim=1)
            coarse = self.coarse_at(unravel(self.nodes, self.shape))
            return torch.cat([fine, coarse], dim=1) * 0.5**0.5

    def is_visible(self, voxels: Tensor) -> Tensor:
        """Whether the fine voxel nearest to each coordinate (n, 3) counts; False outside the view."""
        size = size_tensor(self.shape, voxels.device).long()
        nearest = voxels.round().long()
        inside = ((nearest >= 0) & (nearest < size)).all(dim=1)
        x, y, z = nearest.clamp(min=0).minimum(size - 1).unbind(1)
        return inside & self.view.visible[z, y, x]


@dataclass(frozen=True)
class Samples:
    """n places: source positions (n, 3) in mm, codes (n,), fine and coarse unit vectors (n, C), float32."""

    positions: Tensor
    codes: Tensor
    fine: Tensor
    coarse: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, picks: Tensor | slice) -> Samples:
        """The chosen rows."""
        return Samples(self.positions[picks], self.codes[picks], self.fine[picks], self.coarse[picks])

    @staticmethod
    def join(parts: list[Samples]) -> Samples:
        """All rows of several samples."""
        return Samples(
            torch.cat([part.positions for part in parts]),
            torch.cat([part.codes for part in parts]),
            torch.cat([part.fine for part in parts]),
            torch.cat([part.coarse for part in parts]),
        )


def unravel(nodes: Tensor, shape: torch.Size) -> Tensor:
    """Voxel coordinates (n, 3) as (x, y, z) of flat indices into an array of `shape` (z, y, x)."""
    _, height, width = shape
    return torch.stack([nodes % width, nodes // width % height, nodes // (width * height)], dim=1).float()


def _trilinear(rows: Tensor, shape: torch.Size, voxels: Tensor, *, scaled: bool = False) -> Tensor:
    """Trilinear mixture of `rows` (d*h*w, C) at coordinates (n, 3); edges repeat. A gather is far cheaper to
    differentiate than sampling the whole map."""
    size = size_tensor(shape, voxels.device).long()
    clamped = voxels.clamp(min=0).minimum((size - 1).to(voxels.dtype))
    lower = clamped.floor().long().minimum((size - 2).clamp(min=0))
    fraction = clamped - lower
    shifts = _corners(voxels.device)
    x, y, z = (lower + shifts).minimum(size - 1).unbind(2)
    weights = torch.where(shifts.bool(), fraction, 1 - fraction).prod(dim=2)
    corners = rows.index_select(0, ((z * size[1] + y) * size[0] + x).reshape(-1)).float()
    corners = functional.normalize(corners, dim=1) if scaled else corners
    return (corners.reshape(len(CORNERS), len(voxels), rows.shape[1]) * weights[:, :, None]).sum(dim=0)


@functools.lru_cache(maxsize=8)
def _corners(device: torch.device) -> Tensor:
    """The corners of a voxel cell, (8, 1, 3)."""
    return torch.tensor(CORNERS, device=device)[:, None]


def _draw(nodes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `nodes`, with replacement; none if there are none."""
    picks = (torch.rand(count, generator=generator) * len(nodes)).long()
    return nodes[picks] if len(nodes) else nodes
