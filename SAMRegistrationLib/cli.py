"""The command line `samreg`: one subcommand per task, one clear line for a user's mistake."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import __version__
from .benchmark.command import add_benchmark_arguments, run_benchmark
from .benchmark.scaling import add_scaling_arguments, run_scaling
from .errors import Cancelled, NotEnoughMemoryError, RegistrationError, UsageError, is_out_of_memory
from .models.command import add_models_arguments, run_models
from .refinement.command import add_refine_arguments
from .shared_processors import letting_go
from .training.command import add_train_arguments, run_train


class _Parser(argparse.ArgumentParser):
    """Wrong use is one sentence, like any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 done, 1 failed, 2 wrong use, 3 bad input, 4 not enough memory, 130 cancelled.
    """
    os.environ.update(letting_go(os.environ))
    try:
        options = build_parser().parse_args(arguments)
        return int(options.run(options) or 0)
    except RegistrationError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail("cancelled; nothing was written", Cancelled.exit_status)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail("memory ran out; crop the volumes or make them coarser", NotEnoughMemoryError.exit_status)


def _fail(sentence: str, status: int) -> int:
    print(f"samreg: {sentence}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; what they need is loaded when they run."""
    parser = _Parser(
        prog="samreg", description="Register medical volumes by self-supervised anatomical embeddings."
    )
    parser.add_argument("--version", action="version", version=f"samreg {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _SUBCOMMANDS:
        add(subparsers)
    return parser


def _add_register(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "register", help="align a moving volume with a fixed one", description="Align MOVING with FIXED."
    )
    command.add_argument("fixed", metavar="FIXED", help="NIfTI, NRRD, MetaImage or a folder with one DICOM series")
    command.add_argument("moving", metavar="MOVING", help="the volume to bring onto FIXED")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the four result files")
    command.add_argument("--preset", default="default", help="see `samreg presets` (default: %(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument("--initial", metavar="T", help="transform to start from, instead of searching one")
    command.add_argument("--fixed-mask", metavar="M", help="label map: register where it is not zero")
    command.add_argument("--moving-mask", metavar="M", help="label map of the moving volume's usable voxels")
    command.add_argument("--model", help="features to use instead of the preset's: mind, or see `samreg models`")
    command.add_argument("--strict", action="store_true", help="refuse to fall back to MIND without weights")
    command.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_lazily("register_command"))


def _add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("evaluate", help="measure a transform on labels and landmarks")
    command.add_argument("-t", "--transform", required=True, help="from fixed to moving space")
    command.add_argument("--fixed", required=True, help="the fixed volume")
    command.add_argument("--moving", required=True, help="the moving volume")
    command.add_argument("--fixed-labels", metavar="A", help="label map of the fixed volume")
    command.add_argument("--moving-labels", metavar="B", help="label map of the moving volume")
    command.add_argument("--fixed-points", metavar="P", help="landmarks in the fixed volume")
    command.add_argument("--moving-points", metavar="Q", help="the same landmarks in the moving volume")
    command.add_argument("-o", "--output", metavar="FILE", help="also write the numbers as JSON")
    command.set_defaults(run=_lazily("evaluate_command"))


def _add_apply(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("apply", help="resample a volume, or map points, with a transform")
    command.add_argument("transform", metavar="TRANSFORM", help="from fixed to moving space")
    command.add_argument("input", metavar="INPUT", help="volume or label map in moving space")
    command.add_argument("--reference", metavar="FIXED", required=True, help="volume whose grid is wanted")
    command.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    command.add_argument("--labels", action="store_true", help="INPUT is a label map: nearest neighbor")
    command.set_defaults(run=_lazily("apply_command"))


def _add_match(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("match", help="find points of the fixed volume in the moving one by features")
    command.add_argument("fixed", metavar="FIXED", help="volume that the points belong to")
    command.add_argument("moving", metavar="MOVING", help="volume to find them in")
    command.add_argument("--points", metavar="P", required=True, help=".mrk.json, .fcsv or .csv")
    command.add_argument("-o", "--output", metavar="OUT", required=True, help="file for the matched points")
    command.add_argument(
        "--method",
        choices=("sam", "quiz", "joint"),
        default="sam",
        help="sam: by embeddings, quiz: by a transformer, joint: by both (default: %(default)s)",
    )
    command.add_argument("--model", default="sam", help="embeddings: sam or a model (default: %(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.set_defaults(run=_lazily("match_command"))


def _add_refine(subparsers: argparse._SubParsersAction) -> None:
    add_refine_arguments(subparsers)
    subparsers.choices["refine"].set_defaults(run=_lazily("refine_command"))


def _add_presets(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("presets", help="list the presets and when to use them")
    command.set_defaults(run=_lazily("presets_command"))


def _add_models(subparsers: argparse._SubParsersAction) -> None:
    add_models_arguments(subparsers)
    subparsers.choices["models"].set_defaults(run=run_models)


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    add_train_arguments(subparsers)
    subparsers.choices["train"].set_defaults(run=run_train)


def _add_benchmark(subparsers: argparse._SubParsersAction) -> None:
    add_benchmark_arguments(subparsers)
    subparsers.choices["benchmark"].set_defaults(run=run_benchmark)


def _add_scaling(subparsers: argparse._SubParsersAction) -> None:
    add_scaling_arguments(subparsers)
    subparsers.choices["scaling"].set_defaults(run=run_scaling)


def _add_doctor(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("doctor", help="say what this machine offers and what is missing")
    command.set_defaults(run=_lazily("doctor_command"))


def _add_demo(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("demo", help="register two CTs that come with the project and show the result")
    command.add_argument("-o", "--output", metavar="DIR", default="demo-output", help="default: %(default)s")
    command.add_argument("--preset", default="default", help="default: %(default)s")
    command.add_argument("--device", default="auto", help="default: %(default)s")
    command.set_defaults(run=_lazily("demo_command"))


def _lazily(name: str) -> Callable[[argparse.Namespace], int]:
    """A function of `commands` by name, so that `--help` and wrong use need no torch."""

    def run(options: argparse.Namespace) -> int:
        from . import commands

        return int(getattr(commands, name)(options) or 0)

    return run


_SUBCOMMANDS: tuple[Callable[[argparse._SubParsersAction], None], ...] = (
    _add_register,
    _add_evaluate,
    _add_apply,
    _add_match,
    _add_refine,
    _add_presets,
    _add_models,
    _add_train,
    _add_benchmark,
    _add_scaling,
    _add_doctor,
    _add_demo,
)

if __name__ == "__main__":
    sys.exit(main())
