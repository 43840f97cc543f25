"""Centers of structures are compared as wholes, and those of open tubes level by level."""

from __future__ import annotations

import numpy as np
import pytest

from SAMRegistrationLib.training.structure_centers import center_distance, center_line_distance


def tube(lowest: float, highest: float, slope: float = 0.0) -> np.ndarray:
    """Positions (n, 3) of the voxels of a tube of 10 mm along z that leans toward x by `slope`."""
    x, y, z = np.meshgrid(
        np.arange(-5.0, 6.0), np.arange(-5.0, 6.0), np.arange(lowest, highest, 3.0), indexing="ij"
    )
    return np.stack([x + slope * z, y, z], axis=-1).reshape(-1, 3)


def test_a_tube_contoured_farther_down_keeps_its_center_line() -> None:
    matched, whole = tube(0.0, 60.0), tube(-90.0, 60.0)
    assert center_distance(matched, whole) == pytest.approx(45.0, abs=2.0)
    assert center_line_distance(matched, whole) == pytest.approx(0.0, abs=1e-9)


def test_a_leaning_tube_is_compared_at_the_level_of_every_match() -> None:
    structure = tube(0.0, 90.0, slope=1.0)
    aside = structure[::7] + np.array([3.0, 4.0, 0.0])
    assert center_line_distance(aside, structure) == pytest.approx(5.0, abs=0.1)


def test_levels_that_err_to_opposite_sides_do_not_cancel() -> None:
    structure = tube(0.0, 60.0)
    swaying = structure + np.where(structure[:, 2:] < 30.0, 1.0, -1.0) * np.array([6.0, 0.0, 0.0])
    assert center_line_distance(swaying, structure) == pytest.approx(6.0)


def test_stray_matches_of_a_level_do_not_move_it() -> None:
    structure = tube(0.0, 60.0)
    strays = np.array([[80.0, -70.0, z] for z in (5.0, 20.0, 35.0, 50.0)])
    assert center_line_distance(np.concatenate([structure, strays]), structure) < 0.1


def test_matches_beyond_both_ends_of_a_contour_say_nothing() -> None:
    assert np.isnan(center_line_distance(tube(100.0, 160.0), tube(0.0, 60.0)))
