"""Registration problems with a known answer, for the tests of the solvers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from SAMRegistrationLib.solvers.filters import gaussian
from SAMRegistrationLib.solvers.ops import warp


@dataclass(frozen=True)
class KnownDeformation:
    """A moving volume, the fixed volume made from it by a known field, and where to compare."""

    fixed: torch.Tensor
    moving: torch.Tensor
    u: torch.Tensor
    body: torch.Tensor

    def error(self, u: torch.Tensor) -> float:
        """Mean length of u - truth in voxels inside the body."""
        return float((u - self.u).square().sum(1, keepdim=True).sqrt()[self.body].mean())

    @property
    def start(self) -> float:
        """The error of doing nothing."""
        return self.error(torch.zeros_like(self.u))


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Seeded standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth_deformation(shape: tuple[int, ...], amplitude: float, sigma: float, seed: int = 5) -> torch.Tensor:
    """A smooth random displacement whose longest component is `amplitude` voxels."""
    margin = round(3 * sigma)
    larger = tuple(size + 2 * margin for size in shape)
    u = gaussian(noise((1, 3, *larger), seed), sigma)[..., margin:-margin, margin:-margin, margin:-margin]
    return (u * (amplitude / u.abs().max())).contiguous()


def textured(size: int = 32, amplitude: float = 3.0, sigma: float = 6.0) -> KnownDeformation:
    """Noise of two scales, deformed smoothly; compared away from the border."""
    shape = (size, size, size)
    texture = gaussian(noise((1, 1, *shape), 1), 1.2) * 3 + gaussian(noise((1, 1, *shape), 2), 3.0) * 12
    u = smooth_deformation(shape, amplitude, sigma)
    return KnownDeformation(warp(texture, u), texture, u, inside(shape, 4))


def inside(shape: tuple[int, ...], margin: int) -> torch.Tensor:
    """True away from the border, beyond which nothing is known."""
    mask = torch.zeros((1, 1, *shape), dtype=torch.bool)
    mask[..., margin:-margin, margin:-margin, margin:-margin] = True
    return mask


def real_ct(path: Path, size: int = 64, spacing: float = 4.0, amplitude: float = 4.0) -> KnownDeformation:
    """A CT resampled to `spacing` and cropped to at most `size` voxels a side, scaled to [0, 1], deformed."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    values = torch.from_numpy(sitk.GetArrayFromImage(image))[None, None]
    target = [round(n * s / spacing) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)][::-1]
    values = F.interpolate(values, size=target, mode="trilinear", align_corners=False)
    for axis in (2, 3, 4):
        surplus = max(0, values.shape[axis] - size)
        values = values.narrow(axis, surplus // 2, values.shape[axis] - surplus)
    moving = values.clamp(-500, 500) / 1000 + 0.5
    u = smooth_deformation(tuple(moving.shape[2:]), amplitude, sigma=10.0)
    fixed = warp(moving, u)
    return KnownDeformation(fixed, moving, u, (gaussian(fixed, 2.0) > 0.3) & inside(tuple(moving.shape[2:]), 4))


def simple_features(volume: torch.Tensor) -> torch.Tensor:
    """Unit vectors from first and second differences at three scales: (1, 36, z, y, x)."""
    channels = []
    for sigma in (0.7, 1.5, 3.0):
        blurred = gaussian(volume, sigma)
        spread = gaussian((volume - blurred).square(), 4.0).sqrt() + 0.02
        padded = F.pad(blurred, (2,) * 6, mode="replicate")
        size = volume.shape[2:]
        for dz, dy, dx in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (2, 2, 0), (2, 0, 2), (0, 2, 2)):
            for sign in (1, -1):
                begin = (2 + sign * dz, 2 + sign * dy, 2 + sign * dx)
                window = [slice(b, b + n) for b, n in zip(begin, size, strict=True)]
                channels.append((padded[(..., *window)] - blurred) / spread)
    return F.normalize(torch.cat(channels, dim=1), dim=1)


def pyramid(volume: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """The volume at 1/2**(levels - 1), ..., 1/2, 1 of its size, coarsest first."""
    result = [volume]
    for _ in range(levels - 1):
        size = [-(-n // 2) for n in result[0].shape[2:]]
        result.insert(0, F.interpolate(result[0], size=size, mode="trilinear", align_corners=False))
    return result
