"""Embeddings that are known already, read where the volume lies under another map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_body import FIXED_GRID, embeddings, fixed_body, moving_body

from SAMRegistrationLib import AffineTransform, Grid
from SAMRegistrationLib.alignment import PlacedFeatures
from SAMRegistrationLib.methods.problem import Problem

TURN = np.deg2rad(3.0)
TURNED = [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]
PLACE = AffineTransform.about_center(np.diag([1.04, 0.97, 1.05]) @ TURNED, (0, 0, 0), (200, 10, -60))
"""From the fixed to the moving world."""

LARGE_GRID = Grid((56, 48, 76), (5.0,) * 3, (62.5, -107.5, -247.5))
"""Of the moving volume."""


def _placed(to_moving: AffineTransform) -> PlacedFeatures:
    """Of the moving body, as it lies in a world from where the given map leads to its own."""
    grid = replace(LARGE_GRID, origin=tuple(to_moving.inverse().transform_points(LARGE_GRID.origin)))
    return PlacedFeatures(embeddings(grid, PLACE.inverse().compose(to_moving)), to_moving)


@pytest.mark.parametrize("to_moving", [AffineTransform(), AffineTransform.translation((190.0, 0.0, -50.0))])
def test_vectors_are_those_of_the_places_that_a_map_leads_to(to_moving: AffineTransform) -> None:
    found = _placed(to_moving).under(PLACE, FIXED_GRID, FIXED_GRID)
    assert found is not None and found.coarse is not None
    expected = embeddings(FIXED_GRID, AffineTransform()).fine.data
    assert LARGE_GRID.contains(PLACE.transform_points(FIXED_GRID.corners())).all(), "nothing is read beyond it"
    for features in (found.fine, found.coarse):
        assert features.grid.isclose(FIXED_GRID)
        assert features.data.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(
            torch.linalg.vector_norm(features.data, dim=1), torch.ones(1, *FIXED_GRID.shape)
        )
        assert float((features.data * expected).sum(dim=1).min()) > 0.995


@pytest.mark.parametrize(
    ("linear", "spacing"),
    [(np.diag([1.07, 1, 1]), 5.0), (np.asarray(TURNED) @ TURNED, 5.0), (np.eye(3), 4.0)],
    ids=["stretched", "turned", "sampled otherwise"],
)
def test_what_lies_very_differently_is_embedded_again(linear: np.ndarray, spacing: float) -> None:
    known = PlacedFeatures(embeddings(FIXED_GRID, AffineTransform()), AffineTransform())
    place = AffineTransform.about_center(linear, (0, 0, 0))
    assert known.under(place, FIXED_GRID.resampled(spacing), None) is None


class _Counted:
    """An extractor of what looks like the fixed body, which counts the volumes it embeds."""

    name = "counted"
    volumes = 0

    def extract_tensor(self, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.volumes += 1
        found = embeddings(FIXED_GRID, AffineTransform())
        return found.fine.data, found.fine.data

    def feature_grids(self, grid: Grid) -> tuple[Grid, Grid]:
        return grid, grid


def test_the_moving_volume_is_embedded_only_where_nothing_is_known_of_it() -> None:
    extractor = _Counted()
    problem = Problem(fixed_body(), moving_body(), extractor, initial=PLACE)  # type: ignore[arg-type]
    problem.embedded = _placed(AffineTransform())
    known = problem.features()[1].fine.data
    assert extractor.volumes == 1, "the fixed one alone"
    problem.forget_features()
    again = problem.features()[1].fine.data
    assert extractor.volumes == 3
    assert float((known * again).sum(dim=1).min()) > 0.995
