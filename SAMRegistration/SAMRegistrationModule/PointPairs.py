"""Points on the fixed volume and their partners on the moving one: two markups lists that belong together."""

import json
from dataclasses import asdict, dataclass

from .Geometry import InputProblem, toWorldTransform, transformPoints
from .Lazy import numpy as np

ATTRIBUTE = "SAMRegistration.Points"
CONFIDENT_COLOR, DOUBTFUL_COLOR = (0.1, 0.75, 0.2), (0.95, 0.45, 0.1)
"""Of points in the views; a list of markups has two colors."""

BY_HAND = "set by hand"


@dataclass
class Pair:
    """What is known of a point's partner.

    Args:
        fixedID, movingID: control points of the two lists.
        score: likeness of both places, 0 to 1.
        support: how well the neighbors agree, 0 to 1.
        cycle: distance in mm between the point and the partner of its partner.
        reason: why the partner is doubtful, or empty.
        byHand: the user put the partner where it is.
    """

    fixedID: str
    movingID: str = ""
    score: float = 0.0
    support: float = 0.0
    cycle: float = 0.0
    reason: str = ""
    byHand: bool = False

    @property
    def isConfident(self) -> bool:
        return self.byHand or not self.reason

    @property
    def text(self) -> str:
        """The confidence in a few words."""
        return BY_HAND if self.byHand else f"{100 * max(self.score, 0.0):.0f} %"

    @property
    def remark(self) -> str:
        """The confidence in a sentence."""
        if self.byHand:
            return "Set by hand."
        measured = f"Likeness {self.score:.2f}, support {self.support:.2f}, cycle {self.cycle:.1f} mm"
        return f"{measured}; {self.reason}." if self.reason else f"{measured}."


