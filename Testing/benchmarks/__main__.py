"""Command line of the benchmarks; see RESULTS.md for examples."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from .feature_tables import feature_markdown
from .processes import REPOSITORY
from .runner import Run, evaluate_again, run_all
from .tables import collect, markdown, write_csv, write_results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m Testing.benchmarks", description=__doc__)
    data = os.environ.get("SAMREG_DATA", REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="data folder (SAMREG_DATA)")
    parser.add_argument("--out", type=Path, required=True, help="where results go, outside the repository")
    parser.add_argument("--suite", default="issue2")
    methods = "NAME, NAME+FEATURES or NAME@START, comma-separated; by default those the suite is about"
    parser.add_argument("--methods", default="", help=methods)
    parser.add_argument("--pairs", default="", help="only these pairs or families, comma-separated")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds per method and pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; with several they last")
    parser.add_argument("--budget", type=float, default=math.inf, help="begin no job after so many seconds")
    parser.add_argument("--no-fields", action="store_true", help="do not save displacements")
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
        methods=tuple(name for name in arguments.methods.split(",") if name),
        pairs=tuple(name for name in arguments.pairs.split(",") if name),
        limit_s=arguments.limit,
        device=arguments.device,
        threads=arguments.threads,
        force=arguments.force,
        retry=arguments.retry,
        jobs=arguments.jobs,
        keep_fields=not arguments.no_fields,
        budget_s=arguments.budget,
    )
    if run.out.is_relative_to(REPOSITORY):
        parser.error("--out must lie outside the repository")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    failed: list[str] = []
    if arguments.evaluate:
        evaluate_again(run)
    elif not arguments.table:
        failed = run_all(run)
    results = collect(run)
    write_csv(results, run.out / f"{run.suite}.csv")
    if arguments.results:
        tables = markdown if run.suite == "issue2" else feature_markdown
        write_results(tables(results), run.suite, arguments.results)
    if failed:
        print("\n".join([f"{len(failed)} failed:", *failed]), flush=True)


if __name__ == "__main__":
    main()
