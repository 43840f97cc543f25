"""Questions about points to the worker: where their partners lie, and what else looks like one."""

from .Geometry import InputProblem
from .JobRunner import JobRunner, requireInScene
from .Lazy import numpy as np
from .VolumeFiles import readVolumeFile

METHODS = ("sam", "quiz", "joint")
HEAT_MAP_COLORS = "vtkMRMLColorTableNodeFileInferno.txt"
_RAS_TO_LPS = (-1.0, -1.0, 1.0)


class PointQueries(JobRunner):
    """The part of the logic that matches points."""

    def matchPoints(self, fixedVolume, movingVolume, points, **options):
        """Find points of the fixed volume in the moving one.

        Args:
            fixedVolume, movingVolume: scalar volumes, under any parent transforms.
            points: (N, 3) world positions in RAS mm.
            options: `transformNode` of a result, to be left out where the moving volume lies under it; `method`, of
                "sam", "quiz" and "joint"; `model`, `device`, `allowCPU`; `onDone` (matched positions (N, 3) in RAS
                mm, and a dictionary with `score`, `support`, `cycle_mm` and `reason`), `onError`, `onProgress`.

        Returns:
            Matched positions and the dictionary, or with callbacks the `Job`.

        Raises:
            InputProblem: if the inputs cannot be used.
            RegistrationFailed: without callbacks, if it does not succeed.
        """
        job = self.newJob(options)
        flip = np.array(_RAS_TO_LPS)

        def prepare() -> dict:
            parameters = self._pairParameters(fixedVolume, movingVolume, options)
            parameters["points"] = (np.asarray(points, dtype=float).reshape(-1, 3) * flip).tolist()
            parameters["method"] = options.get("method") or METHODS[0]
            return parameters

        def take(result: dict) -> tuple:
            matched = np.array(result["matched"]).reshape(-1, 3) * flip
            return (matched, result), (matched, result)

        return self.run(job, "match", self.prepared(job, prepare), take)

    def heatMap(self, fixedVolume, movingVolume, point, node=None, **options):
        """How much every place of the moving volume looks like a point, as a volume over the moving one.

        Args:
            fixedVolume, movingVolume: as of `matchPoints`.
            point: world position in RAS mm.
            node: a volume node to be updated.
            options: as of `matchPoints`, without `method`; `onDone` is told the node and the worker's result.

        Returns:
            The volume node, or with callbacks the `Job`.

        Raises:
            InputProblem, RegistrationFailed: as of `matchPoints`.
        """
        job = self.newJob(options)

        def prepare() -> dict:
            parameters = self._pairParameters(fixedVolume, movingVolume, options)
            parameters["point"] = (np.asarray(point, dtype=float) * np.array(_RAS_TO_LPS)).tolist()
            parameters["output"] = str(job.folder / "heat.nrrd")
            return parameters

        def take(result: dict) -> tuple:
            image, matrix = readVolumeFile(result["output"])
            requireInScene(fixedVolume, movingVolume, node)
            shown = node or _newHeatMap(movingVolume)
            shown.SetIJKToRASMatrix(matrix)
            shown.SetAndObserveImageData(image)
            _colorHeatMap(shown, result["highest"])
            return shown, (shown, result)

        return self.run(job, "heat_map", self.prepared(job, prepare), take)

    def _pairParameters(self, fixedVolume, movingVolume, options: dict) -> dict:
        if fixedVolume is None or movingVolume is None:
            raise InputProblem("Choose the fixed and the moving volume in the section Inputs.")
        parameters = {
            "fixed": str(self.folders.volumeFile(fixedVolume)[0]),
            "moving": str(self.folders.volumeFile(movingVolume, options.get("transformNode"))[0]),
            "device": options.get("device") or "auto",
            "allow_cpu": options.get("allowCPU", True),
        }
        if options.get("model"):
            parameters["model"] = options["model"]
        return parameters


def _newHeatMap(movingVolume):
    scene = movingVolume.GetScene()
    name = scene.GenerateUniqueName(f"{movingVolume.GetName()} likeness")
    return scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)


def _colorHeatMap(node, highest: float) -> None:
    """The warmest color where the likeness is highest; places that are not alike are dark."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(HEAT_MAP_COLORS)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, max(highest, 0.1))
