"""Region-specific optimization and landmarks on real CTs under generated deformations: the tables of RESULTS.md.

    python -m Testing.benchmarks.refinement --data DATA --out DIR [--local 9:8] [--network MODEL]

Every volume is deformed, once smoothly all over and once more at a small scale inside a box of 64 voxels; both
sides get noise and metal with streaks, each its own, the metal beside the box. As in the paper, 500 iterations of
image-specific optimization (ISO) stand against 100 of them and 400 of region-specific optimization (RSO) of the
box, all of the same similarity, on one thread, and timed by the process's CPU clock.

With `--network` the unknowns are the weights of that general model, as published, and the start is what it
predicts; `samreg train deform --config Testing/benchmarks/refinement/general_4mm.json` trains a small one. With
`--landmarks`, landmarks start from the true map under a smooth error, at ten places where that is 5 mm.

What is done already in DIR is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from SAMRegistrationLib.methods.region_optimization import Similarity
from SAMRegistrationLib.models.catalogue import find_model
from SAMRegistrationLib.models.deformable import DeformableModel, load_deformable

from .cases import VOLUMES, LocalMotion, make_case
from .landmarks import landmark_rows
from .regions import ITERATIONS, region_row
from .report import draw_curves, landmark_table, region_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SAMREG_DATA"), help="data folder")
    parser.add_argument("--out", type=Path, required=True, help="where the numbers and the picture go")
    parser.add_argument("--volumes", default=",".join(VOLUMES), help="files of the data folder, comma-separated")
    parser.add_argument("--local", default="9:8", help="mm of the motion in the box : its scale in mm")
    parser.add_argument("--similarity", default="mse", help="mse, lncc or mind")
    parser.add_argument("--network", metavar="MODEL", help="refine the weights of this model of the catalogue")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of ISO, or of ISO and RSO together")
    parser.add_argument("--landmarks", action="store_true", help="landmarks instead of boxes")
    parser.add_argument("--table", action="store_true", help="only write tables and picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        run(options)
    write(options.out)


def run(options: argparse.Namespace) -> None:
    """Measure what is not measured yet."""
    motion = LocalMotion(*map(float, options.local.split(":")))
    model = load_deformable(find_model(options.network)) if options.network else None
    for volume in options.volumes.split(","):
        file = options.out / f"{Path(volume).name.split('.')[0]}.{kind_of(options)}.json"
        if file.is_file():
            continue
        rows = measured(options, volume, motion, model)
        file.write_text(json.dumps(rows))
        for row in rows:
            print(json.dumps({key: value for key, value in row.items() if key != "curves"}), flush=True)


def kind_of(options: argparse.Namespace) -> str:
    """What tells the results of this call from those of others on the same volume."""
    if options.landmarks:
        return "landmarks"
    unknowns = "weights" if options.network else "displacement"
    return f"{unknowns}-{options.similarity}-{options.local.replace(':', 'at')}"


def measured(
    options: argparse.Namespace, volume: str, motion: LocalMotion, model: DeformableModel | None
) -> list[dict[str, Any]]:
    """The rows of one volume."""
    case = make_case(options.data, volume, motion)
    if options.landmarks:
        return landmark_rows(case, VOLUMES.index(volume))
    row = region_row(case, Similarity(options.similarity), model, options.iterations)
    return [{**row, "local": f"{motion.amplitude:g} at {motion.scale:g}"}]


def write(folder: Path) -> None:
    """Tables and picture of all results in a folder."""
    rows = [row for file in sorted(folder.glob("*.json")) for row in json.loads(file.read_text())]
    regions = [row for row in rows if "curves" in row]
    regions.sort(key=lambda row: (row["unknowns"], row["similarity"], row["local"]))
    landmarks = [row for row in rows if "curves" not in row]
    parts = ([region_table(regions)] if regions else []) + ([landmark_table(landmarks)] if landmarks else [])
    (folder / "refinement.md").write_text("\n".join(parts))
    print("\n".join(parts))
    if regions:
        draw_curves(regions, folder / "refinement.png")


if __name__ == "__main__":
    main()
