"""What all networks that predict a displacement between two volumes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

Embeddings = tuple[Tensor, Tensor]
"""The fine and the coarse map of one volume, (B, C, z/s, y/s, x/s) for their strides s."""


class DeformableNetwork(nn.Module):
    """A network that predicts where every voxel of a fixed volume lies in a moving volume.

    Args:
        options: the arguments (plain numbers, strings, lists) that build the same network again.
    """

    name: ClassVar[str]
    """Its name in `DEFORMABLE_NETWORKS`."""

    uses_embeddings: bool = False
    """Whether `forward` needs the embeddings of both volumes."""

    strides: tuple[int, ...] = (1,)
    """The stride of each field of `forward` when all stages run; see ``networks/fields.py`` for such grids."""

    stages: int = 1
    """How many parts are trained one after the other, coarse to fine."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.stage = self.stages - 1

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        fixed_embeddings: Embeddings | None = None,
        moving_embeddings: Embeddings | None = None,
    ) -> list[Tensor]:
        """Predict displacements.

        Args:
            fixed, moving: (B, 1, z, y, x) of any one size, intensities normalized as in training.
            fixed_embeddings, moving_embeddings: their fine and coarse maps, where `uses_embeddings`.

        Returns:
            Displacements, coarse to fine, (B, 3, z', y', x') in voxels of their own grid, float32, one for each of
            `strides` up to the stage that `use_stages` has set. When all stages run, the last is on the grid of
            `fixed`. Each is the whole displacement, not a correction of the one before.
        """
        raise NotImplementedError

    def use_stages(self, last: int, *, freeze_lower: bool = True) -> None:
        """Run the stages 0 to `last` only, and let gradients into all of them or into the last alone.

        Raises:
            ValueError: if there is no such stage.
        """
        if not 0 <= last < self.stages:
            raise ValueError(f"the network {self.name!r} has the stages 0 to {self.stages - 1}, not {last}")
        self.stage = last
        for number in range(self.stages):
            wanted = number == last or (number < last and not freeze_lower)
            for parameter in self.stage_module(number).parameters():
                parameter.requires_grad_(wanted)

    def stage_module(self, number: int) -> nn.Module:
        """The part that is trained as stage `number`; the whole network where there is only one."""
        if self.stages == 1 and number == 0:
            return self
        raise NotImplementedError
