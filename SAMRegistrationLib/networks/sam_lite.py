"""``sam-lite``: a small anatomical embedding network for whole CT volumes on a CPU.

The idea (a fine and a coarse unit vector per voxel that say where in the body the voxel is) is that of the
SAM embedding, Yan et al. 2022 (IEEE TMI, arXiv 2012.02383); the architecture is our own. It is built for CPUs
that multiply matrices in bfloat16: channels are multiples of 16, every convolution is dense, and the full
resolution is touched only by a rearrangement. There is no normalization of activations: weights are standardized
instead (Brock et al. 2021), so that a crop and the whole volume get the same vectors, batches of any make-up train
alike, and at inference nothing but plain convolutions is left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

WORKING_SPACING = 2.0
"""Isotropic voxel size in mm at which the network is meant to be used (trained for 1.5 to 3.3 mm)."""

FINE_STRIDE = 2
COARSE_STRIDE = 8
TOTAL_STRIDE = 16
"""Inputs are padded with air to multiples of this inside the network."""

RECTIFIED_GAIN = (2.0 / (1.0 - 1.0 / math.pi)) ** 0.5
"""One over the standard deviation of a rectified unit Gaussian."""

HU_KNOTS = (-1024.0, -200.0, 250.0, 1600.0)
INPUT_KNOTS = (0.0, 0.5, 1.5, 2.0)
"""Piecewise linear window: a third of the range for lung and fat edges, a half for soft tissue, the rest bone."""


def preprocess_ct(volume_hu: Tensor) -> Tensor:
    """Map Hounsfield units of any shape to the network's input range [0, 2], in float32.

    A fixed monotone, piecewise linear curve (``HU_KNOTS`` to ``INPUT_KNOTS``) that is steepest for soft tissue.
    Air is 0, so that zero padding in the convolutions and around the volume means air.
    """
    volume = volume_hu.float().clamp(HU_KNOTS[0], HU_KNOTS[-1])
    result = torch.zeros_like(volume)
    segments = zip(HU_KNOTS[:-1], HU_KNOTS[1:], INPUT_KNOTS[:-1], INPUT_KNOTS[1:], strict=True)
    for lower, upper, start, end in segments:
        slope = (end - start) / (upper - lower)
        result += (volume - lower).clamp_(0.0, upper - lower) * slope
    return result


_LARGEST_WHOLE = 2**20
"""Voxels at stride 2 of the largest volume that is convolved at once; 192x160x256 has slightly fewer."""

_SLICES_AT_ONCE = 32
"""Of larger ones, an even number: what lies around them is convolved twice, a tenth of the work."""


class SamLite(nn.Module):
    """The embedding network: 3.8 M parameters, 0.75 TFLOP for 192x160x256.

    A space-to-depth stem brings the volume to stride 2; residual stages follow at strides 2, 4, 8 and 16. At
    stride 16 (32 mm) every 3x3x3 convolution adds 64 mm to the field of view, and one of the two blocks there is
    dilated, which gives the vectors the context of about half a meter that telling vertebral levels apart takes.
    A top-down path carries that context to the coarse head (stride 8) and on to the fine head (stride 2).

    Args:
        widths: channels at strides 2, 4, 8 and 16, multiples of 16.
        embedding_channels: length of the fine and of the coarse vectors.
    """

    def __init__(self, widths: Sequence[int] = (48, 64, 96, 112), embedding_channels: int = 64) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = ConvolutionUnit(8, half)
        self.stage_half = ResidualBlock(half)
        self.stage_quarter = _stage(half, quarter, dilations=(1, 1))
        self.stage_eighth = _stage(quarter, eighth, dilations=(1, 1))
        self.stage_sixteenth = _stage(eighth, sixteenth, dilations=(1, 2))
        self.top_down_eighth = TopDownMerge(sixteenth, eighth, eighth)
        self.top_down_quarter = TopDownMerge(eighth, quarter, quarter)
        self.top_down_half = TopDownMerge(quarter, half, half)
        self.coarse_head = nn.Conv3d(eighth, embedding_channels, 3, padding=1)
        self.fine_head = nn.Conv3d(half, embedding_channels, 3, padding=1)

    def forward(self, volume: Tensor, fine: Tensor | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
        """Embed preprocessed volumes.

        Args:
            volume: (B, 1, D, H, W), the output of `preprocess_ct`, axes z, y, x, isotropic voxels.
            fine: where to put the fine vectors, of any floating type and without the voxels beyond its own size, a
                few slices after the other if the volume is large; for inference. Made by default.
            first: the slice of fine vectors, an even one, that comes first in `fine`.

        Returns:
            ``fine`` (B, C, ceil(D/2), ceil(H/2), ceil(W/2)) and ``coarse`` (B, C, ceil(D/8), ...), unit vectors
            along C. Fine voxel i covers input voxels 2i and 2i+1 (center 2i+0.5); coarse voxel i covers input
            voxels 8i to 8i+7 (center 8i+3.5).
        """
        if fine is None:
            fine, coarse = self.unscaled(volume)
            return functional.normalize(fine, dim=1), functional.normalize(coarse, dim=1)
        return fine, functional.normalize(self._embed_into(fine, first, volume), dim=1)

    @property
    def embedding_channels(self) -> int:
        """Length of the fine vectors."""
        return self.fine_head.out_channels

    def unscaled(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` without the normalization, for training, which needs it only at a few thousand places."""
        half = self.stage_half(self.stem(_space_to_depth(_pad_with_air(volume))))
        quarter, eighth = self._context(half)
        half = self.top_down_half(quarter, half)
        size = volume.shape[2:]
        return _crop(self.fine_head(half), size, FINE_STRIDE), _crop(self.coarse_head(eighth), size, COARSE_STRIDE)

    def _context(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """What strides 4 and 8 know in the end."""
        quarter = self.stage_quarter(half)
        eighth = self.stage_eighth(quarter)
        eighth = self.top_down_eighth(self.stage_sixteenth(eighth), eighth)
        return self.top_down_quarter(eighth, quarter), eighth

    def _embed_into(self, fine: Tensor, first: int, volume: Tensor) -> Tensor:
        """`unscaled`, but the fine vectors, of unit length, are put into a map.

        What a convolution takes and gives, three or four maps of stride 2, is what the whole takes at its peak.
        """
        padded = _pad_with_air(volume)
        depth, height, width = (n // FINE_STRIDE for n in padded.shape[2:])

        def beginning(seen: slice) -> Tensor:
            cells = _space_to_depth(padded[:, :, FINE_STRIDE * seen.start : FINE_STRIDE * seen.stop])
            return cast(Tensor, self.stage_half(self.stem(cells)))

        def end(seen: slice) -> Tensor:
            # Whole voxels of stride 4.
            coarser = slice(seen.start // 2, -(-seen.stop // 2))
            merged = self.top_down_half(quarter[:, :, coarser], half[:, :, 2 * coarser.start : 2 * coarser.stop])
            merged = self.fine_head(merged)
            return functional.normalize(merged, dim=1)

        shape = (len(volume), self.stem.convolution.out_channels, depth, height, width)
        half = torch.empty(shape, dtype=padded.dtype, memory_format=torch.channels_last_3d)
        _put_by_slices(half, 0, depth, 3, beginning)
        quarter, eighth = self._context(half)
        _put_by_slices(fine, first, depth, 2, end)
        return _crop(self.coarse_head(eighth), volume.shape[2:], COARSE_STRIDE)

    def fused(self) -> SamLite:
        """A copy for inference, with every weight standardization done once and for all."""
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, ConvolutionUnit):
                module.fuse()
        return network


class ConvolutionUnit(nn.Module):
    """Weight-standardized convolution and, unless told not to, ReLU.

    The weights of every output channel have mean 0 and, with gain 1, a scale that keeps the variance of rectified
    unit Gaussians (Brock et al. 2021, arXiv 2101.08692, section 2).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2) if stride == 1 else 0
        self.convolution = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation)
        if not self.convolution.weight.is_meta:
            # Where there is no place for values, torch imports half of its compiler to say so: a second.
            nn.init.normal_(self.convolution.weight)
            nn.init.zeros_(cast(Tensor, self.convolution.bias))
        self.gain: nn.Parameter | None = nn.Parameter(torch.full((outputs,), gain))
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        convolution = self.convolution
        features = functional.conv3d(
            features,
            self._weight(),
            convolution.bias,
            convolution.stride,
            cast("tuple[int, ...]", convolution.padding),
            convolution.dilation,
        )
        return _rectified(features) if self.relu else features

    def fuse(self) -> None:
        """Replace the weights by the standardized ones, once and for all."""
        self.convolution.weight = nn.Parameter(self._weight().detach(), requires_grad=False)
        self.gain = None

    def _weight(self) -> Tensor:
        weight = self.convolution.weight
        if self.gain is None:
            return weight
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3, 4), keepdim=True, correction=0)
        scale = (
            RECTIFIED_GAIN
            * self.gain[:, None, None, None, None]
            * torch.rsqrt(variance * weight[0].numel() + 1e-6)
        )
        return (weight - mean) * scale


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut; the second one is followed by ReLU after the sum."""

    def __init__(self, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvolutionUnit(channels, channels, dilation=dilation, gain=0.5),
            ConvolutionUnit(channels, channels, dilation=dilation, relu=False, gain=0.5),
        )

    def forward(self, features: Tensor) -> Tensor:
        return _rectified(self.body(features).add_(features))


class TopDownMerge(nn.Module):
    """Bring context from the next coarser stage: project, enlarge, add to the finer stage, convolve."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.context = nn.Conv3d(coarse, outputs, 1)
        self.lateral = nn.Conv3d(fine, outputs, 1)
        self.refine = ConvolutionUnit(outputs, outputs)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        merged = self.lateral(fine)
        merged.add_(functional.interpolate(self.context(coarse), scale_factor=2.0, mode="nearest"))
        return cast(Tensor, self.refine(merged))


def _put_by_slices(target: Tensor, first: int, depth: int, halo: int, compute: Callable[[slice], Tensor]) -> None:
    """Fill a map (B, C, D, H, W), the same as at once, some slices after the other where they are large.

    Args:
        target: what to fill.
        first: which slice of what can be computed comes first in the target.
        depth: of what can be computed, which is at least as high and wide as the target.
        halo: how many slices away what is found depends on.
        compute: gives the map of a range of slices and perhaps some after it, right but for the halo at both ends.
    """
    _, _, kept, height, width = target.shape
    slices = kept if depth * height * width <= _LARGEST_WHOLE else _SLICES_AT_ONCE
    for start in range(first, first + kept, slices):
        stop = min(start + slices, first + kept)
        seen = slice(max(0, start - halo), min(depth, stop + halo))
        part = target[:, :, start - first : stop - first]
        part.copy_(compute(seen)[:, :, start - seen.start : stop - seen.start, :height, :width])


def _rectified(features: Tensor) -> Tensor:
    """ReLU in place.

    A number in bfloat16 is negative where the whole number of the same bits is, which a CPU compares five times as
    fast.
    """
    if features.dtype is torch.bfloat16 and features.device.type == "cpu" and not features.requires_grad:
        features.view(torch.int16).clamp_(min=0)
        return features
    return functional.relu(features, inplace=True)


def _stage(inputs: int, outputs: int, *, dilations: tuple[int, ...]) -> nn.Sequential:
    """Halve the resolution with a 2x2x2 convolution (which keeps cell centers exact), then residual blocks."""
    blocks = [ResidualBlock(outputs, dilation=dilation) for dilation in dilations]
    return nn.Sequential(ConvolutionUnit(inputs, outputs, 2, stride=2), *blocks)


def _pad_with_air(volume: Tensor) -> Tensor:
    """Pad (B, 1, D, H, W) at the far ends with 0, which is air, to multiples of the total stride."""
    padding: list[int] = []
    for size in reversed(volume.shape[2:]):
        padding += [0, -size % TOTAL_STRIDE]
    return functional.pad(volume, padding) if any(padding) else volume


def _space_to_depth(volume: Tensor) -> Tensor:
    """Rearrange (B, 1, 2D, 2H, 2W) into (B, 8, D, H, W): each 2x2x2 cell becomes eight channels."""
    batch, _, depth, height, width = volume.shape
    cells = volume.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2)
    channels_last = cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, depth // 2, height // 2, width // 2, 8)
    return channels_last.permute(0, 4, 1, 2, 3)


def _crop(features: Tensor, input_size: torch.Size, stride: int) -> Tensor:
    depth, height, width = (-(-size // stride) for size in input_size)
    return features[:, :, :depth, :height, :width]
