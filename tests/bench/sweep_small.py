"""The same as `sweep` with 8 trials and 100 segments, to try it: starting the workers weighs far more there."""

from typing import Any

from tests.bench import sweep


def run() -> dict[str, Any]:
    """`sweep.run`'s figures."""
    return sweep.run(trials=8, segments=100)
