"""``sam-resnet18``: the published SAM / UAE embedding network, so that its checkpoints can be used.

SAM: Yan et al. 2022 (IEEE TMI, arXiv 2012.02383); UAE: Bai et al. 2023 (arXiv 2311.15111). A 3D ResNet-18 whose
first layers look in-plane only, a feature pyramid for the fine vectors and a head on the last stage for the coarse
ones. Modules are named so that the state dict has exactly the keys of the published files.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

WORKING_SPACING = 2.0
FINE_STRIDE = (2, 2, 2)
COARSE_STRIDE = (4, 16, 16)
"""Strides (z, y, x) of the two outputs."""

EMBEDDING_CHANNELS = 128
STAGE_CHANNELS = (64, 128, 256, 512)

_SLAB_BYTES = 160 * 2**20
_INPUT_RANGE = (-50.0, 205.0)


def preprocess_ct(volume_hu: Tensor) -> Tensor:
    """Map HU from [-1024, 3071] linearly to [-50, 205], clipped, in float32 (the published scaling)."""
    return _rescale(volume_hu.float(), -1024.0, 3071.0)


def preprocess_mr(volume: Tensor) -> Tensor:
    """Map the 0.2 and 99.8 percentiles linearly to -50 and 205, clipped, in float32 (the published scaling).

    Percentiles are taken over at most about a million regularly chosen voxels.
    """
    values = volume.float()
    samples = values.flatten()[:: max(1, values.numel() // 2**20)].sort().values
    lower, upper = (samples[round(fraction * (len(samples) - 1))].item() for fraction in (0.002, 0.998))
    return _rescale(values, lower, max(upper, lower + 1e-6))


class SamResnet18(nn.Module):
    """The embedding network: 32.83 M parameters, 0.39 MFLOP per input voxel.

    Output strides (z, y, x): fine (2, 2, 2), coarse (4, 16, 16). Like the published matching code, and like its
    interpolation of the coarse onto the fine map, voxel i of a map of stride s is taken to sit at input voxel
    s * i + (s - 1) / 2. The one-sidedly padded strided convolutions themselves are centered before that (fine: 0.5
    to 3.5 voxels in-plane, depending on the weights of the levels; coarse: 7.5 in-plane, 1 along z); as both
    volumes of a pair are displaced alike, this cancels in matching.

    Args:
        semantic: with UAE-S's third head, whose vectors then are half of the fine vectors.
    """

    def __init__(self, semantic: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = PyramidHead(STAGE_CHANNELS[:3])
        self.read_out_head = PyramidHead(STAGE_CHANNELS[3:])
        self.semantic_head = PyramidHead(STAGE_CHANNELS[:3]) if semantic else None

    def forward(self, volume: Tensor, slab_depth: int | None = None) -> tuple[Tensor, Tensor]:
        """Embed preprocessed volumes.

        Args:
            volume: (B, 1, D, H, W), the output of `preprocess_ct` or `preprocess_mr`, axes z, y, x, 2 mm voxels;
                D at least 2.
            slab_depth: slices for which the stem is computed at a time in evaluation mode, an even number; chosen
                to keep memory small by default. Does not change the result.

        Returns:
            ``fine`` (B, C, floor(D/2), ceil(H/2), ceil(W/2)) and ``coarse`` (B, 128, ceil(floor(D/2)/2),
            ceil(H/16), ceil(W/16)), unit vectors along C. C is 128, or 256 with the semantic head.
        """
        fine, coarse, semantic = self.embeddings(volume, slab_depth)
        if semantic is not None:
            fine = torch.cat((fine, semantic), dim=1).mul_(0.5**0.5)
        return fine, coarse

    def embeddings(self, volume: Tensor, slab_depth: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The unit vectors of each head: fine, coarse and, where the network has that head, semantic."""
        *pyramid, last = self.backbone(volume, slab_depth)
        coarse = _unit(self.read_out_head([last]))
        fine = _unit(self.neck(pyramid))
        semantic = _unit(self.semantic_head(pyramid)) if self.semantic_head is not None else None
        return fine, coarse, semantic

    def fused(self) -> SamResnet18:
        """A copy in evaluation mode with every normalization folded into its convolution (for inference)."""
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, ConvolutionUnit):
                module.fuse()
        return network


