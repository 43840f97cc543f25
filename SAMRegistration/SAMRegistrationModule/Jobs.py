"""The folder that volumes and results pass through, and what goes into it."""

import shutil
import tempfile
from pathlib import Path

from .Flattening import flattenedVolume
from .Geometry import GridGeometry, InputProblem, parentTransforms
from .VolumeFiles import writeVolumeFile

PREFIX = "SAMRegistration-"
TRANSFORMS_KEPT = 6
"""As many refinements can be taken back without any loss."""


class JobFolders:
    """One temporary folder for the session: volumes that stay, so that they are written once, and jobs that go.

    Args:
        root: where it is made; the temporary folder of Slicer, or of the system, by default.
    """

    def __init__(self, root: "Path | None" = None) -> None:
        self._root = root
        self._folder = None
        self._written = {}
        self._transforms = []
        self._count = 0

    @property
    def folder(self) -> Path:
        """The session's folder; made when first needed, and again if somebody removed it.

        Raises:
            InputProblem: if it cannot be made.
        """
        if self._folder is None or not self._folder.is_dir():
            self._written.clear()
            try:
                self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._root or _temporaryFolder()))
            except OSError as error:
                raise folderProblem(Path(self._root or tempfile.gettempdir()), error) from error
        return self._folder

    def newJob(self) -> Path:
        """An empty folder for one request.

        Raises:
            InputProblem: if it cannot be made.
        """
        self._count += 1
        job = self.folder / f"job{self._count}"
        try:
            job.mkdir()
        except OSError as error:
            raise folderProblem(job, error) from error
        return job

    def remove(self, job: Path) -> None:
        """Forget a job and its files."""
        shutil.rmtree(job, ignore_errors=True)

    def volumeFile(self, volumeNode, ignoring=None) -> "tuple[Path, GridGeometry]":
        """The file of a volume as it lies in the world, written unless it has not changed since the last time.

        Raises:
            InputProblem: if the volume cannot be used, or the folder is full.
        """
        folder = self.folder
        key = _stateOf(volumeNode, ignoring)
        known = self._written.get(volumeNode.GetID())
        if known is not None and known[0] == key and known[1].is_file():
            return known[1:]
        if known is not None:
            known[1].unlink(missing_ok=True)
        array, geometry = flattenedVolume(volumeNode, ignoring)
        self._count += 1
        path = folder / f"volume{self._count}.nrrd"
        try:
            writeVolumeFile(path, array, geometry)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise folderProblem(folder, error) from error
        self._written[volumeNode.GetID()] = (key, path, geometry)
        return path, geometry

    def keepTransform(self, transform, path: str) -> None:
        """Keep the worker's own file of a transform that a node holds now, for as long as the session lasts."""
        self._count += 1
        kept = self.folder / f"transform{self._count}{Path(path).suffix}"
        shutil.copyfile(path, kept)
        self._transforms.append((_identity(transform), kept))
        for _, old in self._transforms[:-TRANSFORMS_KEPT]:
            old.unlink(missing_ok=True)
        self._transforms = self._transforms[-TRANSFORMS_KEPT:]

    def transformFile(self, transform) -> "Path | None":
        """The worker's own file of a VTK transform, if it was kept."""
        for known, path in self._transforms:
            if known == _identity(transform) and path.is_file():
                return path
        return None

    def clear(self) -> None:
        """Remove the whole folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._written.clear()
        self._transforms.clear()


def _identity(transform) -> tuple:
    """What tells a VTK transform from all others, and from itself after a change, without keeping it alive."""
    return transform.GetAddressAsString("vtkObject"), transform.GetMTime()


def folderProblem(folder: Path, error: OSError) -> InputProblem:
    """The sentence for a job folder that cannot be written."""
    return InputProblem(
        f"The folder {folder} cannot be written ({error.strerror or error}). Free some space on its disk, or "
        "choose another temporary folder in Edit / Application Settings / Modules."
    )


def _temporaryFolder() -> "str | None":
    import slicer

    application = getattr(slicer, "app", None)
    return getattr(application, "temporaryPath", None)


def _stateOf(volumeNode, ignoring) -> tuple:
    """What the voxels and the place of a volume depend on."""
    chain = parentTransforms(volumeNode, ignoring)
    parents = tuple((parent.GetID(), parent.GetTransformToWorldMTime()) for parent in chain)
    image = volumeNode.GetImageData()
    return (image.GetMTime() if image is not None else 0, volumeNode.GetMTime(), parents)
