"""What tables, statistics and plots say about a result, one number each."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Measure, Results

REFERENCE = "default"
"""The method that all others are compared with."""


@dataclass(frozen=True)
class Column:
    """One measure of a result.

    Args:
        title: with its unit.
        of: the number; NaN where a result has none.
        higher_is_better: what counts as better.
        digits: after the point.
    """

    title: str
    of: Measure
    higher_is_better: bool = False
    digits: int = 2


def _mean_of(metric: str, scale: float = 1.0) -> Measure:
    return lambda result: scale * result.mean(metric)


DICE = Column("Dice %", _mean_of("dice", 100.0), higher_is_better=True, digits=1)
TRE = Column("TRE mm", _mean_of("tre_mean_mm"))
ERROR = Column("error mm", _mean_of("error_mean_mm"))
FOLDED = Column("folded %", _mean_of("folded_percent"), digits=3)
SECONDS = Column("s", lambda result: result.seconds, digits=1)
GIBIBYTES = Column("GiB", lambda result: result.gibibytes, digits=1)
DEVICE_GIBIBYTES = Column("GPU GiB", lambda result: result.device_gibibytes, digits=1)

ACCURACY = (DICE, TRE, ERROR)
"""What methods are ranked by; a pair has one or two of them."""

COLUMNS = (
    DICE,
    Column("HD95 mm", _mean_of("hd95_mm"), digits=1),
    Column("centers mm", _mean_of("center_mm"), digits=1),
    TRE,
    Column("TRE p95 mm", _mean_of("tre_p95_mm")),
    ERROR,
    Column("error p95 mm", _mean_of("error_p95_mm")),
    Column("error at the sliding wall mm", _mean_of("sliding_error_mean_mm")),
    Column("p95 there mm", _mean_of("sliding_error_p95_mm")),
    Column("spine moved mm", _mean_of("still_mean_mm")),
    FOLDED,
    Column("NDV %", _mean_of("ndv_percent"), digits=3),
    Column("SDlogJ", _mean_of("sdlogj"), digits=3),
    Column("SDlogJ (+3)", _mean_of("sdlogj_l2r"), digits=3),
)
"""The accuracy part of every summary; what no result has is left out."""


def known(values: list[float]) -> list[float]:
    """The values that are not NaN."""
    return [value for value in values if value == value]


def values_of(results: Results, method: str, column: Column) -> dict[str, float]:
    """A method's known values by pair, of the results that are done."""
    values = {result.pair: column.of(result) for result in results if result.method == method and result.done}
    return {pair: value for pair, value in values.items() if value == value}


def main_column(results: Results) -> Column | None:
    """What a family's methods are ranked by: the first measure of accuracy that it has."""
    for column in (TRE, ERROR, DICE):
        if any(known([column.of(result) for result in results if result.done])):
            return column
    return None
