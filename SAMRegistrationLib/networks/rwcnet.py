"""RWCNet, recurrence with correlation: Sivan 2022 (thesis, University of Waterloo).

At each of three resolutions a recurrent unit corrects the displacement step by step, looking at how well the
features of the fixed volume fit those of the moving one around where they were found. Two things that the public
code gets wrong are as the thesis has them: the reset gate has its own weights, and the integration of a velocity
is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .deformable_network import DeformableNetwork, Embeddings
from .fields import SQUARINGS, coarsen, compose, enlarge, enlarge_field, integrate_velocity, warp
from .recurrent_update import RecurrentUpdate
from .residual_encoder import ResidualEncoderDecoder

RESOLUTIONS = (4, 2, 1)
STEPS = (12, 12, 4)
RADII = (3, 3, 2)
CHANNELS_AT_ONCE = 8


class RWCNet(DeformableNetwork):
    """Recurrent networks at falling strides, each trained after those before it.

    Args:
        resolutions: stride of each stage, each half of the one before. One that ends above 1 is a network of less
            than full resolution, whose last field is enlarged.
        steps: of the recurrence, per stage.
        radii: largest shift of the correlations, per stage.
        features: channels of the feature maps.
        hidden: channels of the state, which each stage hands on to the next.
        filters: channels of the feature and context networks at their full resolution.
        correlation: without it, the recurrent unit gets the feature maps of both volumes instead.
        correlation_gradient: whether the feature networks are also trained through the correlations.
        diffeomorphic: each stage's correction is a velocity that is integrated in `squarings` steps.
        squarings: steps of the integration.
        dropout: share of channels left out of the feature networks in training.
        patch_voxels: patches of at most so many voxels are computed at a time, which does not change the result.
    """

    name = "rwcnet"

    def __init__(
        self,
        resolutions: Sequence[int] = RESOLUTIONS,
        steps: Sequence[int] = STEPS,
        radii: Sequence[int] = RADII,
        features: int = 16,
        hidden: int = 64,
        filters: int = 8,
        correlation: bool = True,
        correlation_gradient: bool = True,
        diffeomorphic: bool = False,
        squarings: int = SQUARINGS,
        dropout: float = 0.0,
        patch_voxels: int = 2**20,
    ) -> None:
        if any(coarse != 2 * fine for coarse, fine in pairwise(resolutions)):
            raise ValueError("each resolution must have half the stride of the one before")
        super().__init__(
            {
                "resolutions": list(resolutions),
                "steps": list(steps),
                "radii": list(radii),
                "features": features,
                "hidden": hidden,
                "filters": filters,
                "correlation": correlation,
                "correlation_gradient": correlation_gradient,
                "diffeomorphic": diffeomorphic,
                "squarings": squarings,
                "dropout": dropout,
                "patch_voxels": patch_voxels,
            }
        )
        self.resolutions = tuple(resolutions)
        self.strides = self.resolutions if self.resolutions[-1] == 1 else (*self.resolutions, 1)
        self.stages = len(self.resolutions)
        self.stage = self.stages - 1
        self.levels = nn.ModuleList(
            RecurrentStage(
                ResidualEncoderDecoder(1, features, filters, dropout),
                ResidualEncoderDecoder(1 if first else 4, hidden, filters),
                RecurrentUpdate(
                    features,
                    hidden,
                    radius,
                    correlation=correlation,
                    correlation_gradient=correlation_gradient,
                    patch_voxels=patch_voxels,
                ),
                count,
                squarings if diffeomorphic else None,
            )
            for first, count, radius in zip(
                (stride == resolutions[0] for stride in resolutions), steps, radii, strict=True
            )
        )

    def stage_module(self, number: int) -> nn.Module:
        return self.levels[number]

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,  # noqa: ARG002
        moving_embeddings: Embeddings | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        fields: list[Tensor] = []
        field: Tensor | None = None
        state: Tensor | None = None
        for level, stride in zip(range(self.stage + 1), self.resolutions, strict=False):
            fixed_here, moving_here = coarsen(fixed, stride), coarsen(moving, stride)
            if field is not None:
                field = enlarge_field(field, 2, fixed_here.shape[2:])
            field, state = self.levels[level](fixed_here, moving_here, field, state)
            fields.append(field)
        if self.stage == self.stages - 1 and self.resolutions[-1] != 1:
            fields.append(enlarge_field(fields[-1], self.resolutions[-1], fixed.shape[2:]))
        return fields


class RecurrentStage(nn.Module):
    """The recurrence at one resolution.

    Args:
        feature_network: volume (B, 1, z, y, x) to features, the same for both volumes.
        context_network: warped moving volume, after the field so far if there is one, to the first state.
        update: one step.
        steps: how many.
        squarings: of the integration, if the stage adds up a velocity instead of a displacement.
    """

    def __init__(
        self,
        feature_network: nn.Module,
        context_network: nn.Module,
        update: RecurrentUpdate,
        steps: int,
        squarings: int | None,
    ) -> None:
        super().__init__()
        self.feature_network = feature_network
        self.context_network = context_network
        self.update = update
        self.steps = steps
        self.squarings = squarings

    def forward(
        self, fixed: Tensor, moving: Tensor, field: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Correct the displacement of a coarser stage.

        Args:
            fixed, moving: (B, 1, z, y, x).
            field: the displacement so far (B, 3, z, y, x) on this grid, if any.
            state: the last state (B, hidden, z/2, y/2, x/2) of the coarser stage, if any.

        Returns:
            The whole displacement (B, 3, z, y, x), and the last state (B, hidden, z, y, x).
        """
        start = moving if field is None else warp(moving, field)
        fixed_features, moving_features = self.feature_network(fixed), self.feature_network(start)
        state = self._first_state(start, field, state)
        correction = torch.zeros_like(fixed[:, :1], dtype=torch.float32).expand(-1, 3, -1, -1, -1)
        for _ in range(self.steps):
            displaced = warp(moving_features, self._displacement(correction))
            state, step = self.update(fixed_features, displaced, correction, state)
            correction = correction + step
        displacement = self._displacement(correction)
        return (displacement if field is None else compose(displacement, field)), state

    def _first_state(self, start: Tensor, field: Tensor | None, coarser: Tensor | None) -> Tensor:
        inputs = start if field is None else torch.cat((field.to(start.dtype), start), dim=1)
        state = torch.tanh_(self.context_network(inputs))
        return state if coarser is None else _plus_enlarged(state, coarser)

    def _displacement(self, correction: Tensor) -> Tensor:
        return correction if self.squarings is None else integrate_velocity(correction, self.squarings)


def _plus_enlarged(state: Tensor, coarser: Tensor) -> Tensor:
    """The sum with a coarser stage's state, which is enlarged a few channels at a time where memory counts."""
    shape = state.shape[2:]
    if torch.is_grad_enabled():
        return state + enlarge(coarser, 2, shape)
    for part, coarse in zip(state.split(CHANNELS_AT_ONCE, 1), coarser.split(CHANNELS_AT_ONCE, 1), strict=True):
        part += enlarge(coarse, 2, shape)
    return state
