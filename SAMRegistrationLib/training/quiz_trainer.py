"""The training of the query point network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..models.importer import read_tensors
from ..networks.quiz import Quiz
from .distributed import Processes, gather
from .loop import TrainingLoop
from .progress import Progress
from .quiz_config import QuizTrainingConfig
from .quiz_losses import quiz_loss
from .quiz_pairs import QuizPairs

PACE_EVERY = 25
_PACE_FROM = 10
"""Iterations before the pace is first told: the first ones of a GPU choose their kernels and read views."""


class QuizTrainer(TrainingLoop):
    """A run on pairs of views; see `TrainingLoop`."""

    def __init__(
        self,
        pairs: QuizPairs,
        config: QuizTrainingConfig,
        out: Path,
        processes: Processes | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        super().__init__(Quiz(**config.network).train(), config, out, processes or Processes(), quiet=quiet)
        self.config = config
        self.pairs = pairs
        self._recent: list[float] = []

    def start_from(self, path: Path) -> None:
        """Take the parameters of an exported weight file as the start of a new run.

        Raises:
            InputError: if they are not those of this network.
        """
        tensors = {name: value.float() for name, value in read_tensors(path).items()}
        try:
            for own in (self.network, self.average):
                own.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(f"{path} does not hold weights of this network") from error

    def losses_of(self, part: int) -> tuple[list[str], dict[str, float]]:
        """Draw the batch of number `part`, add its gradients, and tell its views and its mean losses."""
        config = self.config
        seed = ((config.seed * 1_000_003 + part) * 1_009 + self.processes.rank) % 2**63
        pair = self.pairs.draw(config.batch, torch.Generator().manual_seed(seed)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.mixed_precision):
            answers = self.network(pair.reference, pair.search, pair.queries, pair.embeddings)
        late = self.iteration >= config.loss.translation_from * config.iterations
        loss, parts = quiz_loss(answers, pair, config.loss, late)
        (loss / config.accumulation).backward()
        with torch.no_grad():
            error = (pair.queries + answers.displacement - pair.targets).norm(dim=-1)[pair.shown]
        values = {"total": loss.detach(), **parts, "median_error": error.median()}
        return pair.names, dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def _iterate(self, clock: Any) -> tuple[dict[str, float], bool]:
        result = super()._iterate(clock)
        if self.config.minutes > 0:
            self._recent.append(result[0]["seconds"])
            if self.iteration == _PACE_FROM or self.iteration % PACE_EVERY == 0:
                self._fit_to_time()
        return result

    def report(self, progress: Progress, iteration: int) -> None:  # noqa: ARG002
        """Let the progress know how long the run has become."""
        progress.total = self.config.iterations

    def _fit_to_time(self) -> None:
        """Set the length of the run by the pace of the last iterations, alike on all processes."""
        pace = sum(self._recent) / len(self._recent)
        left = 60 * self.config.minutes - self.seconds
        iterations = self.iteration + max(1, round(left / pace))
        # The clocks of the processes differ; the first one's counts.
        iterations = gather(iterations, self.processes)[0]
        self._recent = []
        self.settings = self.config = replace(self.config, iterations=iterations)

    def _metadata(self) -> dict[str, Any]:
        pairs = self.config.pairs
        sizes = {"image_size": str(pairs.image_size), "embedding_size": str(pairs.embedding_size)}
        return {**super()._metadata(), **sizes}
