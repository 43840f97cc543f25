"""Changes of the grey values that features must survive. Views are (1, 1, d, h, w) in HU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .cache import AIR
from .config import PhotometricConfig

SOFT_TISSUE = (0.0, 250.0)


class PhotometricAugmentation:
    """Random changes in the order in which a scanner and a publisher make them: tissue, device, masking.

    Every parameter is drawn from `generator`, a CPU generator; noise comes from a device generator seeded by it,
    so that equal seeds give equal views on one device.
    """

    def __init__(self, config: PhotometricConfig, generator: torch.Generator) -> None:
        self.config = config
        self.generator = generator

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed image and a mask (d, h, w) of the voxels that were not cut away."""
        config = self.config
        if self._happens(config.contrast_probability):
            image = self._contrast(image)
        if self._happens(config.window_probability):
            image = self._window(image)
        if self._happens(config.thick_slice_probability):
            image = self._thick_slices(image)
        if self._happens(config.blur_probability):
            image = self._blur(image)
        if self._happens(config.shading_probability):
            image = self._shading(image)
        if self._happens(config.streak_probability):
            image = self._streaks(image)
        if self._happens(config.noise_probability):
            image = self._noise(image)
        return self._mask(image)

    def _contrast(self, image: Tensor) -> Tensor:
        """Contrast phase: soft tissue changes by a smooth amount that differs from place to place."""
        low, high = SOFT_TISSUE
        weight = ((image - low) / (high - low)).clamp(0, 1)
        weight = 4 * weight * (1 - weight)
        amount = self._smooth_field(image, 6) * self.config.contrast_hu / 2
        return image + weight * amount

    def _window(self, image: Tensor) -> Tensor:
        """Another scanner's scale: HU are stretched about water, shifted, and bent."""
        gain = math.exp(self._normal() * 0.06)
        bent = image.clamp(-1000, 1500) / 1000
        bend = self._normal() * 60
        changed = image * gain + self._normal() * 15 + bend * bent * (1 - bent.abs()).clamp(min=0)
        return torch.where(image > AIR + 1, changed, image)

    def _thick_slices(self, image: Tensor) -> Tensor:
        depth = image.shape[2]
        slices = max(8, round(depth / self._uniform(1.5, 3.0)))
        thick = functional.interpolate(image, size=(slices, *image.shape[3:]), mode="area")
        return functional.interpolate(thick, size=image.shape[2:], mode="trilinear", align_corners=False)

    def _blur(self, image: Tensor) -> Tensor:
        return _gaussian(image, self._uniform(0.4, self.config.blur_voxels))

    def _shading(self, image: Tensor) -> Tensor:
        """Cone-beam scatter: a slow additive field and less contrast."""
        amount = self._smooth_field(image, 4) * self.config.shading_hu / 2
        return torch.where(image > AIR + 1, image * self._uniform(0.75, 1.05) + amount, image)

    def _streaks(self, image: Tensor) -> Tensor:
        """Metal: bright and dark rays around one point of a few slices."""
        depth, height, width = image.shape[2:]
        device = image.device
        y = torch.arange(height, device=device)[:, None] - self._uniform(0.2, 0.8) * height
        x = torch.arange(width, device=device)[None, :] - self._uniform(0.2, 0.8) * width
        angle = torch.atan2(y.float(), x.float())
        rays = sum(torch.cos(angle * round(self._uniform(3, 17)) + self._uniform(0, 6.3)) for _ in range(3))
        falloff = 12 / (12 + (x**2 + y**2).sqrt())
        z = (torch.arange(depth, device=device) - self._uniform(0, 1) * depth) / self._uniform(3, 10)
        strength = self.config.streak_hu * self._uniform(0.3, 1.0) * torch.exp(-(z**2))
        return image + strength[:, None, None] * (rays * falloff)

    def _noise(self, image: Tensor) -> Tensor:
        sigma = self._uniform(0.1, 1.0) ** 2 * self.config.noise_hu
        noise = torch.randn(image.shape, generator=self._device_generator(image.device), device=image.device)
        if self._happens(0.5):
            noise = functional.avg_pool3d(noise, 3, 1, 1) * 3
        return image + noise * sigma

    def _mask(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Set to air what a publisher may have cut away, so that the edge of a mask means nothing."""
        kept = torch.ones(image.shape[2:], dtype=torch.bool, device=image.device)
        if self._happens(self.config.cut_probability):
            for _ in range(1 + int(self._happens(0.4))):
                kept &= self._half_space(image)
        if self._happens(self.config.slab_probability):
            kept &= self._slab(image)
        if self._happens(self.config.erosion_probability):
            kept &= self._uneven_margin(image)
        hidden = image.new_full((), AIR + (self._uniform(0, 60) if self._happens(0.3) else 0.0))
        return torch.where(kept, image, hidden).clamp(AIR, 3071), kept

    def _half_space(self, image: Tensor) -> Tensor:
        """A plane that leaves at least about two thirds of the view."""
        depth, height, width = image.shape[2:]
        normal = torch.nn.functional.normalize(torch.randn(3, generator=self.generator), dim=0)
        if self._happens(0.7):
            axis = int(normal.abs().argmax())
            normal = torch.zeros(3).index_fill_(0, torch.tensor(axis), math.copysign(1.0, float(normal[axis])))
        z, y, x = (torch.linspace(-1, 1, size, device=image.device) for size in (depth, height, width))
        height_above = normal[0] * z[:, None, None] + normal[1] * y[None, :, None] + normal[2] * x[None, None, :]
        return height_above < self._uniform(0.3, 1.0)

    def _slab(self, image: Tensor) -> Tensor:
        """What lies between two heights, (d, 1, 1)."""
        share = self._uniform(*self.config.slab_share)
        start = self._uniform(0, 1 - share)
        height = (torch.arange(image.shape[2], device=image.device) + 0.5) / image.shape[2]
        return ((height >= start) & (height <= start + share))[:, None, None]

    def _uneven_margin(self, image: Tensor) -> Tensor:
        """Keep what is deeper inside the body than a random, slowly varying depth."""
        inside = (image > -500).float()
        pooled = functional.avg_pool3d(inside, 4)
        depth = _gaussian(pooled, 2.5)
        field = self._smooth_field(depth, 5) * 0.2 + self._uniform(0.1, 0.55)
        kept = functional.interpolate((depth - field), size=image.shape[2:], mode="trilinear")
        return kept[0, 0] > 0

    def _smooth_field(self, image: Tensor, nodes: int) -> Tensor:
        """Smooth random values of about unit variance, (1, 1, d, h, w) like the image."""
        control = torch.randn((1, 1, nodes, nodes, nodes), generator=self.generator).to(image.device)
        return functional.interpolate(control, size=image.shape[2:], mode="trilinear", align_corners=True)

    def _device_generator(self, device: torch.device) -> torch.Generator:
        seed = int(torch.randint(2**31, (), generator=self.generator))
        return torch.Generator(device).manual_seed(seed)

    def _happens(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _normal(self) -> float:
        return float(torch.randn((), generator=self.generator))


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian on (1, 1, d, h, w), edges repeated."""
    radius = max(1, math.ceil(2.5 * sigma))
    taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        image = functional.conv3d(functional.pad(image, padding, mode="replicate"), kernel.reshape(shape))
    return image
