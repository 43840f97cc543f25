"""The training of the query point network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..features.base import FeatureExtractor
from ..models.importer import read_tensors
from ..networks.quiz import Quiz
from .cache import CachedVolume
from .distributed import Processes
from .loop import TrainingLoop
from .quiz_config import QuizTrainingConfig
from .quiz_losses import quiz_loss
from .quiz_pairs import QuizPairs
from .quiz_refit import adapt, embedding_map
from .weights import extractor_of


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

    def read_instead_of(self, old: Path, new: FeatureExtractor, volumes: list[CachedVolume]) -> None:
        """Adapt parameters that were trained with the embedding of the file `old` to another one.

        Raises:
            InputError: if that file holds no embedding.
        """
        matrix = embedding_map(volumes, extractor_of("", old, str(self.device)), new)
        for own in (self.network, self.average):
            assert isinstance(own, Quiz)
            adapt(own, matrix)

    def losses_of(self, part: int) -> tuple[list[str], dict[str, float]]:
        """Draw the batch of number `part`, add its gradients, and tell its views and its mean losses."""
        config = self.config
        seed = ((config.seed * 1_000_003 + part) * 1_009 + self.processes.rank) % 2**63
        pair = self.pairs.draw(config.batch, torch.Generator().manual_seed(seed)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.mixed_precision):
            answers = self.network(pair.reference, pair.search, pair.queries, pair.embeddings)
        late = self.iteration >= config.loss.translation_from * self.settings.iterations
        loss, parts = quiz_loss(answers, pair, config.loss, late)
        (loss / config.accumulation).backward()
        with torch.no_grad():
            error = (pair.queries + answers.displacement - pair.targets).norm(dim=-1)[pair.shown]
        values = {"total": loss.detach(), **parts, "median_error": error.median()}
        return pair.names, dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def _metadata(self) -> dict[str, Any]:
        pairs = self.config.pairs
        sizes = {"image_size": str(pairs.image_size), "embedding_size": str(pairs.embedding_size)}
        return {**super()._metadata(), **sizes}
