"""What the subcommands of `samreg` do; `cli` parses, this module acts."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RegistrationWarning
from .files import require_writable_folder


class TerminalProgress:
    """One line on stderr that says the stage at work and the share that is done; silent where nobody looks."""

    def __init__(self, quiet: bool = False) -> None:
        self._shown = not quiet and sys.stderr.isatty()

    def __call__(self, stage: str, fraction: float) -> None:
        if self._shown:
            filled = round(fraction * 30)
            sys.stderr.write(f"\r{stage:24} [{'#' * filled}{'.' * (30 - filled)}] {fraction:4.0%} ")
            sys.stderr.flush()

    def finish(self) -> None:
        """Clear the line."""
        if self._shown:
            sys.stderr.write("\r" + " " * 70 + "\r")


@contextmanager
def printed_warnings() -> Iterator[None]:
    """The library's warnings as plain lines on stderr, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RegistrationWarning)
        yield
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"samreg: warning: {sentence}", file=sys.stderr)


def register_command(options: argparse.Namespace) -> int:
    """`samreg register`."""
    from .pipeline import register
    from .tables import report_text

    require_writable_folder(options.output)
    progress = TerminalProgress(options.quiet)
    try:
        result = register(
            options.fixed,
            options.moving,
            preset=options.preset,
            device=options.device,
            initial=options.initial,
            fixed_mask=options.fixed_mask,
            moving_mask=options.moving_mask,
            model=options.model,
            strict=options.strict,
            seed=options.seed,
            progress=progress,
        )
    finally:
        progress.finish()
    result.save(options.output)
    if not options.quiet:
        print(report_text(result.report))
    return 0


def evaluate_command(options: argparse.Namespace) -> int:
    """`samreg evaluate`."""
    from .evaluation import evaluate_files
    from .report import write_report
    from .tables import evaluation_text

    with printed_warnings():
        found = evaluate_files(
            options.transform,
            options.fixed,
            options.moving,
            fixed_labels=options.fixed_labels,
            moving_labels=options.moving_labels,
            fixed_points=options.fixed_points,
            moving_points=options.moving_points,
        )
    if options.output:
        write_report(found, options.output)
    print(evaluation_text(found))
    return 0


def apply_command(options: argparse.Namespace) -> int:
    """`samreg apply`."""
    from .warping import warp_file

    with printed_warnings():
        warp_file(options.transform, options.input, options.reference, options.output, options.labels)
    return 0


def match_command(options: argparse.Namespace) -> int:
    """`samreg match`."""
    import torch

    from .device import resolve_device
    from .features.registry import get_extractor
    from .image_io import read_image
    from .matching import require_embeddings
    from .methods.joint_matching import point_matcher
    from .methods.point_matching import EmbeddedVolume
    from .points import PointSet, read_points, write_points
    from .tables import text_table

    with printed_warnings():
        points = read_points(options.points)
        device = resolve_device(options.device)
        extractor = get_extractor(options.model, device)
        require_embeddings(extractor)
        fixed, moving = (read_image(path).to(device) for path in (options.fixed, options.moving))
        with torch.no_grad():
            volumes = [EmbeddedVolume(image, extractor.extract(image)) for image in (fixed, moving)]
            found = point_matcher(options.method, volumes[0], volumes[1], extractor).match(points.points)
        write_points(PointSet(found.matched, points.labels), options.output)
    numbers = zip(found.score.tolist(), found.support.tolist(), found.cycle_mm.tolist(), strict=True)
    rows = [
        (label, *(f"{value:.1f}" for value in position), f"{score:.2f}", f"{support:.2f}", f"{cycle:.1f}", reason)
        for label, position, (score, support, cycle), reason in zip(
            points.labels, found.matched.tolist(), numbers, found.reason, strict=True
        )
    ]
    print(text_table(("point", "x", "y", "z (LPS mm)", "score", "support", "cycle mm", "doubts"), rows))
    return 0


def refine_command(options: argparse.Namespace) -> int:
    """`samreg refine`."""
    from .refinement.command import refine_files

    progress = TerminalProgress(options.quiet)
    try:
        with printed_warnings():
            text = refine_files(options, progress)
    finally:
        progress.finish()
    if not options.quiet:
        print(text)
    return 0


def presets_command(_: argparse.Namespace) -> int:
    """`samreg presets`."""
    from .presets import load_preset, preset_names, usable_preset_names

    usable = usable_preset_names()
    for name in preset_names():
        preset = load_preset(name)
        missing = "" if name in usable else "; no weights are installed for its network"
        print(f"{name:16} {preset.summary}  [features: {preset.features}{missing}]")
    return 0


def doctor_command(_: argparse.Namespace) -> int:
    """`samreg doctor`."""
    from .doctor import diagnosis

    sound, lines = diagnosis()
    print("\n".join(lines))
    return 0 if sound else 1


def demo_command(options: argparse.Namespace) -> int:
    """`samreg demo`."""
    from .demo import run_demo

    progress = TerminalProgress()
    try:
        text = run_demo(options.output, preset=options.preset, device=options.device, progress=progress)
    finally:
        progress.finish()
    print(text)
    return 0
