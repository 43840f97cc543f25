"""Models of the query point network.

Their catalogue entries hold, as `configuration`: "network" (the options that it is built with), "image_size" and
"embedding_size" (of its cubes, in voxels along a side) and "features" (the model whose embedding it reads, or
null).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..networks.quiz import Quiz
from .catalogue import ModelEntry, find_model, load_weights

ARCHITECTURE = "quiz"
DEFAULT_QUIZ = "quiz-lite"
"""What is asked if no model is named."""


@dataclass(frozen=True, eq=False)
class QuizModel:
    """A network with its weights, in evaluation mode on the CPU.

    Args:
        name: of the model.
        network: answers queries.
        image_size: voxels along a side of the cubes.
        embedding_size: cells of the embedding along a side.
        features: name of the model whose embedding it reads, or None.
    """

    name: str
    network: Quiz
    image_size: int
    embedding_size: int
    features: str | None


def load_quiz(name: str = DEFAULT_QUIZ) -> QuizModel:
    """The model of that name.

    Raises:
        UsageError: if there is none.
        InputError: if it is no query point network, or its weights are missing, changed or do not fit.
    """
    return build_quiz(find_model(name))


def build_quiz(entry: ModelEntry) -> QuizModel:
    """The model of a catalogue entry.

    Raises:
        InputError: as `load_quiz`.
    """
    if entry.architecture != ARCHITECTURE:
        raise InputError(f"the model {entry.name} is no query point network, but {entry.architecture}")
    weights = {name: value.float() for name, value in load_weights(entry).items()}
    configuration = entry.configuration
    try:
        with torch.device("meta"):
            network = Quiz(**configuration["network"])
        network.load_state_dict(weights, assign=True)
        return QuizModel(
            entry.name,
            network.eval(),
            int(configuration["image_size"]),
            int(configuration["embedding_size"]),
            configuration["features"],
        )
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"the weights of {entry.name} do not fit their network: {error}") from error
