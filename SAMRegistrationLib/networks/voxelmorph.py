"""The VoxelMorph U-Net: Balakrishnan et al. 2019 (IEEE TMI 38(8), 1788), with the widths of SAME's public code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .deformable_network import DeformableNetwork, Embeddings
from .fields import SQUARINGS, crop, enlarge_field, integrate_velocity, pad_to_multiple

ENCODER_WIDTHS = (16, 32, 32, 32)
DECODER_WIDTHS = (32, 32, 32, 32, 32, 16, 16)
SLOPE = 0.2
"""Of the leaky ReLU."""


class VoxelMorph(DeformableNetwork):
    """A U-Net from the stacked pair to one displacement, or to a velocity that is integrated.

    Args:
        encoder: channels of the convolutions on the way down, one per level.
        decoder: channels of the convolutions on the way up, one per level, then at full resolution.
        diffeomorphic: whether the last layer gives a velocity at half resolution, integrated in `squarings` steps.
    """

    name = "voxelmorph"

    def __init__(
        self,
        encoder: Sequence[int] = ENCODER_WIDTHS,
        decoder: Sequence[int] = DECODER_WIDTHS,
        diffeomorphic: bool = False,
        squarings: int = SQUARINGS,
    ) -> None:
        options = {"encoder": list(encoder), "decoder": list(decoder)}
        super().__init__({**options, "diffeomorphic": diffeomorphic, "squarings": squarings})
        self.u_net = UNet(2, encoder, decoder)
        self.flow = FlowHead(diffeomorphic, squarings)

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,  # noqa: ARG002
        moving_embeddings: Embeddings | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        padded = pad_to_multiple(torch.cat((moving, fixed), dim=1), self.u_net.stride)
        return [crop(self.flow(self.u_net(padded)), fixed.shape[2:])]


class UNet(nn.Module):
    """Convolutions and max-pooling down, convolutions and nearest enlargement up, with skip connections.

    Args:
        inputs: channels of the input.
        encoder, decoder: channels as in `VoxelMorph`.
        injected: channels of a second input, which joins the features of stride 2.
    """

    def __init__(self, inputs: int, encoder: Sequence[int], decoder: Sequence[int], injected: int = 0) -> None:
        super().__init__()
        levels = len(encoder)
        if levels < 2 or len(decoder) < levels:
            raise ValueError("the encoder needs two levels or more, and the decoder at least as many")
        self.stride = 2**levels
        before = [inputs, encoder[0] + injected, *encoder[1:-1]]
        self.down = nn.ModuleList(map(convolution, before, encoder))
        widths = [encoder[-1]]
        self.up = nn.ModuleList()
        for width, skipped in zip(decoder, reversed(encoder), strict=False):
            self.up.append(convolution(widths[-1], width))
            widths.append(width + skipped)
        self.full = nn.Sequential()
        for width in decoder[levels:]:
            self.full.append(convolution(widths[-1], width))
            widths.append(width)
        self.flow = flow_convolution(widths[-1])

    def forward(self, volume: Tensor, injected: Tensor | None = None) -> Tensor:
        """The prediction (B, 3, z, y, x) for an input (B, C, z, y, x) whose size is a multiple of `stride`.

        The second input is (B, C', z/2, y/2, x/2).
        """
        features = volume
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            if level == 1 and injected is not None:
                features = torch.cat((features, injected.to(features.dtype)), dim=1)
            skips.append(down(features))
            features = functional.max_pool3d(skips[-1], 2)
        for up in self.up:
            features = functional.interpolate(up(features), scale_factor=2.0, mode="nearest")
            features = torch.cat((features, skips.pop()), dim=1)
        return self.flow(self.full(features))


class FlowHead(nn.Module):
    """What a backbone's prediction means: a displacement, or a velocity to integrate at half resolution."""

    def __init__(self, diffeomorphic: bool, squarings: int = SQUARINGS) -> None:
        super().__init__()
        self.diffeomorphic = diffeomorphic
        self.squarings = squarings

    def forward(self, prediction: Tensor) -> Tensor:
        """The displacement (B, 3, z, y, x), float32, of a prediction (B, 3, z, y, x) of even size."""
        if not self.diffeomorphic:
            return prediction.float()
        velocity = functional.avg_pool3d(prediction.float(), 2) / 2.0
        return enlarge_field(integrate_velocity(velocity, self.squarings), 2, prediction.shape[2:])


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3x3 convolution and a leaky ReLU."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True))


def flow_convolution(inputs: int, kernel: int = 3) -> nn.Conv3d:
    """The convolution that predicts three components, which starts near zero."""
    layer = nn.Conv3d(inputs, 3, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
