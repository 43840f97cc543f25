"""The training loop that all networks share: one seed, one trajectory, whatever interrupts it.

Lightning and its Fabric are not used: what they would bring (processes, mixed precision, checkpoints) is a few
lines each on torch itself, while what matters here (a batch that follows from the seed and the iteration alone,
checkpoints that appear whole or not at all, a NaN that names its volumes on every process) would have to be built
against their hooks, and the package would weigh two dependencies more.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import RegistrationError
from .checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE, export_weights, read_checkpoint, write_checkpoint
from .distributed import Processes, average_gradients, gather, share_parameters
from .progress import Progress
from .settings import LoopSettings

AVERAGE_WARMUP = 10

PACE_EVERY = 25
PACE_FROM = 10
"""Iterations before the pace is first told: in the first ones a GPU chooses its kernels and reads volumes."""

PRIVATE_STATES = "banks"
"""Where a checkpoint keeps what every process gathered; the name is that of the first use."""


@dataclass
class _Clock:
    """When the last checkpoint was written."""

    saved: float


class TrainingLoop:
    """A run of `settings.iterations` iterations, with its state in the folder `out`.

    A subclass gives the loss of each part of an iteration, which must follow from the seed, the iteration and the
    process alone, so that the state is the parameters, their running average, the optimizer, the iteration, and
    what a subclass adds per process.
    """

    def __init__(
        self, network: nn.Module, settings: LoopSettings, out: Path, processes: Processes, *, quiet: bool = False
    ) -> None:
        self.settings = settings
        self.out = out
        self.processes = processes
        self.quiet = quiet
        self.iteration = 0
        self.seconds = 0.0
        self._recent: list[float] = []
        if self.device.type == "cuda":
            # All batches have one shape, so that trying every kind of convolution once pays.
            torch.backends.cudnn.benchmark = True
        self.network = network.to(self.device)
        share_parameters(self.network, self.processes)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def losses_of(self, part: int) -> tuple[list[str], dict[str, float]]:
        """Draw the batch of number `part`, add its gradients, and tell its volumes and its mean losses.

        One of the losses is called "total". Gradients are divided by `settings.accumulation`.
        """
        raise NotImplementedError

    def private_state(self) -> Any:
        """What this process must remember beside the parameters; gathered into the checkpoint."""
        return None

    def restore_private_state(self, state: dict[str, Any]) -> None:
        """Take up what `private_state` gave from a checkpoint."""

    def report(self, progress: Progress, iteration: int) -> None:
        """Show more than numbers, such as pictures, after an iteration; the first process only."""

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
        state = read_checkpoint(path, self.settings.architecture)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = int(state["iteration"])
        self.seconds = float(state["seconds"])
        self.restore_private_state(state)
        return True

    def run(self) -> list[float]:
        """Train to the end of the run; returns the total loss of every iteration of this part of it.

        Raises:
            RegistrationError: if the loss is not a number; the message names the volumes.
        """
        progress = (
            Progress(self.out, self.iteration, self.settings.iterations, quiet=self.quiet) if self._first else None
        )
        clock = _Clock(time.monotonic())
        losses: list[float] = []
        while self.iteration < self.settings.iterations:
            values, save = self._iterate(clock)
            losses.append(values["total"])
            if self.settings.minutes > 0:
                self._fit_to_time(values["seconds"])
            if progress is not None:
                progress.total = self.settings.iterations
                progress.update(self.iteration, values)
                self.report(progress, self.iteration)
            if save or self.iteration == self.settings.iterations:
                self._save(progress, final=self.iteration == self.settings.iterations)
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
            group["lr"] = learning_rate(self.settings, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        finite = True
        names: list[str] = []
        for part in range(self.settings.accumulation):
            drawn, means = self.losses_of(self.iteration * self.settings.accumulation + part)
            names += drawn
            finite = finite and math.isfinite(means["total"])
            for name, value in means.items():
                values[name] = values.get(name, 0.0) + value / self.settings.accumulation
        due = self._first and time.monotonic() - clock.saved > 60 * self.settings.checkpoint_minutes
        # A frozen parameter must not get a gradient of zero, with which the optimizer's momentum would move it.
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        broken, save = average_gradients(trained, [float(not finite), float(due)], self.processes)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
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

    def _fit_to_time(self, seconds: float) -> None:
        """Set the length of the run by the pace of the last iterations, alike on all processes."""
        self._recent.append(seconds)
        if self.iteration != PACE_FROM and self.iteration % PACE_EVERY:
            return
        pace = sum(self._recent) / len(self._recent)
        left = 60 * self.settings.minutes - self.seconds
        iterations = self.iteration + max(1, round(left / pace))
        # The clocks of the processes differ; the first one's counts.
        self.settings = replace(self.settings, iterations=gather(iterations, self.processes)[0])
        self._recent = []

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
        decay = min(self.settings.average_decay, (1 + self.iteration) / (AVERAGE_WARMUP + self.iteration))
        # One kernel for all parameters, where one for each would keep a GPU waiting.
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)

    def _save(self, progress: Progress | None, *, final: bool) -> None:
        """Write checkpoint and weights; a full disk is only said, unless the run is over."""
        gathered = gather(self.private_state(), self.processes)
        if not self._first:
            return
        try:
            write_checkpoint(self.out, self._state(gathered))
            export_weights(self.out / WEIGHTS_FILE, self.average, self._metadata())
        except OSError as error:
            sentence = f"the checkpoint of iteration {self.iteration} could not be written ({error})"
            if final:
                raise RegistrationError(f"{sentence}; the previous one is intact") from error
            if progress is not None:
                progress.note(f"{sentence}; the previous one is intact, training goes on")

    def _state(self, gathered: list[Any]) -> dict[str, Any]:
        return {
            "config": self.settings.to_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            PRIVATE_STATES: gathered,
        }

    def _metadata(self) -> dict[str, str]:
        settings = self.settings
        return {
            "architecture": settings.architecture,
            "iteration": str(self.iteration),
            **{name: str(value) for name, value in settings.network.items()},
        }


def learning_rate(settings: LoopSettings, iteration: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last share `decay` of the run."""
    warm = min(1.0, (iteration + 1) / max(1, settings.warmup))
    left = settings.iterations - iteration
    cool = min(1.0, left / max(1.0, settings.decay * settings.iterations))
    return settings.learning_rate * warm * cool
