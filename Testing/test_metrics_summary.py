"""Similarity of volumes, statistics over cases, and the record of time and memory."""

from __future__ import annotations

import gc
import math
import time

import numpy as np
import psutil
import pytest
import torch

from SAMRegistrationLib.errors import Cancelled
from SAMRegistrationLib.metrics import (
    StageRecorder,
    distribution,
    finite_mean,
    group_means,
    mutual_information,
    normalized_cross_correlation,
    peak_memory,
    robust_value,
    similarity,
)


def noise(seed: int, shape: tuple[int, int, int] = (12, 13, 14)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_normalized_cross_correlation_is_pearson_within_the_mask() -> None:
    first, second = noise(0), noise(0) + noise(1)
    mask = noise(2) > 0
    inside = mask.numpy()
    expected = np.corrcoef(first.numpy()[inside], second.numpy()[inside])[0, 1]
    assert normalized_cross_correlation(first, second, mask) == pytest.approx(expected, abs=1e-6)
    assert normalized_cross_correlation(first, torch.full_like(first, 3)) == 0


def test_mutual_information_of_equal_volumes_is_the_entropy_and_of_independent_ones_nearly_zero() -> None:
    steps = torch.arange(16.0).repeat(500).view(20, 20, 20)
    assert mutual_information(steps, -2 * steps, bins=16) == pytest.approx(math.log(16), abs=1e-6)
    shuffled = steps.flatten()[torch.randperm(8000, generator=torch.Generator().manual_seed(0))].view(20, 20, 20)
    assert mutual_information(steps, shuffled, bins=16) < 0.03
    assert mutual_information(steps, torch.full_like(steps, 5)) == 0


def test_similarity_names_every_measure_and_refuses_what_does_not_fit() -> None:
    volume = noise(7)
    assert set(similarity(volume, volume)) == {"normalized_cross_correlation", "mutual_information"}
    with pytest.raises(ValueError, match="different shapes"):
        similarity(volume, volume[1:])
    with pytest.raises(ValueError, match="mask is empty"):
        normalized_cross_correlation(volume, volume, torch.zeros_like(volume))


def test_robust_value_is_the_worse_end_of_the_cases() -> None:
    cases = [float(n) for n in range(11)]
    assert robust_value(cases, higher_is_better=True) == pytest.approx(3)
    assert robust_value([*cases, float("nan")], higher_is_better=False) == pytest.approx(7)
    assert math.isnan(robust_value([], higher_is_better=True))


def test_means_leave_out_what_was_not_measured() -> None:
    values = {1: 0.5, 2: 0.7, 3: float("inf")}
    assert group_means(values, {"kidneys": (1, 2, 9), "lost": (3,), "absent": (8,)}) == {
        "kidneys": pytest.approx(0.6),
        "lost": None,
        "absent": None,
    }
    assert finite_mean([]) is None


def test_a_distribution_is_described_by_its_mean_and_tail() -> None:
    assert distribution(range(101)) == {"mean": 50, "median": 50, "p95": 95, "max": 100}
    with pytest.raises(ValueError, match="no values"):
        distribution([])


def test_recorder_times_stages_and_adds_up_repeated_ones() -> None:
    recorder = StageRecorder()
    for _ in range(2):
        with recorder.stage("solve"):
            time.sleep(0.02)
    with recorder.stage("write"):
        pass
    summary = recorder.summary()
    assert [stage["name"] for stage in summary["stages"]] == ["solve", "write"]
    assert 0.04 <= summary["stages"][0]["seconds"] < 5
    assert summary["seconds"] == pytest.approx(sum(stage["seconds"] for stage in summary["stages"]))
    assert summary["device_peak_memory_mib"] is None


def test_recorder_reports_progress_by_the_shares_of_its_plan() -> None:
    heard: list[tuple[str, float]] = []
    recorder = StageRecorder(lambda name, done: heard.append((name, done)), {"features": 1, "solve": 3})
    with recorder.stage("features"):
        pass
    with recorder.stage("unplanned"):
        pass
    with recorder.stage("solve"):
        recorder.advance("solve", 0.5)
    assert heard == [
        ("features", 0.0),
        ("features", 0.25),
        ("unplanned", 0.25),
        ("unplanned", 0.25),
        ("solve", 0.25),
        ("solve", pytest.approx(0.625)),
        ("solve", 1.0),
    ]


def test_a_cancellation_by_the_listener_ends_the_stage_and_is_still_recorded() -> None:
    def cancel(name: str, done: float) -> None:
        if done > 0:
            raise Cancelled(f"stopped in {name}")

    recorder = StageRecorder(cancel, {"solve": 1})
    with pytest.raises(Cancelled), recorder.stage("solve"):
        recorder.advance("solve", 0.5)
    assert [stage.name for stage in recorder.stages] == ["solve"]


def test_peak_memory_is_at_least_what_is_held_and_grows_with_it() -> None:
    gc.collect()  # What other tests left must not be freed between the two measurements.
    held = psutil.Process().memory_info().rss / 2**20
    recorder = StageRecorder()
    with recorder.stage("allocate"):
        block = np.ones(int(peak_memory() - held + 256) * 2**17)
    assert recorder.stages[0].peak_memory_growth_mib == pytest.approx(256, abs=96)
    assert peak_memory() >= block.nbytes / 2**20


@pytest.mark.cuda
def test_recorder_measures_the_memory_of_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recorder = StageRecorder(device="cuda")
    before = torch.cuda.memory_allocated() / 2**20
    with recorder.stage("allocate"):
        block = torch.zeros(16, 2**18, device="cuda")
    assert recorder.stages[0].device_peak_memory_mib == pytest.approx(before + block.nbytes / 2**20, abs=4)
