"""SAM-VoxelMorph, the learned last step of SAME: Liu et al. 2021 (MICCAI, arXiv 2109.11572).

Correlations of anatomical embeddings tell the network where each voxel may have come from. The paper has a
progressive holistically nested network (P-HNN, Harrison et al. 2017) behind them, its public code a U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .correlation import embedding_correlation
from .deformable_network import DeformableNetwork, Embeddings
from .fields import SQUARINGS, coarsen, crop, enlarge_field, pad_to_multiple
from .voxelmorph import DECODER_WIDTHS, ENCODER_WIDTHS, FlowHead, UNet, convolution, flow_convolution

BLOCK_WIDTHS = (16, 32, 64, 96, 96)
BLOCK_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions per block, as in VGG-16."""

FINE_STRIDE = 2
SHIFTS = 27
CORRELATION_STEP = 2


class SAMVoxelMorph(DeformableNetwork):
    """A displacement from the stacked pair and the correlations of its embeddings.

    Args:
        backbone: "p-hnn" or "u-net".
        fine_correlation, coarse_correlation: which embeddings to correlate; with neither, only intensities count.
        coarse_stride: (z, y, x) stride of the coarse map; that of the fine one is 2.
        correlation_step: the shifts are -step, 0 and step voxels of the fine map.
        block_widths: channels of the blocks of the P-HNN.
        encoder, decoder: channels of the U-Net, as in `VoxelMorph`.
        diffeomorphic, squarings: as in `VoxelMorph`.
    """

    name = "sam-voxelmorph"

    def __init__(
        self,
        backbone: str = "p-hnn",
        fine_correlation: bool = True,
        coarse_correlation: bool = True,
        coarse_stride: Sequence[int] = (8, 8, 8),
        correlation_step: int = CORRELATION_STEP,
        block_widths: Sequence[int] = BLOCK_WIDTHS,
        encoder: Sequence[int] = ENCODER_WIDTHS,
        decoder: Sequence[int] = DECODER_WIDTHS,
        diffeomorphic: bool = False,
        squarings: int = SQUARINGS,
    ) -> None:
        super().__init__(
            {
                "backbone": backbone,
                "fine_correlation": fine_correlation,
                "coarse_correlation": coarse_correlation,
                "coarse_stride": list(coarse_stride),
                "correlation_step": correlation_step,
                "block_widths": list(block_widths),
                "encoder": list(encoder),
                "decoder": list(decoder),
                "diffeomorphic": diffeomorphic,
                "squarings": squarings,
            }
        )
        self.uses_embeddings = fine_correlation or coarse_correlation
        self.fine_correlation = fine_correlation
        self.coarse_correlation = coarse_correlation
        self.enlargement = [stride // FINE_STRIDE for stride in coarse_stride]
        self.correlation_step = correlation_step
        injected = SHIFTS if self.uses_embeddings else 0
        if backbone == "p-hnn":
            self.backbone: UNet | ProgressiveNetwork = ProgressiveNetwork(2, block_widths, injected)
        elif backbone == "u-net":
            self.backbone = UNet(2, encoder, decoder, injected)
        else:
            raise ValueError(f"there is no backbone {backbone!r} (there are p-hnn, u-net)")
        self.flow = FlowHead(diffeomorphic, squarings)

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,
        moving_embeddings: Embeddings | None = None,
    ) -> list[Tensor]:
        padded = pad_to_multiple(torch.cat((moving, fixed), dim=1), self.backbone.stride)
        correlations = None
        if self.uses_embeddings:
            if fixed_embeddings is None or moving_embeddings is None:
                raise ValueError("the correlation features need the embeddings of both volumes")
            correlations = self._correlations(fixed_embeddings, moving_embeddings)
            correlations = pad_to_multiple(correlations, self.backbone.stride // FINE_STRIDE)
        return [crop(self.flow(self.backbone(padded, correlations)), fixed.shape[2:])]

    def _correlations(self, fixed: Embeddings, moving: Embeddings) -> Tensor:
        """The mean of the wanted correlations, (B, 27, z, y, x) on the fine map's grid."""
        parts = []
        if self.fine_correlation:
            parts.append(embedding_correlation(fixed[0], moving[0], self.correlation_step))
        if self.coarse_correlation:
            coarse = embedding_correlation(fixed[1], moving[1], self.correlation_step, self.enlargement)
            parts.append(crop(coarse, fixed[0].shape[2:]))
        return sum(parts[1:], parts[0]) / len(parts)


class ProgressiveNetwork(nn.Module):
    """P-HNN: VGG's blocks, each with a side prediction that is added to those of the blocks before it.

    Args:
        inputs: channels of the input.
        widths: channels of the five blocks, at strides 1, 2, 4, 8 and 16.
        injected: channels of a second input of stride 2, which joins the third block's input.
    """

    def __init__(self, inputs: int, widths: Sequence[int] = BLOCK_WIDTHS, injected: int = 0) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.blocks = nn.ModuleList()
        before = inputs
        for number, (width, depth) in enumerate(zip(widths, BLOCK_DEPTHS, strict=True)):
            first = convolution(before + (injected if number == 2 else 0), width)
            self.blocks.append(nn.Sequential(first, *(convolution(width, width) for _ in range(depth - 1))))
            before = width
        self.sides = nn.ModuleList(flow_convolution(width, kernel=1) for width in widths)

    def forward(self, volume: Tensor, injected: Tensor | None = None) -> Tensor:
        """The prediction (B, 3, z, y, x) for an input (B, C, z, y, x) whose size is a multiple of `stride`.

        The second input is (B, C', z/2, y/2, x/2).
        """
        prediction = torch.zeros((), device=volume.device)
        features = volume
        for number, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if number > 0:
                features = functional.max_pool3d(features, 2)
            if number == 2 and injected is not None:
                features = torch.cat((features, coarsen(injected, 2).to(features.dtype)), dim=1)
            features = block(features)
            prediction = prediction + enlarge_field(side(features), 2**number, volume.shape[2:])
        return prediction
