"""The training loop: one seed, one trajectory, whatever interrupts it."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, RegistrationError
from ..models.architectures import find_architecture
from .batches import Batch, BatchSource
from .cache import CachedVolume
from .checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE, export_weights, read_checkpoint, write_checkpoint
from .config import TrainingConfig
from .distributed import Processes, average_gradients, gather, share_parameters
from .negative_bank import NegativeBank
from .objective import embed, total_loss
from .progress import Progress
from .pseudo_pairs import PseudoPairs
from .weights import network_from_weights

AVERAGE_WARMUP = 10


@dataclass
class _Clock:
    """When the last checkpoint was written."""

    saved: float


class Trainer:
    """A run of `config.iterations` iterations on `volumes`, with its state in the folder `out`.

    The batch of an iteration follows from the seed, the iteration and the process alone, so that the state is the
    parameters, their running average, the optimizer, the bank of negatives, and the iteration.
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
        self.out = out
        self.processes = processes or Processes()
        self.quiet = quiet
        self.iteration = 0
        self.seconds = 0.0
        self.network = _build_network(config).to(self.device)
        share_parameters(self.network, self.processes)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.source = BatchSource(volumes, config, self.device, self.processes.rank, pseudo_pairs)
        self.bank = NegativeBank(config.loss)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def resume(self) -> bool:
        """Continue from the folder's checkpoint if there is one.

        Raises:
            InputError: if the checkpoint is damaged or of another architecture.
        """
        path = self.out / CHECKPOINT_FILE
        if not path.is_file():
            return False
        state = read_checkpoint(path, self.config.architecture)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = int(state["iteration"])
        self.seconds = float(state["seconds"])
        banks = state["banks"]
        self.bank.restore(banks[self.processes.rank % len(banks)], self.device)
        return True

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

    def run(self) -> list[float]:
        """Train to the end of the run; returns the total loss of every iteration of this part of it.

        Raises:
            RegistrationError: if the loss is not a number; the message names the volumes.
        """
        progress = (
            Progress(self.out, self.iteration, self.config.iterations, quiet=self.quiet) if self._first else None
        )
        clock = _Clock(time.monotonic())
        losses: list[float] = []
        while self.iteration < self.config.iterations:
            values, save = self._iterate(clock)
            losses.append(values["total"])
            if progress is not None:
                progress.update(self.iteration, values)
            if save or self.iteration == self.config.iterations:
                self._save(progress, final=self.iteration == self.config.iterations)
        if progress is not None:
            progress.close()
        return losses

    @property
    def _first(self) -> bool:
        return self.processes.is_first

    def _iterate(self, clock: _Clock) -> tuple[dict[str, float], bool]:
        """One optimizer step; returns what to report and whether a checkpoint is due."""
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        finite, names = True, []
        for part in range(self.config.accumulation):
            generator = self.source.generator(self.iteration * self.config.accumulation + part)
            batch = self.source.draw(generator)
            names += batch.names
            means = self._accumulate(batch, generator)
            finite = finite and math.isfinite(means["total"])
            for name, value in means.items():
                values[name] = values.get(name, 0.0) + value / self.config.accumulation
        due = self._first and time.monotonic() - clock.saved > 60 * self.config.checkpoint_minutes
        broken, save = average_gradients(
            self.network.parameters(), [float(not finite), float(due)], self.processes
        )
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self._stop_if(bool(broken) or not math.isfinite(float(norm)), names)
        self.optimizer.step()
        self._update_average()
        self.iteration += 1
        elapsed = time.monotonic() - began
        self.seconds += elapsed
        if save:
            clock.saved = time.monotonic()
        values |= {"gradient": float(norm), "rate": self.optimizer.param_groups[0]["lr"], "seconds": elapsed}
        return values, bool(save)

    def _accumulate(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        config = self.config
        embedded = embed(self.network, batch, config.loss, generator, mixed_precision=config.mixed_precision)
        loss, parts = total_loss(embedded, batch, config.loss, self.bank)
        (loss / config.accumulation).backward()
        parts = {"total": loss.detach(), **parts}
        # Read after all has been launched, and all at once: reading waits for a GPU.
        return dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))

    def _stop_if(self, broken: bool, names: list[str]) -> None:
        if not broken:
            return
        everywhere = [name for part in gather(names, self.processes) for name in part]
        raise RegistrationError(
            f"the loss or its gradient is not a number at iteration {self.iteration + 1}; "
            f"the volumes were {', '.join(everywhere)}"
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential running average of the parameters, shorter at the start of a run."""
        decay = min(self.config.average_decay, (1 + self.iteration) / (AVERAGE_WARMUP + self.iteration))
        # One kernel for all parameters, where one for each would keep a GPU waiting.
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)

    def _save(self, progress: Progress | None, *, final: bool) -> None:
        """Write checkpoint and weights; a full disk is only said, unless the run is over."""
        banks = gather(self.bank.state(), self.processes)
        if not self._first:
            return
        try:
            write_checkpoint(self.out, self._state(banks))
            export_weights(self.out / WEIGHTS_FILE, self.average, self._metadata())
        except OSError as error:
            sentence = f"the checkpoint of iteration {self.iteration} could not be written ({error})"
            if final:
                raise RegistrationError(f"{sentence}; the previous one is intact") from error
            if progress is not None:
                progress.note(f"{sentence}; the previous one is intact, training goes on")

    def _state(self, banks: list[Any]) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "banks": banks,
        }

    def _metadata(self) -> dict[str, str]:
        config = self.config
        return {
            "architecture": config.architecture,
            "iteration": str(self.iteration),
            **{name: str(value) for name, value in config.network.items()},
        }


def learning_rate(config: TrainingConfig, iteration: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last share `decay` of the run."""
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    left = config.iterations - iteration
    cool = min(1.0, left / max(1.0, config.decay * config.iterations))
    return config.learning_rate * warm * cool


def _build_network(config: TrainingConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    network = find_architecture(config.architecture).build(**config.network)
    return network.train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
