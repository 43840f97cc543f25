"""The command ``samreg train quiz``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .quiz_config import QuizTrainingConfig


def add_quiz_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action ``quiz`` to ``samreg train``; needs neither torch nor data."""
    quiz = actions.add_parser(
        "quiz",
        help="train the query point network",
        description="Train the network that is asked where points lie. Views of the volumes are made first, once; "
        "training then draws pairs of them. What was interrupted goes on when the same command is given again. "
        "For several processes: torchrun --nproc_per_node N -m SAMRegistrationLib train quiz ...",
    )
    quiz.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    quiz.add_argument("--out", metavar="DIR", type=Path, required=True, help="checkpoint, weights, logs")
    quiz.add_argument("--held-out", metavar="FILE", type=Path, help="JSON with lists of volumes not to train on")
    quiz.add_argument("--cache", metavar="DIR", type=Path, help="folder for prepared volumes (default: DIR/cache)")
    quiz.add_argument("--views", metavar="DIR", type=Path, help="folder for the views (default: DIR/views)")
    quiz.add_argument("--views-per-volume", type=int, default=4, help="default: %(default)s")
    quiz.add_argument(
        "--recipe",
        default="lite",
        choices=("lite", "gpu", "published"),
        help="lite: with embeddings, for a CPU; gpu: the same, for minutes of a GPU; published: the paper's "
        "(default: %(default)s)",
    )
    quiz.add_argument("--config", metavar="FILE", type=Path, help="JSON with settings that replace the recipe's")
    quiz.add_argument("--iterations", type=int, help="length of the whole run")
    quiz.add_argument("--minutes", type=float, help="of training, instead of a number of iterations")
    quiz.add_argument("--seed", type=int, help="of everything random")
    quiz.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    quiz.add_argument("--initial-weights", metavar="FILE", type=Path, help="safetensors to start from")
    quiz.add_argument(
        "--embedding-was",
        metavar="FILE",
        type=Path,
        help="safetensors of the embedding that the initial weights were trained with, if it is another now: they "
        "are adapted to it first",
    )
    quiz.add_argument("--quiet", action="store_true", help="no progress")


def run_quiz(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg train quiz``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..device import usable_cores
    from ..features.registry import get_extractor
    from .cache import build_cache
    from .checkpoint import make_folder
    from .distributed import after_the_first, join_processes, leave_processes, wait_for_first
    from .manifest import read_training_volumes
    from .quiz_pairs import VIEWS_KEPT, QuizPairs
    from .quiz_trainer import QuizTrainer
    from .quiz_views import prepare_views

    if arguments.views_per_volume < 2:
        raise UsageError("a pair takes at least two views per volume")
    config = _configuration(arguments)
    chosen, _ = read_training_volumes(arguments.data, arguments.held_out)
    make_folder(arguments.out)
    folder = arguments.views or arguments.out / "views"
    make_folder(folder)
    processes = join_processes(arguments.device)
    told = processes.is_first and not arguments.quiet
    try:
        with after_the_first(processes):
            volumes = build_cache(
                [volume for volume in chosen if volume.modality in ("CT", "CBCT")],
                arguments.cache or arguments.out / "cache",
                config.views.spacing,
                processes=usable_cores(),
                progress=told,
            ).volumes
        model = config.embedding
        extractor = None if model is None else get_extractor(model, processes.device, strict=True)
        count = arguments.views_per_volume
        for done, wanted in prepare_views(volumes, folder, extractor, count, config.seed, config.views, processes):
            if told and done % 50 == 0:
                print(f"made {done} of {wanted} views", flush=True)
        wait_for_first(processes)
        on_gpu = processes.device.type == "cuda"
        kept = len(volumes) * count if on_gpu else VIEWS_KEPT
        pairs = QuizPairs(volumes, folder, count, config.pairs, model is not None, processes.device, kept)
        trainer = QuizTrainer(pairs, config, arguments.out, processes, quiet=arguments.quiet)
        if not trainer.resume() and arguments.initial_weights:
            trainer.start_from(arguments.initial_weights)
            if arguments.embedding_was and extractor is not None:
                trainer.read_instead_of(arguments.embedding_was, extractor, volumes)
        trainer.run()
    finally:
        leave_processes(processes)
    return 0


def _configuration(arguments: argparse.Namespace) -> QuizTrainingConfig:
    from .quiz_config import RECIPES
    from .settings import read_settings

    values = read_settings(
        arguments.config, iterations=arguments.iterations, minutes=arguments.minutes, seed=arguments.seed
    )
    try:
        config = RECIPES[arguments.recipe].changed(values)
    except (TypeError, AttributeError) as error:
        raise UsageError(f"The configuration is not valid: {error}.") from error
    if (config.embedding is None) is not (config.network.get("embedding_channels", 0) == 0):
        raise UsageError("The network must have embedding_channels exactly if the run names an embedding.")
    return config
