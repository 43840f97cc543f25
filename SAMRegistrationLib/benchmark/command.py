"""The command ``samreg benchmark``."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runner import Run


def add_benchmark_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``benchmark`` to a parser; loads nothing that is needed only to run it."""
    parser = subparsers.add_parser(
        "benchmark",
        help="measure methods side by side on pairs with ground truth",
        description="Run the methods of SUITE on its pairs, and report accuracy, time and memory.",
    )
    parser.add_argument("suite", metavar="SUITE", nargs="?", help="a shipped suite (see --list) or a JSON file")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="folder for results; run again, it resumes"
    )
    parser.add_argument("--list", action="store_true", help="list suites, their pairs and methods, and stop")
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder of the volumes (default: SAMREG_DATA)")
    parser.add_argument("--methods", default="", help="NAME, NAME+FEATURES or NAME@START, comma-separated")
    parser.add_argument("--pairs", default="", help="only these pairs or families, comma-separated")
    parser.add_argument("--limit", type=float, help="seconds per method and pair (default: the suite's)")
    parser.add_argument("--budget", type=float, default=math.inf, help="begin no job after so many seconds")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="per process (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of everything random (default: the suite's)")
    parser.add_argument(
        "--python",
        metavar="NAME=INTERPRETER",
        action="append",
        default=[],
        help="run a method with another Python, in which its package is installed (also NAME,NAME=...)",
    )
    parser.add_argument(
        "--set",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="a setting of a method, such as deeds.folder=DIR",
    )
    parser.add_argument("--keep-fields", action="store_true", help="save displacements, for --rescore")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="run again what is there already")
    again.add_argument("--retry", action="store_true", help="run again what failed")
    again.add_argument("--rescore", action="store_true", help="only score saved displacements again")
    again.add_argument(
        "--report-only", action="store_true", help="only write tables and report from what is there"
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also put tables between a file's markers")
    parser.add_argument(
        "--record", metavar="CSV", type=Path, help="take what DIR lacks from a file, and put all of DIR into it"
    )


def run_benchmark(options: argparse.Namespace) -> int:
    """Carry out ``samreg benchmark``.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..errors import UsageError
    from .outputs import write_outputs
    from .record import read_record, write_record
    from .runner import judge_all_again, run_all

    if options.list:
        return _list()
    if not options.suite or not options.output:
        raise UsageError("a suite and -o DIR are needed (see samreg benchmark --help)")
    if options.jobs < 1 or options.threads < 1:
        raise UsageError("--jobs and --threads must be at least 1")
    run = _run_of(options)
    unfinished: list[str] = []
    if options.record and options.record.is_file():
        read_record(options.record, run.out)
    if options.rescore:
        judge_all_again(run)
    elif not options.report_only:
        with _ended_as_interrupted():
            unfinished = run_all(run)
    report = write_outputs(run, options.markdown)
    if options.record:
        write_record(run.out, options.record)
    if unfinished:
        print("\n".join([f"{len(unfinished)} did not end well:", *unfinished]))
    print(f"report: {report}")
    return 0


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Take being ended for being interrupted, so that no method goes on alone."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_of(options: argparse.Namespace) -> Run:
    from .methods import Methods
    from .runner import Run
    from .suite import load_suite

    suite = load_suite(options.suite, options.data.resolve() if options.data else None)
    described = [entry for entry in suite.methods if isinstance(entry, dict)]
    return Run(
        suite=suite,
        out=options.output.resolve(),
        methods=_names(options.methods),
        known=Methods(described, _pythons(options.python), _settings(options.set)),
        pairs=_names(options.pairs),
        limit_s=options.limit,
        device=options.device,
        threads=options.threads,
        seed=options.seed,
        force=options.force,
        retry=options.retry,
        jobs=options.jobs,
        keep_fields=options.keep_fields,
        budget_s=options.budget,
    )


def _list() -> int:
    from .methods import METHODS
    from .suite import load_suite, suite_names

    for name in suite_names():
        suite = load_suite(name)
        print(f"{name:16} {len(suite.entries):3} pairs  {suite.description}")
    print(f"\npeers: {', '.join(METHODS)}; and every preset of `samreg presets`")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _pythons(pairs: list[str]) -> dict[str, str]:
    from ..errors import UsageError

    pythons = {}
    for pair in pairs:
        names, equals, interpreter = pair.partition("=")
        if not equals or not names or not interpreter:
            raise UsageError(f"--python needs NAME=INTERPRETER, not {pair!r}")
        pythons.update(dict.fromkeys(_names(names), interpreter))
    return pythons


def _settings(assignments: list[str]) -> dict[str, dict[str, str]]:
    from ..errors import UsageError

    settings: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        place, equals, value = assignment.partition("=")
        # Names of methods may hold a dot themselves (convexadam-0.2.0); settings' names never do.
        name, _, key = place.rpartition(".")
        if not equals or not name or not key:
            raise UsageError(f"--set needs NAME.KEY=VALUE, not {assignment!r}")
        settings.setdefault(name, {})[key] = value
    return settings
