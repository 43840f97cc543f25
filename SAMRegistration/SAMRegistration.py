"""Registration of volumes by anatomical embeddings: the entry of the module; its parts are SAMRegistrationModule."""

import logging
from pathlib import Path
from typing import Union

import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTransformNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from SAMRegistrationModule.Library import makeLibraryImportable
from SAMRegistrationModule.RegistrationLogic import RegistrationLogic

POLL_MILLISECONDS = 100

MaskNode = Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, vtkMRMLMarkupsROINode, None]
LabelsNode = Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]


class SAMRegistration(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("SAM Registration")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The SAMRegistration team"]
        self.parent.helpText = _(
            "Aligns two volumes, CT above all, by self-supervised anatomical embeddings: correspondence is looked up "
            "instead of guessed from gray values. Choose the volumes, press Apply, and review the result."
        )
        self.parent.acknowledgementText = _(
            "The methods are those of SAM, SAME, SAMConvex, ConvexAdam, MIND and VoxelOpt; see the README."
        )
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """Offer the sample volumes; nothing else happens before the module is used."""
    from SAMRegistrationModule.SampleVolumes import registerSampleData

    registerSampleData()


@parameterNodeWrapper
class SAMRegistrationParameterNode:
    """Inputs, settings and outputs of the panel, saved with the scene."""

    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: vtkMRMLScalarVolumeNode
    fixedMask: MaskNode
    movingMask: MaskNode
    initialTransform: vtkMRMLTransformNode
    fixedLandmarks: vtkMRMLMarkupsFiducialNode
    movingLandmarks: vtkMRMLMarkupsFiducialNode
    preset: str = "default"
    device: str = "auto"
    allowCPU: bool = True
    outputTransform: vtkMRMLTransformNode
    outputInverse: vtkMRMLTransformNode
    outputWarped: vtkMRMLScalarVolumeNode
    outputJacobian: vtkMRMLScalarVolumeNode
    outputDisplacement: vtkMRMLScalarVolumeNode
    outputReport: vtkMRMLTableNode
    wantWarped: bool = True
    wantInverse: bool = False
    wantJacobian: bool = False
    wantDisplacement: bool = False
    wantReport: bool = True
    showResult: bool = True
    evaluationFixedLabels: LabelsNode
    evaluationMovingLabels: LabelsNode
    evaluationFixedLandmarks: vtkMRMLMarkupsFiducialNode
    evaluationMovingLandmarks: vtkMRMLMarkupsFiducialNode
    evaluationTable: vtkMRMLTableNode
    evaluationChart: vtkMRMLPlotChartNode
    fixedPoints: vtkMRMLMarkupsFiducialNode
    movingPoints: vtkMRMLMarkupsFiducialNode
    pointMethod: str = "sam"
    livePoints: bool = True
    heatMap: vtkMRMLScalarVolumeNode
    similarity: str = "lncc"
    refineIterations: int = 400
    refineMargin: float = 20.0
    refineWithLandmarks: bool = False
    landmarkWeight: float = 1.0
    exactLandmarks: bool = False


class SAMRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel; `logic` and `dialogs` may be given by tests."""

    def __init__(self, parent=None, logic=None, dialogs=None):
        VTKObservationMixin.__init__(self)
        self.logic, self._dialogs = logic, dialogs
        self.panel = None
        self._timer = None
        # Without a parent the base class makes one, and calls `setup` at once.
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Make the panel; what fails here is told in the panel, which is never empty."""
        ScriptedLoadableModuleWidget.setup(self)
        import qt

        try:
            uiWidget = slicer.util.loadUI(self.resourcePath("UI/SAMRegistration.ui"))
            self.layout.addWidget(uiWidget)
            self.ui = slicer.util.childWidgetVariables(uiWidget)
            uiWidget.setMRMLScene(slicer.mrmlScene)
            self._makePanel()
        except Exception as error:
            logging.exception("SAMRegistration: the panel cannot be made")
            self.layout.addWidget(
                qt.QLabel(f"The panel cannot be made: {error}\nPlease report it with the error log.")
            )
            return
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.timeout.connect(lambda *_: self.logic.worker.poll())
        self._timer.start()
        self.initializeParameterNode()

    def _makePanel(self):
        from SAMRegistrationModule.Dialogs import Dialogs
        from SAMRegistrationModule.Panel import Panel
        from SAMRegistrationModule.ProcessTransport import slicerTransport

        self.logic = self.logic or SAMRegistrationLogic(makeTransport=slicerTransport)
        self.panel = Panel(self.ui, self.logic, self._dialogs or Dialogs())

    def cleanup(self):
        """Slicer closes, or the module is reloaded: the worker ends."""
        self.removeObservers()
        if self._timer is not None:
            self._timer.stop()
        if self.panel is not None:
            self.panel.setParameters(None)
        if self.logic is not None:
            self.logic.close()

    def enter(self):
        """The module is shown."""
        if self.panel is not None:
            self.initializeParameterNode()

    def exit(self):
        """Another module is shown; a registration goes on."""
        if self.panel is not None:
            self.panel.setParameters(None)

    def onSceneStartClose(self, *_arguments):
        """The nodes are about to go: stop what works on them."""
        self.logic.forgetScene()
        self.panel.setParameters(None)

    def onSceneEndClose(self, *_arguments):
        """A new scene gets a new parameter node once the module is seen."""
        if getattr(self.parent, "isEntered", True):
            self.initializeParameterNode()

    def initializeParameterNode(self):
        """Show the parameter node of the scene; without a choice, the first two volumes are proposed."""
        parameters = self.logic.getParameterNode()
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        volumes = [volume for volume in volumes if not volume.IsA("vtkMRMLLabelMapVolumeNode")]
        if parameters.fixedVolume is None and parameters.movingVolume is None and len(volumes) > 1:
            parameters.fixedVolume, parameters.movingVolume = volumes[0], volumes[1]
        self.panel.setParameters(parameters)


class SAMRegistrationLogic(ScriptedLoadableModuleLogic, RegistrationLogic):
    """What the module does, from scripts too: `SAMRegistrationLogic().register(fixedVolume, movingVolume)`.

    The call waits and returns the transform node; see `RegistrationLogic.register` for callbacks and options.
    """

    def __init__(self, **options):
        ScriptedLoadableModuleLogic.__init__(self)
        makeLibraryImportable()
        RegistrationLogic.__init__(self, **options)

    def getParameterNode(self):
        return SAMRegistrationParameterNode(super().getParameterNode())


class SAMRegistrationTest(ScriptedLoadableModuleTest):
    """To be run in Slicer (Reload and Test); needs an installed environment."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_RegisterTwoVolumes()

    def test_RegisterTwoVolumes(self):
        """Two phantoms, one moved by 6 mm: the transform brings a point of the moving one back to within 2 mm."""
        from SAMRegistrationModule.SelfTest import addPhantom

        self.delayDisplay("Starting the test")
        fixed, moving = addPhantom("fixed", 0.0), addPhantom("moving", 6.0)
        logic = SAMRegistrationLogic()
        try:
            node = logic.register(fixed, moving, preset="affine", model="mind", outputs={"report": True})
        finally:
            logic.close()
        moved = node.GetTransformToParent().TransformPoint(6.0, 0.0, 0.0)
        self.assertLess(vtk.vtkMath.Distance2BetweenPoints(moved, (0.0, 0.0, 0.0)), 4.0)
        self.assertTrue(Path(slicer.modules.samregistration.path).is_file())
        self.delayDisplay("Test passed")
