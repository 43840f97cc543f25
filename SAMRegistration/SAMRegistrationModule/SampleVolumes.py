"""The sample pair of the extension, registered with Slicer's module Sample Data."""

from pathlib import Path

PAIR = {"SAMRegistrationFixed": "lidc0405", "SAMRegistrationMoving": "lungdx0001"}
CATEGORY = "SAMRegistration"


def sampleFolder() -> "Path | None":
    """Where the sample volumes lie: beside the installed module, or in a copy of the repository."""
    here = Path(__file__).resolve()
    candidates = (here.parents[1] / "Resources" / "SampleData", here.parents[2] / "Resources" / "SampleData")
    return next((folder for folder in candidates if (folder / "lidc0405.nii.gz").is_file()), None)


def registerSampleData() -> None:
    """Offer the two chest CTs that come with the extension; nothing is downloaded."""
    import SampleData

    folder = sampleFolder()
    if folder is None:
        return
    iconFolder = Path(__file__).resolve().parents[1] / "Resources" / "Icons"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName="SAMRegistration chest CT pair",
        thumbnailFileName=str(iconFolder / "SAMRegistrationSampleData.png"),
        uris=[(folder / f"{file}.nii.gz").as_uri() for file in PAIR.values()],
        fileNames=[f"{file}.nii.gz" for file in PAIR.values()],
        nodeNames=list(PAIR),
    )
