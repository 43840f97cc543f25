"""The command ``samreg train deform``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, UsageError

if TYPE_CHECKING:
    from ...features.sam import SamExtractor
    from ..cache import CachedVolume
    from ..distributed import Processes
    from .config import DeformableConfig
    from .pairs import PairSource
    from .starts import Starts


def add_deform_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action ``deform`` to ``samreg train``; needs neither torch nor data."""
    deform = actions.add_parser(
        "deform",
        help="train a network that predicts displacements",
        description="Train a registration network on pairs of the volumes of a manifest. A run that was "
        "interrupted goes on from its last checkpoint when the same command is given again. For several "
        "processes: torchrun --nproc_per_node N -m SAMRegistrationLib train deform ...",
    )
    deform.add_argument("--data", metavar="MANIFEST", type=Path, required=True, help="JSON with the volumes")
    deform.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="checkpoint, weights, logs, model card"
    )
    deform.add_argument(
        "--config",
        metavar="FILE",
        help="JSON with settings, or the name of one that comes with the library: voxelmorph, same, lapirn, "
        "rwcnet, rso (default: that of the network's paper)",
    )
    deform.add_argument("--network", help="network (default: that of the configuration)")
    deform.add_argument("--held-out", metavar="FILE", type=Path, help="JSON with lists of volumes not to train on")
    deform.add_argument(
        "--cache", metavar="DIR", type=Path, help="folder for prepared volumes (default: DIR/cache)"
    )
    deform.add_argument("--iterations", type=int, help="length of the whole run, of networks of one stage")
    deform.add_argument("--seed", type=int, help="of everything random")
    deform.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    deform.add_argument("--quiet", action="store_true", help="no progress")


def run_deform(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg train deform``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ...features.sam import SamExtractor
    from ..cache import build_cache
    from ..checkpoint import make_folder
    from ..distributed import after_the_first, join_processes, leave_processes
    from ..manifest import read_training_volumes
    from ..model_card import write_model_card
    from ..weights import extractor_of
    from .trainer import DeformableTrainer

    config = configuration(arguments)
    chosen, held_out = read_training_volumes(arguments.data, arguments.held_out)
    if config.pairs.regions:
        chosen = [volume for volume in chosen if volume.region in config.pairs.regions]
    processes = join_processes(arguments.device)
    folder = arguments.cache or arguments.out / "cache"
    try:
        make_folder(arguments.out)
        extractor = extractor_of(config.features, None, str(processes.device))
        if not isinstance(extractor, SamExtractor):
            raise UsageError(f"volumes are aligned by the features of a model, not by {config.features}")
        with after_the_first(processes):
            cache = build_cache(chosen, folder, extractor.spacing or config.pairs.spacing)
            source = _source(cache.volumes, config, extractor, folder, processes, quiet=arguments.quiet)
        trainer = _trainer(DeformableTrainer, source, config, arguments.out, processes, quiet=arguments.quiet)
        trainer.resume()
        trainer.run()
        if processes.is_first:
            used = {volume.name for volume in cache.volumes}
            trained = [volume for volume in chosen if volume.name in used]
            left_out = [volume.name for volume in held_out]
            again = f"train deform --network {config.architecture}"
            write_model_card(
                trainer, arguments.data, trained, cache.skipped, left_out, arguments.held_out, command=again
            )
            for name, reason in cache.skipped.items():
                print(f"skipped {name}: {reason}", file=sys.stderr)
    finally:
        leave_processes(processes)
    return 0


def configuration(arguments: argparse.Namespace) -> DeformableConfig:
    """The configuration that the command's arguments ask for.

    Raises:
        UsageError: if there is none such.
    """
    from .config import configuration_for, read_configuration

    changes: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("iterations", "seed") if getattr(arguments, name) is not None
    }
    if arguments.network is None and arguments.config is None:
        raise UsageError("say what to train by --network, --config, or both")
    if arguments.network is not None:
        changes["architecture"] = arguments.network
    return read_configuration(arguments.config or configuration_for(arguments.network), changes)


def _source(
    volumes: list[CachedVolume],
    config: DeformableConfig,
    extractor: SamExtractor,
    folder: Path,
    processes: Processes,
    *,
    quiet: bool,
) -> PairSource:
    """The pairs, once all volumes are aligned and embedded, which an earlier run may have done."""
    from .embeddings import EmbeddingStore
    from .pairs import PairSource

    store = EmbeddingStore(extractor, folder / "embeddings") if _needs_embeddings(config) else None
    starts = _starts(volumes, config, extractor, folder, quiet=quiet)
    if store is not None and processes.is_first:
        for volume in volumes:
            store.maps(volume)
    return PairSource(volumes, starts, config, processes.device, processes.rank, store)


def _needs_embeddings(config: DeformableConfig) -> bool:
    from ...networks.deformable import build_deformable_network

    try:
        return config.loss.sam > 0 or build_deformable_network(config.architecture, config.network).uses_embeddings
    except ValueError as error:
        raise InputError(f"the configuration does not fit: {error}") from error


def _starts(
    volumes: list[CachedVolume], config: DeformableConfig, extractor: SamExtractor, folder: Path, *, quiet: bool
) -> Starts:
    from .starts import AFFINE, CENTER, affine_starts, centered_starts

    if config.pairs.start == CENTER:
        return centered_starts(volumes)
    if config.pairs.start != AFFINE:
        raise UsageError(f'volumes start from "{AFFINE}" or "{CENTER}", not from "{config.pairs.start}"')
    return affine_starts(volumes, extractor, folder, extractor.device, say=_say_nothing if quiet else _say)


def _trainer(kind: Any, source: PairSource, config: DeformableConfig, *more: Any, **options: Any) -> Any:
    try:
        return kind(source, config, *more, **options)
    except ValueError as error:
        raise InputError(f"the configuration does not fit: {error}") from error


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _say_nothing(_: str) -> None:
    """Be quiet."""
