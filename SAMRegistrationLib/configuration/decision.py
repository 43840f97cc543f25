"""The decision of the preset `auto`: a table of rules, read in order, the first that fits."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .situation import Situation

RULES_FILE = Path(__file__).with_name("rules.json")

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Rule:
    """What to take when a situation fits.

    Args:
        name: of the rule.
        when: comparisons of fields of `Situation`, all of which must hold; an unknown value (None) never does.
        take: name of a preset.
        because: the reason, with the situation's fields in braces.
        measured: what the rule rests on.
    """

    name: str
    when: tuple[tuple[str, str, Any], ...]
    take: str
    because: str
    measured: str

    def fits(self, situation: Situation) -> bool:
        """Whether all comparisons hold."""
        values = ((getattr(situation, field), COMPARISONS[sign], bound) for field, sign, bound in self.when)
        return all(value is not None and compare(value, bound) for value, compare, bound in values)

    def reason(self, situation: Situation) -> str:
        """One sentence without its period."""
        return self.because.format(**asdict(situation))


def read_rules(path: Path = RULES_FILE) -> tuple[str, tuple[Rule, ...]]:
    """The name of the usual preset, and the rules in their order."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rules = []
    for entry in content["presets"]:
        when = tuple((field, sign, bound) for field, sign, bound in entry["when"])
        rules.append(Rule(**{**entry, "when": when}))
    return content["usual"], tuple(rules)


def usual_preset() -> str:
    """The name of the preset that is taken where nothing speaks against it."""
    return read_rules()[0]


def decide(situation: Situation, rules: tuple[Rule, ...]) -> Rule:
    """The first rule that fits; the last one always does."""
    return next(rule for rule in rules if rule.fits(situation))