class PointPairs:
    """Keeps the moving list beside the fixed one; what is known of the pairs is saved with the moving list.

    Args:
        fixedNode, movingNode: lists of markups.
        ignoring: transform node of the result, which the moving list may lie under like the moving volume.
    """

    def __init__(self, fixedNode, movingNode, ignoring=None) -> None:
        self.fixedNode, self.movingNode, self.ignoring = fixedNode, movingNode, ignoring
        self.isWriting = False
        known = json.loads(movingNode.GetAttribute(ATTRIBUTE) or "[]")
        self.pairs = [Pair(**values) for values in known]
        display = self._displayOf(movingNode)
        display.SetSelectedColor(*CONFIDENT_COLOR)
        display.SetColor(*DOUBTFUL_COLOR)

    def positions(self, identifiers: "list[str]"):
        """World positions (N, 3) in RAS mm of points of the fixed list."""
        local = [self._local(self.fixedNode, identifier) for identifier in identifiers]
        return transformPoints(toWorldTransform(self.fixedNode), np.array(local))

    def take(self, identifiers: "list[str]", matched, found: dict) -> None:
        """Put partners into the moving list.

        Args:
            identifiers: points of the fixed list; those that are gone meanwhile are left out.
            matched: (N, 3) world positions in RAS mm of their partners.
            found: `score`, `support`, `cycle_mm` and `reason` as the worker gives them.
        """
        local = transformPoints(toWorldTransform(self.movingNode, self.ignoring).GetInverse(), np.array(matched))
        there = set(definedIDs(self.fixedNode))
        for index, identifier in enumerate(identifiers):
            if identifier not in there:
                continue
            pair = self._pairOf(identifier) or self._added(identifier)
            values = (found[name][index] for name in ("score", "support", "cycle_mm", "reason"))
            pair.score, pair.support, pair.cycle, pair.reason = values
            pair.byHand = False
            self._place(pair, local[index])
        self._finish()

    def worldPositions(self, pairs=None) -> tuple:
        """Positions (N, 3) of both sides in RAS mm, the moving ones without the result, and labels."""
        chosen = self.pairs if pairs is None else pairs
        fixed = self.positions([pair.fixedID for pair in chosen])
        local = np.array([self._local(self.movingNode, pair.movingID) for pair in chosen])
        moving = transformPoints(toWorldTransform(self.movingNode, self.ignoring), local)
        return fixed, moving, [self.labelOf(pair) for pair in chosen]

    def confident(self) -> tuple:
        """As `worldPositions`, of the pairs that nothing speaks against.

        Raises:
            InputProblem: if there are none.
        """
        sure = [pair for pair in self.pairs if pair.isConfident]
        if not sure:
            raise InputProblem("All of these points are doubtful; put others, or move their partners by hand.")
        return self.worldPositions(sure)

    def removeGone(self) -> bool:
        """Delete the partner of every point that was deleted on either side; whether there was one."""
        fixed, moving = set(definedIDs(self.fixedNode)), set(definedIDs(self.movingNode))
        gone = [pair for pair in self.pairs if pair.fixedID not in fixed or pair.movingID not in moving]
        for pair in gone:
            self._remove(self.fixedNode, pair.fixedID)
            self._remove(self.movingNode, pair.movingID)
            self.pairs.remove(pair)
        if gone:
            self._finish()
        return bool(gone)

    def markMoved(self, identifier: str) -> "Pair | None":
        """The user moved a point of the moving list: it stays where it was put."""
        pair = next((pair for pair in self.pairs if pair.movingID == identifier), None)
        if pair is not None:
            pair.byHand = True
            self._describe(pair)
            self._finish()
        return pair

    def rows(self) -> list:
        """(label, pair) in the order of the fixed list, for a table."""
        return [(self.labelOf(pair), pair) for pair in self.pairs]

    def labelOf(self, pair: Pair) -> str:
        """The name of a pair's point on the fixed side."""
        index = self.fixedNode.GetControlPointIndexByID(pair.fixedID)
        return self.fixedNode.GetNthControlPointLabel(index) if index >= 0 else ""

    def _pairOf(self, fixedID: str) -> "Pair | None":
        return next((pair for pair in self.pairs if pair.fixedID == fixedID), None)

    def _added(self, fixedID: str) -> Pair:
        pair = Pair(fixedID)
        self.pairs.append(pair)
        return pair

    def _place(self, pair: Pair, position) -> None:
        node = self.movingNode
        self.isWriting = True
        try:
            index = node.GetControlPointIndexByID(pair.movingID) if pair.movingID else -1
            if index < 0:
                index = node.AddControlPoint(*position.tolist())
                pair.movingID = node.GetNthControlPointID(index)
            else:
                node.SetNthControlPointPosition(index, *position.tolist())
        finally:
            self.isWriting = False
        self._describe(pair)

    def _describe(self, pair: Pair) -> None:
        """Show the confidence of a pair as color and text."""
        node = self.movingNode
        index = node.GetControlPointIndexByID(pair.movingID)
        self.isWriting = True
        try:
            node.SetNthControlPointLabel(index, f"{self.labelOf(pair)} ({pair.text})")
            node.SetNthControlPointDescription(index, pair.remark)
            node.SetNthControlPointSelected(index, pair.isConfident)
        finally:
            self.isWriting = False

    def _finish(self) -> None:
        """Bring both lists into the same order, and save what is known."""
        order = definedIDs(self.fixedNode)
        self.pairs.sort(key=lambda pair: order.index(pair.fixedID))
        self.isWriting = True
        try:
            for place, pair in enumerate(self.pairs):
                index = self.movingNode.GetControlPointIndexByID(pair.movingID)
                if 0 <= index != place:
                    self.movingNode.SwapControlPoints(index, place)
        finally:
            self.isWriting = False
        self.movingNode.SetAttribute(ATTRIBUTE, json.dumps([asdict(pair) for pair in self.pairs]))

    def _remove(self, node, identifier: str) -> None:
        index = node.GetControlPointIndexByID(identifier)
        if index >= 0:
            self.isWriting = True
            try:
                node.RemoveNthControlPoint(index)
            finally:
                self.isWriting = False

    @staticmethod
    def _local(node, identifier: str) -> list:
        position = [0.0, 0.0, 0.0]
        node.GetNthControlPointPosition(node.GetControlPointIndexByID(identifier), position)
        return position

    @staticmethod
    def _displayOf(node):
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        return node.GetDisplayNode()


def definedIDs(node) -> "list[str]":
    """The control points of a list that were placed, in their order."""
    return [
        node.GetNthControlPointID(index)
        for index in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(index) == node.PositionDefined
    ]
