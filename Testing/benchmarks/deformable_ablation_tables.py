"""The ablations' tables for RESULTS.md, from what was measured so far."""

from __future__ import annotations

from typing import Any

IO = ", io"


def tables(values: dict[str, Any]) -> str:
    """All tables, for pairs that every row of a table has."""
    parts = [_training(values), _dice(values, "same"), _errors(values), _dice(values, "samconvex")]
    return "\n\n".join(part for part in parts if part)


def _training(values: dict[str, Any]) -> str:
    lines = ["| part | network | parameters | iterations | processor min | loss of the last 50 |", _rule(6, 2)]
    for key, value in values.items():
        part, kind, name = key.split("/", 2)
        if kind == "training":
            numbers = f"{value['parameters']:,} | {value['iterations']} | {value['seconds'] / 60:.1f}"
            lines.append(f"| {part} | {name} | {numbers} | {value['loss']:.3f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _dice(values: dict[str, Any], part: str) -> str:
    """Mean Dice over all pairs, and over those that were also optimized, if any were."""
    by_name = _by_name(values, part)
    rows = {name: pairs for name, pairs in by_name.items() if not name.endswith(IO)}
    compares = len(rows) < len(by_name)
    columns = [part, "pairs", "Dice %", "folded %", "s", *(["optimized", "before", "after"] if compares else [])]
    lines = [f"| {' | '.join(columns)} |", _rule(len(columns), 1)]
    for name, pairs in rows.items():
        cells = [name, str(len(pairs)), _mean(pairs, "dice", pairs)]
        cells += [_mean(pairs, "folded", pairs, 3), _mean(pairs, "seconds", pairs)]
        if compares:
            optimized = by_name.get(name + IO, {})
            both = [pair for pair in pairs if pair in optimized]
            cells += [str(len(both)), _mean(pairs, "dice", both), _mean(optimized, "dice", both)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if rows else ""


def _errors(values: dict[str, Any]) -> str:
    """Mean errors in mm over all pairs, and over those that were also optimized."""
    columns = ("all", "near", "middle", "far")
    lines = [f"| rwcnet | pairs | {' | '.join(columns)} | pairs | all | all, io | far | far, io |", _rule(11, 1)]
    rows = _by_name(values, "rwcnet")
    for name, pairs in rows.items():
        optimized = [pair for pair in pairs if pairs[pair].get("all" + IO) is not None]
        first = " | ".join(_mean(pairs, column, pairs, 2) for column in columns)
        second = " | ".join(
            _mean(pairs, column, optimized, 2) for column in ("all", "all" + IO, "far", "far" + IO)
        )
        lines.append(f"| {name} | {len(pairs)} | {first} | {len(optimized)} | {second} |")
    return "\n".join(lines) if rows else ""


def _by_name(values: dict[str, Any], part: str) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        own, pair, name = key.split("/", 2)
        if own == part and pair != "training":
            found.setdefault(name, {})[pair] = value
    return found


def _mean(pairs: dict[str, dict[str, Any]], column: str, chosen: Any, digits: int = 1) -> str:
    numbers = [pairs[pair][column] for pair in chosen if pairs[pair].get(column) is not None]
    return f"{sum(numbers) / len(numbers):.{digits}f}" if numbers else ""


def _rule(columns: int, left: int) -> str:
    return "| " + " | ".join(["---"] * left + ["---:"] * (columns - left)) + " |"
