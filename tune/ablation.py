"""What each stage of a chain contributes: every one on the same cases, beside the best family alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.evaluation.metrics import PerCase, bootstrap_intervals

Kind = Literal["alone", "other", "chain", "without"]
BESIDE = ("ndcg_at_10", "recall_at_20")  # shown beside the metric that chooses


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a chain, or a chain without one.

    Attributes:
        kind: `alone` a family by itself, `chain` what was chosen, `other` what was not (its mix not ranked among it),
            `without` the chain less a source, its ranker learned anew.
        per_case: float64 (C,) by metric.
    """

    name: str
    kind: Kind
    per_case: dict[str, PerCase]


def best_alone(stages: Sequence[Stage], metric: str) -> Stage:
    """The best single family, the first among equals."""
    return max((one for one in stages if one.kind == "alone"), key=lambda one: float(one.per_case[metric].mean()))


def ablation(
    stages: Sequence[Stage], users: NDArray[np.integer], metric: str, *, against: str | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a stage, as the report has it.

    Args:
        users: int (C,), the user of each case: drawn together.
        metric: by which the best single family is told.
        against: the single family that the others are measured against; None: the best on these cases.
        seed: of the bootstrap; all rows and metrics are of the same draws.

    Returns:
        `stage, kind, metrics, difference`: by metric `value` and `ci95` of each; `difference` is paired by case, None
        for the family that it is measured against.
    """
    shown = tuple(dict.fromkeys((metric, *BESIDE)))
    named = {one.name: one for one in stages}
    single = best_alone(stages, metric) if against is None else named[against]
    values = {f"{one.name}\0{name}": one.per_case[name] for one in stages for name in shown}
    pairs = {f"{one.name}\0{name}": one.per_case[name] - single.per_case[name] for one in stages for name in shown}
    means, differences = (bootstrap_intervals(some, users, seed=seed) for some in (values, pairs))

    def told(some: dict[str, PerCase], intervals: dict[str, tuple[float, float]], stage: str) -> dict[str, Any]:
        keys = {name: f"{stage}\0{name}" for name in shown}
        return {
            name: {"value": float(some[key].mean()) if len(some[key]) else 0.0, "ci95": list(intervals[key])}
            for name, key in keys.items()
        }

    return [
        {
            "stage": one.name,
            "kind": one.kind,
            "metrics": told(values, means, one.name),
            "difference": None if one is single else told(pairs, differences, one.name),
        }
        for one in stages
    ]


def holds(rows: Sequence[dict[str, Any]], metric: str) -> bool:
    """Whether the chain is not below the single family by more than the 95 % interval of the difference."""
    chain = next(row for row in rows if row["kind"] == "chain")
    return chain["difference"] is None or float(chain["difference"][metric]["ci95"][1]) >= 0.0


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of text for a table: values and differences with their intervals."""
    shown = list(rows[0]["metrics"]) if rows else []
    columns = ["stage", *(title for name in shown for title in (name, "difference"))]
    return columns, [[row["stage"], *(text for name in shown for text in _texts(row, name))] for row in rows]


def _texts(row: dict[str, Any], name: str) -> tuple[str, str]:
    value, apart = row["metrics"][name], row["difference"]
    low, high = value["ci95"]
    found = f"{value['value']:.4f} [{low:.4f}, {high:.4f}]"
    if apart is None:
        return found, ""
    low, high = apart[name]["ci95"]
    return found, f"{apart[name]['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
