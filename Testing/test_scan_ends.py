"""Where a scan ends although the body does not; `test_features_sam.py` tests what embeddings make of it."""

from __future__ import annotations

import pytest
import torch

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.features.mind import MindExtractor
from SAMRegistrationLib.features.scan_ends import shown_part, shown_slices
from SAMRegistrationLib.methods.problem import Problem
from SAMRegistrationLib.methods.voxel_weights import without_made_up


@pytest.mark.parametrize(
    ("means", "shown"),
    [
        ([0.5] * 40, (0, 39)),
        ([0.0, 0.0, 0.3, 0.6] + [0.6] * 36, (4, 39)),
        ([0.5] * 36 + [0.0] * 4, (0, 33)),
        ([0.0] * 2 + [0.03] * 4 + [0.2] + [0.5] * 33, (8, 39)),
        ([0.0, 0.0] + [0.04 * z for z in range(38)], (0, 39)),
        ([0.0] * 40, (0, 39)),
        ([0.0] * 7 + [0.5], (0, 7)),
    ],
    ids=["full", "below", "above", "a table goes on", "a head above which is air", "nothing", "one slice"],
)
def test_only_a_body_that_is_cut_off_goes_on(means: list[float], shown: tuple[int, int]) -> None:
    assert shown_slices(means) == shown


def _scan(first: int, modality: str = "CT") -> Image:
    """Tissue from a slice on, below which a contour has left a column of a few voxels."""
    values = torch.full((40, 24, 24), -1000.0)
    values[first:, 2:22, 2:22] = 40.0
    values[:first, 10:13, 10:13] = 40.0
    return Image(values, Grid((24, 24, 40), (2.0,) * 3), "int16", modality)


def test_a_scan_shows_the_body_from_the_slice_on_after_which_nothing_is_masked() -> None:
    # Two slices next to the end may be blurred by resampling.
    assert shown_part(_scan(10).tensor()) == (12, 39)
    assert shown_part(_scan(0).tensor()) == (0, 39)


def test_a_descent_compares_no_embeddings_of_slices_that_were_made_up() -> None:
    vectors = torch.rand(1, 4, 20, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    real = without_made_up(vectors, Problem(_scan(10), _scan(0), MindExtractor()))
    assert torch.equal(real[:, :, 6:], vectors[:, :, 6:])
    assert not real[:, :, :6].any()
    for whole in (_scan(0), _scan(10, "MR")):
        assert without_made_up(vectors, Problem(whole, _scan(10), MindExtractor())) is vectors
