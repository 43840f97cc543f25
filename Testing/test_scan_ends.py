"""Where a scan ends although the body does not; `test_features_sam.py` tests what embeddings make of it."""

from __future__ import annotations

import pytest

from SAMRegistrationLib.features.scan_ends import shown_slices


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
