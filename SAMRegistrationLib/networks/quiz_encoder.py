"""The encoder of the query point network: a 3D ResNet-10, and an anatomical embedding joined to what it sees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

_GROUPS = 8


class ResNet10(nn.Module):
    """Ten layers, counting the 1x1x1 convolution to the wanted channels; stride 8.

    Groups are normalized, for a batch of two volumes has no statistics worth the name.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = nn.Conv3d(1, first, 7, stride=2, padding=3, bias=False)
        self.normalization = _normalization(first)
        self.stages = nn.Sequential(
            BasicBlock(first, first),
            BasicBlock(first, second, stride=2),
            BasicBlock(second, third, dilation=2),
            BasicBlock(third, fourth, dilation=4),
        )
        self.head = nn.Conv3d(fourth, channels, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        """(b, 1, z, y, x) to (b, C, z/8, y/8, x/8)."""
        features = functional.relu(self.normalization(self.stem(volumes)), inplace=True)
        features = functional.max_pool3d(features, 3, stride=2, padding=1)
        result: Tensor = self.head(self.stages(features))
        return result


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.first_normalization = _normalization(outputs)
        self.second = nn.Conv3d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.second_normalization = _normalization(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), _normalization(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        body = functional.relu(self.first_normalization(self.first(features)), inplace=True)
        body = self.second_normalization(self.second(body))
        return functional.relu(body + self.shortcut(features), inplace=True)


class Fusion(nn.Module):
    """Image features, enlarged to an embedding's resolution, and the embedding, seen with its surroundings."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.embedding = nn.Conv3d(embedding_channels, channels, 1)
        self.image = nn.Conv3d(channels, channels, 1)
        self.narrow = nn.Conv3d(channels, half, 1)
        self.block = BasicBlock(half, half)
        self.widen = nn.Conv3d(half, channels, 1)
        self.normalization = _normalization(channels)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        enlarged = functional.interpolate(
            self.image(features), size=embedding.shape[2:], mode="trilinear", align_corners=False
        )
        joined = self.embedding(embedding) + enlarged
        result: Tensor = self.normalization(joined + self.widen(self.block(self.narrow(joined))))
        return result


def _normalization(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(_GROUPS, channels), channels)
