"""The command ``samreg train``: sam, pairs, deform, quiz and evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .deformable.command import add_deform_arguments, run_deform
from .pairs_command import add_pairs_arguments, run_pairs
from .quiz_command import add_quiz_arguments, run_quiz

if TYPE_CHECKING:
    from .config import TrainingConfig


def add_train_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``train`` to a parser; needs neither torch nor data."""
    parser = subparsers.add_parser("train", help="train an embedding network, or measure one")
    actions = parser.add_subparsers(dest="train_action", metavar="ACTION", required=True)

    sam = actions.add_parser(
        "sam",
        help="train on the CT volumes of a manifest",
        description="Train an embedding network. A run that was interrupted goes on from its last checkpoint when "
        "the same command is given again. For several processes: torchrun --nproc_per_node N -m "
        "SAMRegistrationLib train sam ...",
    )
    sam.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    sam.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="checkpoint, weights, logs, model card"
    )
    sam.add_argument("--held-out", metavar="FILE", type=Path, help="JSON with lists of volumes not to train on")
    sam.add_argument("--cache", metavar="DIR", type=Path, help="folder for prepared volumes (default: DIR/cache)")
    sam.add_argument("--config", metavar="FILE", type=Path, help="JSON with settings that replace the defaults")
    sam.add_argument("--architecture", help="network: sam-lite or sam-resnet18 (default: sam-lite)")
    sam.add_argument("--iterations", type=int, help="length of the whole run")
    sam.add_argument("--minutes", type=float, help="of training, instead of a number of iterations")
    sam.add_argument("--seed", type=int, help="of everything random")
    sam.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    sam.add_argument("--initial-weights", metavar="FILE", type=Path, help="safetensors to start from")
    sam.add_argument(
        "--pseudo-pairs", metavar="DIR", type=Path, help="correspondences between subjects that train pairs wrote"
    )
    sam.add_argument("--quiet", action="store_true", help="no progress")
    add_pairs_arguments(actions)
    add_deform_arguments(actions)
    add_quiz_arguments(actions)

    evaluate = actions.add_parser(
        "evaluate", help="measure how well features match on volumes kept out of training"
    )
    evaluate.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    evaluate.add_argument("--held-out", metavar="FILE", type=Path, required=True, help="JSON with their names")
    evaluate.add_argument("--list", metavar="NAME", help="which of the lists in that file (default: all)")
    evaluate.add_argument("--model", default="sam", help="features: mind, sam or a model (default: %(default)s)")
    evaluate.add_argument("--weights", metavar="FILE", type=Path, help="safetensors of a run instead of a model")
    evaluate.add_argument("--volumes", type=int, default=20, help="at most so many (default: %(default)s)")
    evaluate.add_argument("--pairs", type=int, default=20, help="at most so many (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0, help="of views and pairs (default: %(default)s)")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    evaluate.add_argument("-o", "--output", metavar="FILE", type=Path, help="also write the numbers as JSON")


def run_train(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg train``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    return {"sam": _sam, "pairs": run_pairs, "deform": run_deform, "quiz": run_quiz, "evaluate": _evaluate}[
        arguments.train_action
    ](arguments)


def _sam(arguments: argparse.Namespace) -> int:
    from ..device import usable_cores
    from .cache import build_cache
    from .checkpoint import make_folder
    from .distributed import after_the_first, join_processes, leave_processes
    from .manifest import read_training_volumes
    from .model_card import write_model_card
    from .pseudo_pairs import read_pseudo_pairs
    from .trainer import Trainer

    config = _configuration(arguments)
    chosen, held_out = read_training_volumes(arguments.data, arguments.held_out)
    processes = join_processes(arguments.device)
    folder = arguments.cache or arguments.out / "cache"
    try:
        make_folder(arguments.out)
        progress = processes.is_first and not arguments.quiet
        with after_the_first(processes):
            cache = build_cache(chosen, folder, _spacing(config), processes=usable_cores(), progress=progress)
        listed = arguments.pseudo_pairs
        pseudo_pairs = read_pseudo_pairs(listed, cache.volumes) if listed else None
        trainer = Trainer(
            cache.volumes, config, arguments.out, processes, pseudo_pairs=pseudo_pairs, quiet=arguments.quiet
        )
        if not trainer.resume() and arguments.initial_weights:
            trainer.start_from(arguments.initial_weights)
        trainer.run()
        if processes.is_first:
            used = {volume.name for volume in cache.volumes}
            trained = [volume for volume in chosen if volume.name in used]
            left_out = [volume.name for volume in held_out]
            more = {"pseudo_pairs": 0 if pseudo_pairs is None else len(pseudo_pairs)}
            write_model_card(
                trainer, arguments.data, trained, cache.skipped, left_out, arguments.held_out, more=more
            )
            _say_skipped(cache.skipped)
    finally:
        leave_processes(processes)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from .evaluation import evaluate_features, format_evaluation
    from .manifest import read_excluded_names, read_manifest
    from .weights import extractor_of

    names = read_excluded_names(arguments.held_out, arguments.list)
    volumes = [volume for volume in read_manifest(arguments.data) if volume.name in names]
    if not volumes:
        raise InputError(f"None of the volumes of {arguments.held_out} is in {arguments.data}.")
    extractor = extractor_of(arguments.model, arguments.weights, arguments.device)
    result = evaluate_features(extractor, volumes, arguments.volumes, arguments.pairs, arguments.seed)
    print(format_evaluation(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _configuration(arguments: argparse.Namespace) -> TrainingConfig:
    from .config import TrainingConfig
    from .settings import read_settings

    names = ("architecture", "iterations", "minutes", "seed")
    values = read_settings(arguments.config, **{name: getattr(arguments, name) for name in names})
    try:
        return TrainingConfig.from_dict(values)
    except (TypeError, AttributeError) as error:
        raise UsageError(f"The configuration is not valid: {error}.") from error


def _spacing(config: TrainingConfig) -> float:
    from ..models.architectures import find_architecture

    return find_architecture(config.architecture).spacing


def _say_skipped(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
