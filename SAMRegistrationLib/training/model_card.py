"""What a trained model was made from and how, as a file beside its weights."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

from .checkpoint import WEIGHTS_FILE, write_whole
from .loop import TrainingLoop
from .manifest import Volume

CARD_FILE = "model_card.json"


def write_model_card(
    trainer: TrainingLoop,
    manifest: Path,
    volumes: list[Volume],
    skipped: dict[str, str],
    held_out: list[str],
    held_out_file: Path | None = None,
    *,
    command: str = "train sam",
    more: dict[str, Any] | None = None,
) -> Path:
    """Write the card of a finished run into its folder.

    Args:
        volumes: those of the manifest that were trained on.
        skipped: name and reason of the volumes that could not be used.
        held_out: names left out on purpose, as `held_out_file` asked.
        command: what ``samreg`` was asked to do, for the line that goes on with it.
        more: further facts.
    """
    config = trainer.settings
    card: dict[str, Any] = {
        "architecture": config.architecture,
        "weights": WEIGHTS_FILE,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "iterations": trainer.iteration,
        "processes": trainer.processes.count,
        "hours": round(trainer.seconds / 3600, 2),
        "seed": config.to_dict()["seed"],
        "recipe": config.to_dict(),
        "training_data": _by_licence(volumes),
        "volumes": [volume.name for volume in volumes],
        "held_out": sorted(held_out),
        "skipped": skipped,
        **(more or {}),
        "continue_with": _command(command, trainer.out, manifest, held_out_file, 2 * config.iterations),
    }
    path = trainer.out / CARD_FILE
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8"))
    return path


def _by_licence(volumes: list[Volume]) -> list[dict[str, Any]]:
    counts = Counter((volume.source, volume.licence) for volume in volumes)
    return [
        {"source": source, "licence": licence, "volumes": count}
        for (source, licence), count in counts.most_common()
    ]


def _command(command: str, out: Path, manifest: Path, held_out: Path | None, iterations: int) -> str:
    """What makes the run twice as long; folder names only, since the card travels."""
    left_out = f" --held-out {held_out.name}" if held_out else ""
    return f"samreg {command} --data {manifest.name} --out {out.name}{left_out} --iterations {iterations}"
