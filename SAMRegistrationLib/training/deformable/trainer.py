"""Training of the networks that predict a displacement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...models.deformable import embeddings_for
from ...networks.deformable import DeformableNetwork, build_deformable_network
from ...networks.fields import warp
from ...solvers.ops import upsample
from ...solvers.ops import warp as warp_with_mode
from ..distributed import Processes
from ..loop import TrainingLoop
from ..progress import Progress
from .config import DeformableConfig, DeformableLossConfig
from .objective import pair_loss
from .pairs import Pair, PairSource
from .pictures import middle_slices


class DeformableTrainer(TrainingLoop):
    """A run of `config.iterations` iterations on the pairs of a source, with its state in the folder `out`.

    Raises:
        ValueError: if the network has no such options, or crops do not fit its coarsest stride.
    """

    network: DeformableNetwork

    def __init__(
        self,
        source: PairSource,
        config: DeformableConfig,
        out: Path,
        processes: Processes | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        network = build_deformable_network(config.architecture, config.network).train()
        if any(size % max(network.strides) for size in config.pairs.shape):
            raise ValueError(f"crops of {config.pairs.shape} voxels are no multiple of {max(network.strides)}")
        super().__init__(network, config, out, processes or Processes(), quiet=quiet)
        self.config = config
        self.source = source
        self._shown: tuple[Pair, Tensor] | None = None

    def losses_of(self, part: int) -> tuple[list[str], dict[str, float]]:
        if self.network.stages > 1:
            stage, frozen = self.config.stage_at(self.iteration)
            self.network.use_stages(stage, freeze_lower=frozen)
        generator = self.source.generator(part)
        pairs = self.source.draw(generator)
        names = [name for pair in pairs for name in pair.names]
        if float(torch.rand((), generator=generator)) < self.config.pairs.repeated:
            pairs = [self._gone_on(pair) for pair in pairs]
        return names, self._accumulate(pairs)

    def _accumulate(self, pairs: list[Pair]) -> dict[str, float]:
        """Add the gradients of the mean loss of some pairs."""
        field = self._predict(pairs)[-1]
        stride = pairs[0].fixed.shape[2] // field.shape[2]
        spacing = self.config.pairs.spacing
        totals, parts = [], []
        for index, pair in enumerate(pairs):
            own = field[index : index + 1]
            total, values = pair_loss(pair, own, self.config.loss, stride=stride, spacing=spacing)
            totals.append(total)
            parts.append({"total": total.detach(), **values})
        (torch.stack(totals).mean() / self.config.accumulation).backward()
        self._shown = pairs[0], field[:1].detach()
        return {name: sum(float(p[name]) for p in parts if name in p) / len(parts) for name in parts[0]}

    def _predict(self, pairs: list[Pair]) -> list[Tensor]:
        images = [torch.cat([getattr(pair, side) for pair in pairs]) for side in ("fixed", "moving")]
        maps = [_stacked(pairs, side) for side in range(2)] if self.network.uses_embeddings else []
        maps = [embeddings_for(self.network, tuple(images[0].shape[2:]), both) for both in maps]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision):
            return self.network(*images, *maps)

    @torch.no_grad()
    def _gone_on(self, pair: Pair) -> Pair:
        """The pair after the network has registered it once."""
        field = self._predict([pair])[-1]
        if field.shape[2:] != pair.fixed.shape[2:]:
            return pair
        return warped_pair(pair, field)

    def report(self, progress: Progress, iteration: int) -> None:
        every = self.config.picture_every
        if progress.writer is None or self._shown is None or not every or (iteration % every and iteration != 1):
            return
        progress.writer.add_image("fixed, moving, warped, difference", middle_slices(*self._shown), iteration)

    def _metadata(self) -> dict[str, str]:
        """What the importer needs to make a model of the weights."""
        config = self.config
        features = self.source.store.extractor.name if self.source.store else None
        configuration = {
            "network": self.network.options,
            "window": list(config.pairs.window),
            "lowest": config.pairs.lowest,
            "features": features,
            "losses": trained_losses(config.loss),
        }
        return {
            "architecture": config.architecture,
            "iteration": str(self.iteration),
            "spacing": str(config.pairs.spacing),
            "configuration": json.dumps(configuration),
        }


def trained_losses(config: DeformableLossConfig) -> dict[str, Any]:
    """The losses with a weight, and the constants that instance optimization needs to go on with them."""
    weights = {name: value for name, value in vars(config).items() if isinstance(value, float) and value}
    return {**weights, "radius": config.radius, "coarse_share": config.coarse_share}


def warped_pair(pair: Pair, field: Tensor) -> Pair:
    """The pair with its moving side warped; what is known of the displacement between them is no longer."""
    embeddings = pair.embeddings
    if embeddings is not None:
        fine, coarse = (_warped_map(values, field) for values in embeddings[1])
        embeddings = embeddings[0], (fine, coarse)
    return replace(
        pair,
        moving=warp(pair.moving, field),
        codes=(pair.codes[0], warp_with_mode(pair.codes[1], field, mode="nearest")),
        embeddings=embeddings,
        known=None,
        keypoints=None,
    )


def _warped_map(values: Tensor, field: Tensor) -> Tensor:
    return functional.normalize(warp(values, upsample(field, tuple(values.shape[2:]))), dim=1)


def _stacked(pairs: list[Pair], side: int) -> tuple[Tensor, Tensor]:
    maps = [pair.embeddings[side] for pair in pairs if pair.embeddings is not None]
    if len(maps) < len(pairs):
        raise ValueError("the network needs embeddings, and the pairs have none")
    return torch.cat([fine for fine, _ in maps]), torch.cat([coarse for _, coarse in maps])
