"""Breathing: what is inside the chest wall slides along it, up and down the body; the wall stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..image import Image
from .chest_wall import ChestWall, find_chest_wall
from .deformation import Deformation

ABDOMEN_MM = 220.0
STEEPEST = 0.7

_UNEVENNESS = 0.25
_INVERSE_STEPS = 40


@dataclass(frozen=True, eq=False)
class BreathingMotion:
    """The motion in cylinder coordinates around the chest wall's line.

    Inside the wall a point at height z moves by `amplitude * profile(z) * share` and keeps its direction and its
    relative distance from the line to the wall. So nothing ever crosses the wall, which is why the map is exactly
    invertible although it jumps there. The profile rises from the lungs' apex to the diaphragm and falls again
    through the abdomen; `share` differs from 1 on one side of the body.

    Args:
        wall: the surface.
        amplitude: in mm, positive toward the head.
        side: (x, y) by how much the share grows toward the left and the back, at the wall.
    """

    wall: ChestWall
    amplitude: float
    side: tuple[float, float]

    def __post_init__(self) -> None:
        steepest = np.pi / 2 / min(self.wall.apex - self.wall.base, ABDOMEN_MM)
        if abs(self.amplitude) * (1 + float(np.hypot(*self.side))) * steepest > STEEPEST:
            raise ValueError(f"{self.amplitude} mm is too much breathing for lungs of this height")

    def map_world(self, points: Tensor) -> Tensor:
        return self._moved(points, lambda z, share: z + self._rise(z, share))

    def unmap_world(self, points: Tensor) -> Tensor:
        return self._moved(points, self._height_before)

    def slip(self, points: Tensor) -> Tensor:
        x, y, z = self._centered(points)
        radius = torch.hypot(x, y).clamp(min=1e-6)
        rise = self._rise(z, self._share(x, y, radius)).abs()
        return torch.where(radius < self.wall.radius(torch.atan2(y, x), z), rise, -rise)

    def _centered(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return points[0] - self.wall.center[0], points[1] - self.wall.center[1], points[2]

    def _moved(self, points: Tensor, height_after: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x, y, z = self._centered(points)
        radius, angle = torch.hypot(x, y), torch.atan2(y, x)
        wall = self.wall.radius(angle, z)
        inside = radius < wall
        # The relative distance stays what it is, so the share does too.
        after = torch.where(inside, height_after(z, self._share(x, y, wall)), z)
        growth = torch.where(inside, self.wall.radius(angle, after) / wall, torch.ones_like(wall))
        center_x, center_y = self.wall.center
        return torch.stack([center_x + x * growth, center_y + y * growth, after])

    def _share(self, x: Tensor, y: Tensor, wall: Tensor) -> Tensor:
        return 1 + (self.side[0] * x + self.side[1] * y) / wall

    def _rise(self, z: Tensor, share: Tensor) -> Tensor:
        return self.amplitude * share * self._profile(z)

    def _height_before(self, z: Tensor, share: Tensor) -> Tensor:
        """The height from which a point rose to z, by the fixed-point iteration h = z - rise(h), a contraction."""
        before = z
        for _ in range(_INVERSE_STEPS):
            before = z - self._rise(before, share)
        return before

    def _profile(self, z: Tensor) -> Tensor:
        """0 above the apex, 1 at the base, 0 far below, along half cosines."""
        above = (self.wall.apex - z) / (self.wall.apex - self.wall.base)
        below = 1 - (self.wall.base - z) / ABDOMEN_MM
        return 0.5 - 0.5 * torch.cos(torch.pi * torch.minimum(above, below).clamp(0, 1))


def breathing(image: Image, seed: int, amplitude_mm: float = 15.0) -> Deformation:
    """A breath between the fixed and the moving volume of a chest CT, sliding along the chest wall.

    Args:
        image: the fixed volume, a CT that shows lungs, with world z along the body.
        seed: decides which side of the body moves more.
        amplitude_mm: how far the diaphragm rises on average from the fixed to the moving volume; negative: falls.

    Raises:
        ValueError: if the volume shows no lungs, or the amplitude is too large for them.
    """
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    side = (_UNEVENNESS * float(np.cos(angle)), _UNEVENNESS * float(np.sin(angle)))
    return Deformation((BreathingMotion(find_chest_wall(image), amplitude_mm, side),))
