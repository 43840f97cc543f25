"""The command ``samreg train pairs``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import UsageError

DEFAULT_SPACING = 2.0
"""Of the cache, in mm, for features that work at any."""


def add_pairs_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action ``pairs`` to ``samreg train``; needs neither torch nor data."""
    pairs = actions.add_parser(
        "pairs",
        help="find correspondences between training subjects to train with",
        description="Register pairs of training subjects both ways with the features of a model, and keep where "
        "both ways agree, for train sam --pseudo-pairs. Pairs that were written already are skipped, so that the "
        "same command goes on after an interruption.",
    )
    pairs.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    pairs.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for one file per pair")
    pairs.add_argument(
        "--held-out", metavar="FILE", type=Path, required=True, help="JSON with lists of volumes not to use"
    )
    pairs.add_argument(
        "--cache", metavar="DIR", type=Path, required=True, help="folder for prepared volumes, as of train sam"
    )
    pairs.add_argument("--model", default="sam", help="features: mind, sam or a model (default: %(default)s)")
    pairs.add_argument("--weights", metavar="FILE", type=Path, help="safetensors of a run instead of a model")
    pairs.add_argument("--count", type=int, default=200, help="pairs of subjects (default: %(default)s)")
    pairs.add_argument("--preset", help="how to register (default: one made for this, quick)")
    pairs.add_argument(
        "--part",
        metavar="I/N",
        default="1/1",
        help="do every N-th pair beginning with the I-th, so that N processes share the work",
    )
    pairs.add_argument("--seed", type=int, default=0, help="of the drawn pairs (default: %(default)s)")
    pairs.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def run_pairs(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg train pairs``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..device import resolve_device
    from ..presets import load_preset
    from .cache import build_cache
    from .checkpoint import make_folder
    from .manifest import read_training_volumes
    from .pair_search import PAIR_PRESET, draw_pairs, find_pseudo_pairs
    from .weights import extractor_of

    part, parts = _part(arguments.part)
    if arguments.count < 1:
        raise UsageError("--count must be at least 1.")
    preset = load_preset(arguments.preset) if arguments.preset else PAIR_PRESET
    chosen, _ = read_training_volumes(arguments.data, arguments.held_out)
    extractor = extractor_of(arguments.model, arguments.weights, arguments.device)
    cache = build_cache(chosen, arguments.cache, extractor.spacing or DEFAULT_SPACING)
    make_folder(arguments.out)
    find_pseudo_pairs(
        draw_pairs(cache.volumes, arguments.count, arguments.seed)[part - 1 :: parts],
        extractor,
        arguments.out,
        preset=preset,
        device=resolve_device(arguments.device),
        seed=arguments.seed,
        say=lambda sentence: print(sentence, flush=True),
    )
    return 0


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part wants I/N with I from 1 to N, such as 2/6, not {text}.")
    return int(match[1]), int(match[2])
