"""From the data's snapshot to live within the deadline: when the trials must end so that the rest fits in."""

from collections.abc import Iterable

from tune.pipeline.record import RunRecord

RECENT = 5  # runs whose times are looked at
SLACK = 1.2  # the longest of these, and a fifth of it
SLACK_S = 5.0
UNKNOWN = 0.25  # share of the deadline that is kept for what has never been measured
MOST = 0.75  # the trials have at least the rest


def after_trials_s(run: RunRecord) -> float | None:
    """Seconds from the end of the trials to the end of the promotion: bundle, gate, swap. None: not measured.

    What was tried again says nothing about how long it takes.
    """
    sweep, promote = run.step("sweep"), run.step("promote")
    if sweep is None or promote is None or len(sweep.attempts) != 1 or len(promote.attempts) != 1:
        return None
    ended = sweep.result.get("trials_ended")
    if promote.state != "done" or promote.ended is None or ended is None:
        return None
    return max(0.0, promote.ended - float(ended))


def reserve_s(past: Iterable[RunRecord], deadline_s: float) -> float:
    """Seconds to keep for what follows the trials, by the newest runs (newest first) that were measured."""
    measured = [seconds for run in past if (seconds := after_trials_s(run)) is not None][:RECENT]
    wanted = SLACK * max(measured) + SLACK_S if measured else UNKNOWN * deadline_s
    return min(wanted, MOST * deadline_s)
