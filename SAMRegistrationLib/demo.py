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
FIXED, MOVING = "lidc0405", "ts_example"
LABEL_NAMES = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 5: "liver", 6: "stomach", 7: "pancreas",
    9: "left adrenal gland", 10: "left upper lung lobe", 11: "left lower lung lobe", 14: "right lower lung lobe",
    18: "small bowel", 19: "duodenum", 20: "colon", 29: "vertebra L3", 30: "vertebra L2", 31: "vertebra L1",
    32: "vertebra T12", 52: "aorta", 63: "inferior vena cava", 64: "portal vein", 79: "spinal cord",
    86: "left back muscle", 87: "right back muscle", 88: "left iliopsoas", 89: "right iliopsoas",
    101: "left rib 10", 102: "left rib 11", 117: "costal cartilage",
}  # fmt: skip


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
        title=f"{MOVING} onto {FIXED}: two patients, only the upper abdomen in common",
    )
