"""Command line of the benchmarks; see RESULTS.md for examples."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from SAMRegistrationLib.presets import preset_names

from .runner import REPOSITORY, Run, evaluate_again, run_all
from .tables import collect, write_csv, write_results

PEERS_BEFORE, PEERS_AFTER = ("initial", "sitk-affine"), ("convexadam-0.2.0",)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m Testing.benchmarks", description=__doc__)
    data = os.environ.get("SAMREG_DATA", REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="data folder (SAMREG_DATA)")
    parser.add_argument("--out", type=Path, required=True, help="where results go, outside the repository")
    parser.add_argument("--suite", default="issue2")
    everything = ",".join((*PEERS_BEFORE, *preset_names(), *PEERS_AFTER))
    parser.add_argument("--methods", default=everything, help="NAME or NAME@START, comma-separated")
    parser.add_argument("--pairs", default="", help="only these pairs or families, comma-separated")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds per method and pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="run again what is there already")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--evaluate", action="store_true", help="only score saved displacements again")
    parser.add_argument("--table", action="store_true", help="only write the tables from what is there")
    parser.add_argument("--results", type=Path, help="Markdown file to update, such as RESULTS.md beside this")
    arguments = parser.parse_args()
    run = Run(
        data=arguments.data.resolve(),
        out=arguments.out.resolve(),
        suite=arguments.suite,
        methods=tuple(arguments.methods.split(",")),
        pairs=tuple(name for name in arguments.pairs.split(",") if name),
        limit_s=arguments.limit,
        device=arguments.device,
        threads=arguments.threads,
        force=arguments.force,
        retry=arguments.retry,
    )
    if run.out.is_relative_to(REPOSITORY):
        parser.error("--out must lie outside the repository")
    if arguments.evaluate:
        evaluate_again(run)
    elif not arguments.table:
        run_all(run)
    results = collect(run)
    write_csv(results, run.out / f"{run.suite}.csv")
    if arguments.results:
        write_results(results, run.suite, arguments.results)


if __name__ == "__main__":
    main()
