"""The general model of RSO (region-specific optimization): MONAI's residual 3D U-Net, here in plain torch.

Its layers stand in the order of MONAI's, with the same shapes, so that their weights can be copied one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .deformable_network import DeformableNetwork, Embeddings
from .fields import crop, pad_to_multiple

CHANNELS = (16, 32, 64, 128, 256)


class ResidualUNet(DeformableNetwork):
    """A displacement from the stacked pair: two residual units per level, strides of 2 except at the bottom.

    Args:
        channels: of the levels, each at half the resolution of the one before; the first at half the input's, the
            last at that of the last but one.
    """

    name = "residual-u-net"

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__({"channels": list(channels)})
        if len(channels) < 2:
            raise ValueError("the network needs two levels or more")
        self.multiple = 2 ** (len(channels) - 1)
        self.u_net = Level(2, 3, channels, is_top=True)

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,  # noqa: ARG002
        moving_embeddings: Embeddings | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        padded = pad_to_multiple(torch.cat((fixed, moving), dim=1), self.multiple)
        if max(padded.shape[2:]) == self.multiple:
            # One voxel at the bottom has no variance to normalize by.
            padded = functional.pad(padded, (0, self.multiple, 0, 0, 0, 0), mode="replicate")
        return [crop(self.u_net(padded).float(), fixed.shape[2:])]


class Level(nn.Module):
    """One step down, everything below with a connection around it, one step up: sizes stay, channels change.

    Args:
        inputs, outputs: channels.
        channels: of this level and of those below.
        is_top: the last convolution is the network's output, without normalization and activation.
    """

    def __init__(self, inputs: int, outputs: int, channels: Sequence[int], *, is_top: bool = False) -> None:
        super().__init__()
        own, *below = channels
        self.down = ResidualUnit(inputs, own, stride=2)
        if len(below) > 1:
            self.below: nn.Module = Level(own, own, below)
            joined = 2 * own
        else:
            self.below = ResidualUnit(own, below[0])
            joined = own + below[0]
        self.up = nn.ConvTranspose3d(joined, outputs, 3, stride=2, padding=1, output_padding=1)
        self.activation = normalized_activation(outputs)
        self.unit = ResidualUnit(outputs, outputs, convolutions=1, bare=is_top)

    def forward(self, features: Tensor) -> Tensor:
        own = self.down(features)
        joined = torch.cat((own, self.below(own)), dim=1)
        return self.unit(self.activation(self.up(joined)))


class ResidualUnit(nn.Module):
    """Convolutions with normalization and activation, and a shortcut that is a convolution where shapes change.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
        convolutions: how many.
        bare: without normalization and activation after the last.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, convolutions: int = 2, bare: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for number in range(convolutions):
            first, last = number == 0, number == convolutions - 1
            self.body.append(
                nn.Conv3d(inputs if first else outputs, outputs, 3, stride if first else 1, padding=1)
            )
            if not (last and bare):
                self.body.append(normalized_activation(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        elif inputs != outputs:
            self.shortcut = nn.Conv3d(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) + self.shortcut(features)


def normalized_activation(channels: int) -> nn.Sequential:
    """Instance normalization and PReLU."""
    return nn.Sequential(nn.InstanceNorm3d(channels), nn.PReLU())
