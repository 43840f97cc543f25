"""The residual encoder-decoder of Myronenko 2018 (arXiv 1810.11654) without its variational branch.

Its layers stand in the order of MONAI's SegResNet, with the same shapes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .fields import crop, pad_to_multiple

BLOCKS_DOWN = (1, 2, 2, 4)
STRIDE = 2 ** (len(BLOCKS_DOWN) - 1)
GROUPS = 8


class ResidualEncoderDecoder(nn.Module):
    """Features of full resolution with context from strides 2, 4 and 8.

    Group normalization looks at the whole volume, so a crop's features differ from the volume's.

    Args:
        inputs, outputs: channels.
        filters: channels at full resolution; each stride of two doubles them.
        dropout: share of the first layer's channels left out in training.
    """

    def __init__(self, inputs: int, outputs: int, filters: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(len(BLOCKS_DOWN))]
        self.first = _convolution(inputs, filters)
        self.down = nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(widths, BLOCKS_DOWN, strict=True)):
            halving = [_convolution(width // 2, width, stride=2)] if level else []
            self.down.append(nn.Sequential(*halving, *(NormalizedBlock(width) for _ in range(blocks))))
        finer = widths[-2::-1]
        self.up = nn.ModuleList(NormalizedBlock(width) for width in finer)
        self.lateral = nn.ModuleList(nn.Conv3d(2 * width, width, 1, bias=False) for width in finer)
        self.last = nn.Sequential(_normalization(filters), nn.ReLU(), nn.Conv3d(filters, outputs, 1))
        self.dropout = dropout

    def forward(self, volume: Tensor) -> Tensor:
        """Features (B, outputs, z, y, x) of a volume (B, inputs, z, y, x) of any size."""
        features = self.first(pad_to_multiple(volume, STRIDE))
        features = functional.dropout3d(features, self.dropout, self.training)
        skips = []
        for down in self.down:
            features = down(features)
            skips.append(features)
        skips.pop()
        for up, lateral in zip(self.up, self.lateral, strict=True):
            enlarged = functional.interpolate(
                lateral(features), scale_factor=2.0, mode="trilinear", align_corners=False
            )
            features = up(enlarged + skips.pop())
        return self.last(crop(features, volume.shape[2:]))


class NormalizedBlock(nn.Module):
    """Two convolutions, each after normalization and activation, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = _normalization(width)
        self.norm2 = _normalization(width)
        self.conv1 = _convolution(width, width)
        self.conv2 = _convolution(width, width)

    def forward(self, features: Tensor) -> Tensor:
        first = self.conv1(functional.relu(self.norm1(features), inplace=True))
        return self.conv2(functional.relu(self.norm2(first), inplace=True)) + features


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _normalization(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(GROUPS, width), width)
