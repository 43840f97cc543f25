"""The command ``samreg train structures``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError, UsageError

WEIGHTS_FILE = "structures.safetensors"
CARD_FILE = "structures.json"


def add_structures_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action ``structures`` to ``samreg train``; needs neither torch nor data."""
    structures = actions.add_parser(
        "structures",
        help="fit a head that tells structures by the embedding",
        description="Fit a small head on a model's frozen vectors that tells the structures of one label scheme. "
        "Presets that ask for it (structure_share, structure_weight) use it beside the vectors themselves.",
    )
    structures.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    structures.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder for the weights and what they mean"
    )
    structures.add_argument(
        "--held-out", metavar="FILE", type=Path, required=True, help="JSON with lists of volumes not to use"
    )
    structures.add_argument("--scheme", required=True, help="label scheme, as the manifest names it")
    structures.add_argument("--model", default="sam", help="whose vectors it reads (default: %(default)s)")
    structures.add_argument("--hidden", type=int, default=64, help="channels inside (default: %(default)s)")
    structures.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    structures.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def run_structures(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg train structures``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..device import resolve_device
    from ..features.sam import SamExtractor
    from ..models.catalogue import find_model
    from ..models.structures import ARCHITECTURE
    from .checkpoint import export_weights, make_folder, write_whole
    from .manifest import read_training_volumes
    from .structures import fit_head, gather_places

    if arguments.hidden < 1:
        raise UsageError("--hidden must be at least 1.")
    values, names = _structures(arguments.data, arguments.scheme)
    chosen, _ = read_training_volumes(arguments.data, arguments.held_out)
    entry = find_model(arguments.model)
    extractor = SamExtractor.of_model(entry, resolve_device(arguments.device))
    make_folder(arguments.out)
    places = gather_places(chosen, arguments.scheme, values, extractor, arguments.seed)
    head, loss = fit_head(places, arguments.hidden, seed=arguments.seed)
    export_weights(arguments.out / WEIGHTS_FILE, head, {"architecture": ARCHITECTURE})
    card = {
        "architecture": ARCHITECTURE,
        "file": WEIGHTS_FILE,
        "loss": round(loss, 4),
        "configuration": {
            "features": entry.name,
            "features_sha256": entry.sha256,
            "structures": ["none", *names],
            "network": {
                "channels": places.vectors.shape[1],
                "hidden": arguments.hidden,
                "structures": len(names) + 1,
            },
        },
    }
    path = arguments.out / CARD_FILE
    write_whole(path, lambda file: file.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8"))
    print(f"fitted on {len(places.codes)} places, loss {loss:.3f}: {path}")
    return 0


def _structures(manifest: Path, scheme: str) -> tuple[list[int], list[str]]:
    """Label values and names of a scheme, by value."""
    try:
        named = json.loads(manifest.read_text(encoding="utf-8"))["label_schemes"][scheme]
        values = sorted(int(value) for value in named)
        return values, [str(named[str(value)]) for value in values]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'The manifest {manifest} names no structures of a label scheme "{scheme}" (label_schemes).'
        ) from error
