"""What a result was before every refinement, kept in the scene as hidden transform nodes."""

import json
from dataclasses import dataclass

from .TransformNodes import FIELD_ATTRIBUTE

ROLE = "SAMRegistration.History"
STEP_ATTRIBUTE = "SAMRegistration.Step"


@dataclass
class Step:
    """One refinement.

    Args:
        title: where, in a few words.
        before, after: error within the boxes, or at the landmarks.
        unit: of the errors.
        isAccepted: the user kept it.
    """

    title: str
    before: "float | None" = None
    after: "float | None" = None
    unit: str = "HU"
    isAccepted: bool = False


class RefinementHistory:
    """The steps of one result, saved with the scene.

    Args:
        keeper: the parameter node, which refers to them.
        transformNode: the result.
    """

    def __init__(self, keeper, transformNode) -> None:
        self._keeper, self._transform = keeper, transformNode

    @property
    def steps(self) -> "list[Step]":
        return [Step(**json.loads(node.GetAttribute(STEP_ATTRIBUTE))) for node in self._nodes()]

    def begin(self):
        """Remember what the result is now; gives the function that makes a step of it."""
        scene = self._transform.GetScene()
        node = scene.CreateNodeByClass("vtkMRMLTransformNode")
        node.UnRegister(None)
        node.SetName(f"{self._transform.GetName()} before refinement {len(self.steps) + 1}")
        node.SetHideFromEditors(True)
        held, spacing = self._transform.GetTransformFromParent(), self._transform.GetAttribute(FIELD_ATTRIBUTE)

        def finish(step: Step) -> None:
            node.SetAndObserveTransformFromParent(held)
            node.SetAttribute(FIELD_ATTRIBUTE, spacing)
            node.SetAttribute(STEP_ATTRIBUTE, json.dumps(vars(step)))
            scene.AddNode(node)
            self._keeper.AddNodeReferenceID(ROLE, node.GetID())

        return finish

    def accept(self) -> None:
        """Keep the last step."""
        nodes = self._nodes()
        if nodes:
            step = Step(**json.loads(nodes[-1].GetAttribute(STEP_ATTRIBUTE)))
            step.isAccepted = True
            nodes[-1].SetAttribute(STEP_ATTRIBUTE, json.dumps(vars(step)))

    def undo(self) -> bool:
        """Give the result back what it was before the last step, which is forgotten; whether there was one."""
        nodes = self._nodes()
        if not nodes:
            return False
        self.put(nodes[-1])
        self._transform.GetScene().RemoveNode(nodes[-1])
        return True

    def before(self):
        """The node that holds what the result was before the last step, or None."""
        nodes = self._nodes()
        return nodes[-1] if nodes else None

    def put(self, source) -> None:
        """Let the result be what another node holds."""
        self._transform.SetAndObserveTransformFromParent(source.GetTransformFromParent())
        self._transform.SetAttribute(FIELD_ATTRIBUTE, source.GetAttribute(FIELD_ATTRIBUTE))

    def clear(self) -> None:
        """Forget all steps, as after a new registration."""
        for node in self._nodes():
            self._transform.GetScene().RemoveNode(node)

    def _nodes(self) -> list:
        nodes = [
            self._keeper.GetNthNodeReference(ROLE, index)
            for index in range(self._keeper.GetNumberOfNodeReferences(ROLE))
        ]
        # A scene that was saved without their files has nodes that hold nothing.
        return [node for node in nodes if node is not None and node.GetTransformFromParent() is not None]