class ConvolutionUnit(nn.Module):
    """Convolution with batch normalization, or with a bias instead; no activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=not normalized)
        if normalized:
            self.bn: nn.Module = nn.BatchNorm3d(outputs)
        self.normalized = normalized

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return self.bn(features) if self.normalized else features

    def valid_along_z(self, features: Tensor) -> Tensor:
        """The same without padding along z: only the slices whose whole neighborhood is there."""
        padding = (0, *self.conv.padding[1:])
        features = functional.conv3d(features, self.conv.weight, self.conv.bias, self.conv.stride, padding)
        return self.bn(features) if self.normalized else features

    def fuse(self) -> None:
        """Fold the normalization, if any, into the convolution; evaluation mode only."""
        if self.normalized and isinstance(self.bn, nn.BatchNorm3d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1x1 convolution where the shape changes."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = ConvolutionUnit(inputs, outputs, kernel, stride)
        self.conv2 = ConvolutionUnit(outputs, outputs, kernel)
        changes_shape = inputs != outputs or stride != (1, 1, 1)
        self.downsample = ConvolutionUnit(inputs, outputs, (1, 1, 1), stride) if changes_shape else None

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        features = self.conv2(functional.relu(self.conv1(features), inplace=True))
        return functional.relu(features.add_(shortcut), inplace=True)


class Backbone(nn.Module):
    """3D ResNet-18 without a pooling stem; returns the outputs of its four stages.

    Output strides (z, y, x): (2, 2, 2), (2, 4, 4), (2, 8, 8), (4, 16, 16).
    """

    def __init__(self) -> None:
        super().__init__()
        in_plane, full = (1, 3, 3), (3, 3, 3)
        self.conv1 = ConvolutionUnit(1, 64, (3, 7, 7))
        self.layer1 = _layer(64, 64, in_plane, (1, 2, 2))
        self.layer2 = _layer(64, 128, in_plane, (1, 2, 2))
        self.layer3 = _layer(128, 256, full, (1, 2, 2))
        self.layer4 = _layer(256, 512, full, (2, 2, 2))

    def forward(self, volume: Tensor, slab_depth: int | None = None) -> list[Tensor]:
        first, second = self._whole(volume) if self.training else self._in_slabs(volume, slab_depth)
        third = self.layer3(second)
        return [first, second, third, self.layer4(third)]

    def _whole(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_plane_stages(self.conv1(volume))

    def _in_slabs(self, volume: Tensor, slab_depth: int | None) -> tuple[Tensor, Tensor]:
        """The stem and the in-plane stages slab by slab: only the stem looks along z, by one slice."""
        depth = volume.shape[2] // 2 * 2
        slab_depth = slab_depth or _slab_depth(volume)
        padded = functional.pad(volume, (0, 0, 0, 0, 1, 1))
        outputs: tuple[Tensor, Tensor] | None = None
        for start in range(0, depth, slab_depth):
            stop = min(start + slab_depth, depth)
            parts = self._in_plane_stages(self.conv1.valid_along_z(padded[:, :, start : stop + 2]))
            if outputs is None:
                outputs = _room_for(parts[0], depth // 2), _room_for(parts[1], depth // 2)
            for output, part in zip(outputs, parts, strict=True):
                output[:, :, start // 2 : stop // 2] = part
        if outputs is None:
            raise ValueError("a volume needs at least two slices")
        return outputs

    def _in_plane_stages(self, stem: Tensor) -> tuple[Tensor, Tensor]:
        first = self.layer1(functional.relu(stem, inplace=True))
        first = functional.max_pool3d(first, (2, 1, 1), (2, 1, 1))
        return first, self.layer2(first)


class PyramidHead(nn.Module):
    """Project each level to 128 channels, add from the coarsest to the finest, convolve the finest."""

    def __init__(self, level_channels: Sequence[int]) -> None:
        super().__init__()
        outputs = EMBEDDING_CHANNELS
        self.lateral_convs = nn.ModuleList(
            ConvolutionUnit(channels, outputs, (1, 1, 1), normalized=False) for channels in level_channels
        )
        self.fpn_convs = nn.ModuleList([ConvolutionUnit(outputs, outputs, (3, 3, 3), normalized=False)])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        merged = self.lateral_convs[-1](levels[-1])
        for lateral, level in zip(reversed(self.lateral_convs[:-1]), reversed(levels[:-1]), strict=True):
            finer = lateral(level)
            merged = finer.add_(functional.interpolate(merged, size=finer.shape[2:], mode="nearest"))
        return self.fpn_convs[0](merged)


def _layer(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, kernel, stride), BasicBlock(outputs, outputs, kernel, (1, 1, 1))
    )


def _slab_depth(volume: Tensor) -> int:
    """The even number of slices whose stem output stays within the slab budget."""
    height, width = volume.shape[3:]
    bytes_per_slice = volume.shape[0] * 64 * height * width * volume.element_size()
    return max(2, _SLAB_BYTES // bytes_per_slice // 2 * 2)


def _room_for(slab: Tensor, depth: int) -> Tensor:
    """An empty tensor like the slab but of the whole depth, in the slab's memory order."""
    batch, channels, _, height, width = slab.shape
    last = slab.is_contiguous(memory_format=torch.channels_last_3d)
    order = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(
        (batch, channels, depth, height, width), dtype=slab.dtype, device=slab.device, memory_format=order
    )


def _unit(vectors: Tensor) -> Tensor:
    """Vectors divided by their length along dimension 1, in place where no gradient is needed."""
    if torch.is_grad_enabled() and vectors.requires_grad:
        return functional.normalize(vectors, dim=1)
    return vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_(min=1e-6))


def _rescale(values: Tensor, lower: float, upper: float) -> Tensor:
    """Map [lower, upper] linearly to the input range, clipped; does not change its argument."""
    start, end = _INPUT_RANGE
    return ((values - lower) * ((end - start) / (upper - lower)) + start).clamp_(start, end)
