"""The demonstration: two CTs of different patients, from files to table and picture."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .evaluation import evaluate
from .image import Image
from .image_io import read_labels
from .pipeline import Progress, RegistrationResult, register
from .report import write_report
from .tables import evaluation_text, report_text

SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "Resources" / "SampleData"
FIXED, MOVING = "lidc0405", "lungdx0001"
LABEL_NAMES = {2: "right lung", 3: "left lung", 4: "bone"}


def run_demo(
    folder: str | Path, *, preset: str = "default", device: str = "auto", progress: Progress | None = None
) -> str:
    """Register the sample pair, write the results and a picture, and return the tables as text.

    Raises:
        InputError: if the sample data is not there (it comes with the repository, not with a wheel).
    """
    folder = Path(folder)
    paths = {name: SAMPLE_FOLDER / f"{name}.nii.gz" for name in (FIXED, MOVING)}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"the sample volume {path} is missing; run the demo in a copy of the repository")
    result = register(paths[FIXED], paths[MOVING], preset=preset, device=device, progress=progress)
    labels = {name: read_labels(SAMPLE_FOLDER / f"{name}_labels.nii.gz") for name in paths}
    found = evaluate(
        result.transform,
        result.fixed,
        result.moving,
        fixed_labels=labels[FIXED],
        moving_labels=labels[MOVING],
        labels=LABEL_NAMES,
        label_names=LABEL_NAMES,
    )
    result.save(folder)
    write_report(found, folder / "evaluation.json")
    picture = folder / "registration.png"
    _draw(result, labels, picture)
    return "\n\n".join([report_text(result.report), evaluation_text(found), f"picture: {picture}"])


def _draw(result: RegistrationResult, labels: dict[str, Image], picture: Path) -> None:
    from .figure import registration_figure

    registration_figure(
        result.fixed,
        result.moving,
        result.warped,
        result.displacement,
        picture,
        fixed_labels=labels[FIXED],
        moving_labels=labels[MOVING],
        title=f"{MOVING} onto {FIXED}: chest CTs of two patients",
    )
