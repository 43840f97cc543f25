"""LapIRN: Mok and Chung 2020 (MICCAI, arXiv 2006.16148), in the form of the published checkpoints.

Three networks at strides 4, 2 and 1, trained one after the other. Their fields count in halves of the volume's
extent between its outermost voxel centers, as the published weights want it; `LapIRN` returns voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .deformable_network import DeformableNetwork, Embeddings
from .fields import SQUARINGS, average, crop, integrate_velocity, pad_to_multiple, strided_shape, warp

WIDTH = 28
LARGEST_STEP = 0.4
BLOCKS = 5
SLOPE = 0.2

PUBLISHED_PREFIXES = ("model_lvl2.model_lvl1.", "model_lvl2.", "")
"""Of the parameters of each level, coarse to fine, in the published files."""

PUBLISHED_PARTS = {
    "input_encoder_lvl1.": "encoder.",
    "down_conv.": "down.",
    "resblock_group_lvl1.": "blocks.",
    "up.": "up.",
    "output_lvl1.": "output.",
}


class LapIRN(DeformableNetwork):
    """A Laplacian pyramid: each level sees the moving volume warped by the level before, and corrects its field.

    Args:
        diffeomorphic: levels predict velocities, which are added up and integrated; otherwise displacements.
        width: channels of the hidden layers (28 in the published files).
        largest_step: what one level can predict at most, in halves of the volume's extent.
        squarings: steps of the integration.
    """

    name = "lapirn"
    strides = (4, 2, 1)
    stages = 3

    def __init__(
        self,
        diffeomorphic: bool = False,
        width: int = WIDTH,
        largest_step: float = LARGEST_STEP,
        squarings: int = SQUARINGS,
    ) -> None:
        super().__init__(
            {
                "diffeomorphic": diffeomorphic,
                "width": width,
                "largest_step": largest_step,
                "squarings": squarings,
            }
        )
        self.diffeomorphic = diffeomorphic
        self.squarings = squarings
        self.levels = nn.ModuleList(PyramidLevel(inputs, width, largest_step) for inputs in (2, 5, 5))

    def stage_module(self, number: int) -> nn.Module:
        return self.levels[number]

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,  # noqa: ARG002
        moving_embeddings: Embeddings | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        pyramid = _pyramid(pad_to_multiple(torch.cat((moving, fixed), dim=1), 2 * self.strides[0]))
        prediction: Tensor | None = None
        field: Tensor | None = None
        context: Tensor | None = None
        fields: list[Tensor] = []
        for level, stride in zip(range(self.stage + 1), self.strides, strict=False):
            moving_here, fixed_here = pyramid[level].split(1, dim=1)
            inputs = [moving_here, fixed_here]
            if prediction is not None and field is not None:
                prediction, field = _doubled(prediction), _doubled(field)
                inputs = [warp(moving_here, _in_voxels(field)), fixed_here, prediction.to(fixed_here.dtype)]
            step, context = self.levels[level](torch.cat(inputs, dim=1), context)
            prediction = step if prediction is None else prediction + step
            field = self._integrated(prediction) if self.diffeomorphic else prediction
            fields.append(crop(_in_voxels(field), strided_shape(fixed.shape[2:], stride)))
        return fields

    def _integrated(self, velocity: Tensor) -> Tensor:
        halves = _halves(velocity)
        return integrate_velocity(velocity * halves, self.squarings) / halves


class PyramidLevel(nn.Module):
    """The network of one level.

    Args:
        inputs: channels of the input: both volumes, and the field so far except at the coarsest level.
        width: channels of the hidden layers.
        largest_step: bound of the prediction.
    """

    def __init__(self, inputs: int, width: int, largest_step: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_convolution(inputs, width), _leaky(), _convolution(width, width))
        self.down = _convolution(width, width, stride=2)
        self.blocks = nn.Sequential()
        for _ in range(BLOCKS):
            self.blocks.append(PreactivatedBlock(width))
            self.blocks.append(_leaky())
        self.up = nn.ConvTranspose3d(width, width, 2, stride=2, bias=False)
        self.output = nn.Sequential(_convolution(2 * width, width), _leaky(), _convolution(width, 3))
        self.largest_step = largest_step

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predict a correction.

        Args:
            inputs: (B, C, z, y, x) of even size.
            context: the features (B, width, z/2, y/2, x/2) that the level before has returned.

        Returns:
            The correction (B, 3, z, y, x), and features (B, width, z, y, x) for the next level.
        """
        fine = self.encoder(inputs)
        coarse = self.down(fine)
        if context is not None:
            coarse = coarse + context
        features = self.up(self.blocks(coarse))
        joined = _convolution_of_both(self.output[0], features, fine)
        return functional.softsign(self.output[1:](joined).float()) * self.largest_step, features


class PreactivatedBlock(nn.Module):
    """Two convolutions, each after its activation, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width)
        self.conv2 = _convolution(width, width)

    def forward(self, features: Tensor) -> Tensor:
        first = self.conv1(functional.leaky_relu(features, SLOPE))
        return features + self.conv2(functional.leaky_relu(first, SLOPE))


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a published LapIRN file under the names of `LapIRN`.

    The files of the displacement and of the diffeomorphic variant have the same names and shapes.

    Raises:
        ValueError: if a name is not one of that layout.
    """
    renamed = {}
    for name, value in weights.items():
        level = next(number for number, prefix in enumerate(PUBLISHED_PREFIXES) if name.startswith(prefix))
        rest = name.removeprefix(PUBLISHED_PREFIXES[level])
        part = next((part for part in PUBLISHED_PARTS if rest.startswith(part)), None)
        if part is None:
            raise ValueError(f"{name!r} is no parameter of a published LapIRN")
        renamed[f"levels.{level}.{PUBLISHED_PARTS[part]}{rest.removeprefix(part)}"] = value
    return renamed


def published_width(weights: Mapping[str, Tensor]) -> int:
    """The option `width` of a network for such weights (before or after `from_published`).

    Raises:
        ValueError: if the weights are none of LapIRN's.
    """
    for name, value in weights.items():
        if name.endswith(("down_conv.weight", "down.weight")):
            return value.shape[0]
    raise ValueError("these weights are not those of a LapIRN")


def _pyramid(pair: Tensor) -> list[Tensor]:
    """The pair (B, 2, z, y, x) at strides 4, 2 and 1."""
    levels = [pair]
    for _ in range(2):
        levels.insert(0, average(levels[0], 3, stride=2, padding=1))
    return levels


def _doubled(field: Tensor) -> Tensor:
    """A field (B, 3, z, y, x) in halves of the extent on the next finer grid: the numbers stay the same."""
    return functional.interpolate(field, scale_factor=2.0, mode="trilinear", align_corners=False)


def _in_voxels(field: Tensor) -> Tensor:
    return field * _halves(field)


def _halves(field: Tensor) -> Tensor:
    """Half the extent in voxels along x, y and z, (1, 3, 1, 1, 1)."""
    sizes = [(size - 1) / 2.0 for size in reversed(field.shape[2:])]
    return torch.tensor(sizes, device=field.device).view(1, 3, 1, 1, 1)


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _convolution_of_both(convolution: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """The convolution of both inputs one after the other, without a copy of them that is as large as both."""
    weights = cast(Tensor, convolution.weight).split((first.shape[1], second.shape[1]), dim=1)
    result = functional.conv3d(first, weights[0], padding=1)
    result += functional.conv3d(second, weights[1], padding=1)
    return result


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE, inplace=True)
