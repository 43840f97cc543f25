"""The recurrent update of RWCNet: correlation, motion encoder, gated recurrent unit, and correction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .correlation import feature_differences
from .fields import average
from .patches import Patch, part_of, patches
from .voxelmorph import flow_convolution

MOTION_CHANNELS = 16
REACH = 9
"""Voxels that a correction depends on in each direction: two convolutions of the head, two of the recurrent unit,
one of the motion encoder, and there the field's convolutions of 3 and 7 voxels (the correlations reach less far,
apart from their shifts)."""


class RecurrentUpdate(nn.Module):
    """One step of the recurrence, at every voxel alike.

    Args:
        features: channels of the feature maps.
        hidden: channels of the state.
        radius: largest shift of the correlations along each axis, in voxels.
        correlation: without it, the motion encoder gets the feature maps themselves.
        correlation_gradient: whether the feature maps are also trained through the correlations.
        patch_voxels: the step is computed in patches of at most so many voxels, which does not change the result.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        radius: int,
        *,
        correlation: bool,
        correlation_gradient: bool,
        patch_voxels: int,
    ) -> None:
        super().__init__()
        self.radius = radius if correlation else 0
        self.correlation = correlation
        self.correlation_gradient = correlation_gradient
        self.patch_voxels = patch_voxels
        self.motion = MotionEncoder((2 * radius + 1) ** 3 if correlation else 2 * features, smooth=correlation)
        self.unit = ConvolutionalGRU(MOTION_CHANNELS + features, hidden)
        self.head = nn.Sequential(
            nn.Conv3d(hidden, 2 * hidden, 3, padding=1), nn.LeakyReLU(inplace=True), flow_convolution(2 * hidden)
        )

    def forward(self, fixed: Tensor, moving: Tensor, field: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            fixed: features (B, features, z, y, x).
            moving: the moving volume's features, warped by the field, of the same shape.
            field: the field so far (B, 3, z, y, x).
            state: (B, hidden, z, y, x).

        Returns:
            The next state, and the correction (B, 3, z, y, x) of the field, float32.
        """
        surrounded = functional.pad(moving, (self.radius,) * 6, mode="replicate")
        parts = patches(fixed.shape[2:], REACH, self.patch_voxels)
        if len(parts) == 1:
            return self._step(fixed, surrounded, field, state)
        results = (self._step_of_patch(patch, fixed, surrounded, field, state) for patch in parts)
        return _assembled(parts, results, fixed.shape[2:])

    def _step_of_patch(
        self, patch: Patch, fixed: Tensor, surrounded: Tensor, field: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = (
            part_of(fixed, patch.seen),
            part_of(surrounded, patch.seen, margin=self.radius),
            part_of(field, patch.seen),
            part_of(state, patch.seen),
        )
        if torch.is_grad_enabled():
            # What takes several patches would also fill the memory with what the backward pass needs.
            next_state, correction = checkpoint(self._step, *inputs, use_reentrant=False)
        else:
            next_state, correction = self._step(*inputs)
        return part_of(next_state, patch.core_in_seen), part_of(correction, patch.core_in_seen)

    def _step(self, fixed: Tensor, surrounded: Tensor, field: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step where `surrounded` has the moving features with a margin of the radius."""
        region = [slice(self.radius, self.radius + size) for size in fixed.shape[2:]]
        moving = surrounded[:, :, region[0], region[1], region[2]]
        motion = self.motion(self._evidence(fixed, moving, surrounded), field)
        state = self.unit(state, torch.cat((motion, moving), dim=1))
        return state, self.head(state).float()

    def _evidence(self, fixed: Tensor, moving: Tensor, surrounded: Tensor) -> Tensor:
        if not self.correlation:
            return torch.cat((fixed, moving), dim=1)
        if not self.correlation_gradient:
            fixed, surrounded = fixed.detach(), surrounded.detach()
        return feature_differences(fixed, surrounded, self.radius)


def _assembled(
    parts: list[Patch], results: Iterable[tuple[Tensor, Tensor]], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    wholes: list[Tensor] = []
    for patch, tensors in zip(parts, results, strict=True):
        if not wholes:
            wholes = [tensor.new_empty((*tensor.shape[:2], *shape)) for tensor in tensors]
        for whole, tensor in zip(wholes, tensors, strict=True):
            whole[:, :, patch.core[0], patch.core[1], patch.core[2]] = tensor
    return wholes[0], wholes[1]


class MotionEncoder(nn.Module):
    """What correlations and the field so far say about the motion, with the field itself in the last channels.

    Args:
        evidence: channels of the correlations, or of what takes their place.
        smooth: whether to average the evidence over 3x3x3 voxels. As the first convolution looks at single voxels,
            that is done after it, with 8 channels instead of hundreds.
    """

    def __init__(self, evidence: int, *, smooth: bool) -> None:
        super().__init__()
        self.projection = nn.Conv3d(evidence, 8, 1)
        self.smooth = smooth
        self.evidence = _rectified_convolution(8, 8, 3)
        self.field = nn.Sequential(_rectified_convolution(3, 4, 7), _rectified_convolution(4, 8, 3))
        self.merge = _rectified_convolution(16, MOTION_CHANNELS - 3, 3)

    def forward(self, evidence: Tensor, field: Tensor) -> Tensor:
        """(B, 16, z, y, x) from evidence (B, C, z, y, x) and a field (B, 3, z, y, x)."""
        evidence = self.projection(evidence)
        if self.smooth:
            evidence = average(evidence, 3, padding=1)
        evidence = self.evidence(functional.relu(evidence, inplace=True))
        field = field.to(evidence.dtype)
        return torch.cat((self.merge(torch.cat((evidence, self.field(field)), dim=1)), field), dim=1)


class ConvolutionalGRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) whose matrices are 3x3x3 convolutions.

    Args:
        inputs: channels of the input.
        hidden: channels of the state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Conv3d(hidden + inputs, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv3d(hidden + inputs, hidden, 3, padding=1)

    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        """The next state (B, hidden, z, y, x); update and reset gate have weights of their own."""
        update, reset = torch.sigmoid(self.gates(torch.cat((state, inputs), dim=1))).chunk(2, dim=1)
        candidate = torch.tanh(self.candidate(torch.cat((reset * state, inputs), dim=1)))
        return state + update * (candidate - state)


def _rectified_convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True))
