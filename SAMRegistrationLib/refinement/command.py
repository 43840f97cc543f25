"""The command `samreg refine`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.deformable import DeformableModel
    from ..pipeline import Progress
    from .landmarks import LandmarkPairs
    from .regions import RegionRequest


def add_refine_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to a parser; needs no torch."""
    command = subparsers.add_parser(
        "refine",
        help="improve a registration in boxes and at landmarks",
        description="Improve the registration of MOVING to FIXED that T holds, in boxes and at landmarks only.",
    )
    command.add_argument("fixed", metavar="FIXED", help="the fixed volume")
    command.add_argument("moving", metavar="MOVING", help="the moving volume")
    command.add_argument("-t", "--transform", metavar="T", help="what was accepted, such as transform.h5")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the four result files")
    # A box may begin with a minus, which argparse would take for an option.
    command._negative_number_matcher = re.compile(r"^-[\d.][-+\d.,e]*$")
    box = "Slicer .mrk.json, or x0,y0,z0,x1,y1,z1 in LPS mm; may be given several times"
    command.add_argument("--roi", metavar="R", action="append", default=[], help=f"box on the fixed volume: {box}")
    command.add_argument("--moving-roi", metavar="R", action="append", default=[], help="box on the moving volume")
    command.add_argument(
        "--points", metavar="PAIRS", help="landmark pairs: CSV fixed_x,fixed_y,...,moving_z[,label]"
    )
    command.add_argument("--fixed-points", metavar="P", help="landmarks in the fixed volume, with --moving-points")
    command.add_argument("--moving-points", metavar="Q", help="the same landmarks in the moving volume")
    command.add_argument(
        "--weight",
        metavar="MM",
        type=float,
        default=1.0,
        help="how far off landmarks may be (default: %(default)s)",
    )
    command.add_argument("--exact", action="store_true", help="meet the landmarks exactly by a last correction")
    command.add_argument("--similarity", default="lncc", help="lncc, mse, mind or sam (default: %(default)s)")
    command.add_argument("--iterations", type=int, default=400, help="for each box (default: %(default)s)")
    command.add_argument(
        "--image-iterations", type=int, default=0, help="for the whole image before (default: %(default)s)"
    )
    command.add_argument(
        "--margin",
        metavar="MM",
        type=float,
        default=20.0,
        help="around a box, where it fades (default: %(default)s)",
    )
    command.add_argument(
        "--network", metavar="MODEL", help="refine the weights of this model (see `samreg models`)"
    )
    command.add_argument("--model", default="sam", help="features for the similarity sam (default: %(default)s)")
    command.add_argument("--fixed-mask", metavar="M", help="label map: what counts is where it is not zero")
    command.add_argument("--moving-mask", metavar="M", help="label map of the moving volume's usable voxels")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress")


def refine_files(options: argparse.Namespace, progress: Progress) -> str:
    """Refine as the arguments want it, write the four result files, and say what was reached.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    from ..files import require_writable_folder
    from .refine import refine
    from .tables import refinement_text

    require_writable_folder(options.output)
    result = refine(
        options.transform,
        options.fixed,
        options.moving,
        regions=_regions(options),
        points=_pairs(options),
        image_iterations=options.image_iterations,
        similarity=options.similarity,
        iterations=options.iterations,
        margin_mm=options.margin,
        network=_network(options.network),
        device=options.device,
        fixed_mask=options.fixed_mask,
        moving_mask=options.moving_mask,
        model=options.model,
        progress=progress,
    )
    result.save(options.output)
    return refinement_text(result.report)


def _regions(options: argparse.Namespace) -> list[RegionRequest]:
    from ..roi import read_roi
    from .regions import RegionRequest, Side

    drawn = {Side.FIXED: options.roi, Side.MOVING: options.moving_roi}
    return [RegionRequest(read_roi(source), side) for side, sources in drawn.items() for source in sources]


def _pairs(options: argparse.Namespace) -> LandmarkPairs | None:
    from ..errors import UsageError
    from ..points import read_point_pairs
    from .landmarks import LandmarkPairs

    separate = [options.fixed_points, options.moving_points]
    if (options.points and any(separate)) or any(separate) != all(separate):
        raise UsageError("give landmarks either by --points, or by both --fixed-points and --moving-points")
    if not options.points and not any(separate):
        return None
    fixed, moving = read_point_pairs(
        Path(options.points or options.fixed_points), None if options.points else Path(options.moving_points)
    )
    weights = [options.weight] * len(fixed)
    return LandmarkPairs(fixed.points, moving.points, weights, [options.exact] * len(fixed), fixed.labels)


def _network(name: str | None) -> DeformableModel | None:
    if name is None:
        return None
    from ..errors import UsageError
    from ..models.catalogue import find_model
    from ..models.deformable import is_deformable, load_deformable

    entry = find_model(name)
    if not is_deformable(entry.architecture):
        raise UsageError(f"the model {name} gives features; a refinement of weights needs one that registers")
    return load_deformable(entry)
