"""Training of the embedding networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.architectures import find_architecture
from .batches import Batch, BatchSource
from .cache import CachedVolume
from .config import TrainingConfig
from .distributed import Processes
from .loop import PRIVATE_STATES, TrainingLoop
from .negative_bank import NegativeBank
from .objective import embed, total_loss
from .pseudo_pairs import PseudoPairs
from .weights import network_from_weights


class Trainer(TrainingLoop):
    """A run of `config.iterations` iterations on `volumes`, with its state in the folder `out`.

    What every process remembers beside the parameters is its bank of negatives.
    """

    def __init__(
        self,
        volumes: list[CachedVolume],
        config: TrainingConfig,
        out: Path,
        processes: Processes | None = None,
        *,
        pseudo_pairs: PseudoPairs | None = None,
        quiet: bool = False,
    ) -> None:
        self.config = config
        super().__init__(_build_network(config), config, out, processes or Processes(), quiet=quiet)
        self.source = BatchSource(volumes, config, self.device, self.processes.rank, pseudo_pairs)
        self.bank = NegativeBank(config.loss)

    def start_from(self, path: Path) -> None:
        """Take the parameters of an exported weight file as the start of a new run.

        Raises:
            InputError: if it is not one, or of another architecture.
        """
        network, architecture = network_from_weights(path)
        if architecture.name != self.config.architecture:
            raise InputError(f"{path} holds weights of {architecture.name}, not of {self.config.architecture}")
        for own in (self.network, self.average):
            own.load_state_dict(network.state_dict())

    def losses_of(self, part: int) -> tuple[list[str], dict[str, float]]:
        generator = self.source.generator(part)
        batch = self.source.draw(generator)
        return batch.names, self._accumulate(batch, generator)

    def private_state(self) -> Any:
        return self.bank.state()

    def restore_private_state(self, state: dict[str, Any]) -> None:
        banks = state[PRIVATE_STATES]
        self.bank.restore(banks[self.processes.rank % len(banks)], self.device)

    def _accumulate(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        config = self.config
        embedded = embed(self.network, batch, config.loss, generator, mixed_precision=config.mixed_precision)
        loss, parts = total_loss(embedded, batch, config.loss, self.bank)
        (loss / config.accumulation).backward()
        parts = {"total": loss.detach(), **parts}
        # Read after all has been launched, and all at once: reading waits for a GPU.
        return dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))


def _build_network(config: TrainingConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    network = find_architecture(config.architecture).build(**config.network)
    return network.train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
