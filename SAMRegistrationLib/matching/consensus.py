"""What trusted matches all over a body say about a place between them, and how much to believe it.

Neighbors cannot help a point at the edge of what a volume shows, or where its surroundings look different: then
they are wrong together. A smooth field through the matches that are well supported still says where the point must
be about. How well it says so is measured by leaving each of these matches out; where it is better than a point's
own neighbors, it is followed, and where people differ more than it can follow, it is not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from ..grid import FloatArray
from .structural import StructuralMatches

LEAST_MATCHES = 30
"""With fewer matches there is no field worth following."""

_WIDTH_MM = 25.0
"""Standard deviation of the Gaussian by which matches weigh on a place."""

_TRUST_EXPONENT = 4
"""Matches weigh by this power of their support: a wrong one has half the support of a right one."""

_PULL_TO_NOTHING = 1e-3
"""Weight of no displacement, relative to the best match: it decides only far from all matches."""

_ERROR_OF_RESIDUAL = 0.25
"""A point's error is about so large a part of its neighbors' residual."""

_DECISION_EXPONENT = 6
"""How sharply the more accurate of match and field is preferred. With 0.3 and 4 two people's matches fall into the
same organ 2 % less often where they differ most; with 0.15 the thin masked ends of a volume gain little."""


class Consensus:
    """A smooth field through matches between two volumes that are aligned already.

    Args:
        matches: of points all over the body; partners lie near the points.
    """

    def __init__(self, matches: StructuralMatches) -> None:
        self.matches = matches
        self._trust = matches.support**_TRUST_EXPONENT
        self._displacement = matches.matched - matches.points

    def predict(self, points: FloatArray) -> FloatArray:
        """Where world positions (n, 3) go: the mean displacement of the matches around, weighed by trust."""
        return self._predicted(points, self._weights(points))

    @cached_property
    def accuracy_mm(self) -> float:
        """By how much the field misses a trusted match that is left out, the median over all trust."""
        weights = self._weights(self.matches.points)
        np.fill_diagonal(weights, 0.0)
        error = np.linalg.norm(self._predicted(self.matches.points, weights) - self.matches.matched, axis=1)
        order = np.argsort(error)
        total = np.cumsum(self._trust[order])
        return float(error[order][np.searchsorted(total, total[-1] / 2)])

    def improve(self, matches: StructuralMatches) -> StructuralMatches:
        """The matches, each drawn toward the field as far as this is the more accurate of the two."""
        if len(self.matches) < LEAST_MATCHES:
            return matches
        own_error = _ERROR_OF_RESIDUAL * matches.residual
        # Infinite where a point was matched alone: then the field decides.
        trust = 1.0 / (1.0 + (own_error / max(self.accuracy_mm, 1e-6)) ** _DECISION_EXPONENT)
        predicted = self.predict(matches.points)
        return replace(matches, matched=predicted + trust[:, None] * (matches.matched - predicted))

    def _weights(self, points: FloatArray) -> FloatArray:
        others = self.matches.points
        squared = np.square(points).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * points @ others.T
        return np.exp(-np.maximum(squared, 0.0) / (2 * _WIDTH_MM**2)) * self._trust

    def _predicted(self, points: FloatArray, weights: FloatArray) -> FloatArray:
        pull = _PULL_TO_NOTHING * self._trust.max(initial=0.0) + 1e-12
        return np.asarray(points + weights @ self._displacement / (weights.sum(axis=1, keepdims=True) + pull))
