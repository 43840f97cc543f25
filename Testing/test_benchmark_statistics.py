"""Paired statistics agree with scipy and with what can be worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from SAMRegistrationLib.benchmark.measures import DICE, SECONDS, TRE, main_column, values_of
from SAMRegistrationLib.benchmark.results import Result
from SAMRegistrationLib.benchmark.statistics import bootstrap_mean, compare, holm, wilcoxon


def result(method: str, pair: str, dice: float | None = None, tre: float | None = None) -> Result:
    scores = []
    for metric, value in (("dice", dice), ("tre_mean_mm", tre)):
        if value is not None:
            scores.append({"metric": metric, "label": "a", "group": "a", "scored": True, "value": value})
    status = "done" if scores else "failed"
    report: dict[str, Any] = {"status": status, "seconds": 2.0, "start_seconds": 1.0, "scores": scores}
    return Result(pair, "family", method, report)


def test_the_signed_rank_test_is_that_of_scipy_and_of_counting() -> None:
    values = np.random.default_rng(3).normal(0.3, 1.0, 23)
    assert wilcoxon(values.tolist()) == pytest.approx(float(stats.wilcoxon(values).pvalue), rel=1e-12)
    # Five differences of one sign: 2 of the 32 ways to choose signs are as extreme.
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)
    # All but the smallest: signed sums of at most 1 or at least 14 are (1, 1, 1, 1 of each) 4 of 32.
    assert wilcoxon([-0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(4 / 32)


def test_no_difference_is_certain_and_no_pair_says_nothing() -> None:
    assert wilcoxon([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon([]))


def test_bootstrap_intervals_hold_the_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(11)
    held = 0
    for seed in range(60):
        interval = bootstrap_mean(generator.normal(5.0, 2.0, 40).tolist(), seed)
        held += interval.low <= 5.0 <= interval.high
    assert 51 <= held <= 60


def test_a_bootstrap_interval_has_the_width_of_the_normal_one_for_many_values_and_is_repeatable() -> None:
    values = np.random.default_rng(5).normal(0, 3.0, 400)
    interval = bootstrap_mean(values.tolist(), 1)
    expected = 2 * 1.96 * values.std() / math.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)
    assert interval.mean == pytest.approx(values.mean())
    assert bootstrap_mean(values.tolist(), 1) == interval != bootstrap_mean(values.tolist(), 2)
    assert math.isnan(bootstrap_mean([], 1).mean)
    assert bootstrap_mean([4.0], 1).low == bootstrap_mean([4.0], 1).high == 4.0


def test_holms_correction_follows_his_example() -> None:
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_nothing = holm([0.5, math.nan, 0.9])
    assert with_nothing[0] == 1.0 and math.isnan(with_nothing[1]) and with_nothing[2] == 1.0


def test_methods_are_compared_on_the_pairs_that_both_have() -> None:
    results = [
        result("default", "a", dice=0.6),
        result("default", "b", dice=0.8),
        result("default", "c"),
        result("peer", "a", dice=0.5),
        result("peer", "b", dice=0.9),
        result("peer", "c", dice=0.1),
        result("broken", "a"),
    ]
    (one,) = compare(results, "default", DICE, 0)
    assert (one.method, one.pairs, one.wins) == ("peer", 2, 1)
    assert one.difference.mean == pytest.approx(0.0, abs=1e-9)
    assert one.p_holm == one.p == 1.0


def test_where_less_is_better_the_smaller_value_wins() -> None:
    results = [result("default", "a", tre=1.0), result("peer", "a", tre=2.0)]
    assert compare(results, "default", TRE, 0)[0].wins == 1
    assert main_column(results) is TRE
    assert values_of(results, "peer", SECONDS) == {"a": 3.0}
