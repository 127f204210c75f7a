"""The weights of many events, in columns, and the dwell times that follow from what came next.

An event's next event is the next one of the same history, by (event time, partition, offset): about an item, of any
type but impression and merge, whether or not the type has a weight; a `remove` and what it takes out are among them.
It ends the dwell time of the one before where it comes within the session gap. So the weight of a history's newest
event is not settled, and a training case has the weights that were known just before its event (`Weighed.before`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.event_weights import FLOAT_MAX, EventWeight, EventWeights

NOT_IN_HISTORY = frozenset({"impression", "merge"})  # what was shown, and what is no event of an item, end nothing
NEVER = np.iinfo(np.int64).max  # time of an event that has not come

Codes = NDArray[np.integer]
Floats = NDArray[np.float32]
Values = NDArray[np.float32] | NDArray[np.float64]
Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights of n events.

    Attributes:
        final: float32 (n,), as known by now; 0: does not count.
        before: float32 (n,), as known just before the next event of the same history came.
    """

    final: Floats
    before: Floats

    def of(self, stands: NDArray[np.bool_]) -> "Weighed":
        """With weight 0 for events that stand in no history (bool (n,))."""
        final = np.where(stands, self.final, np.float32(0.0))
        return Weighed(final, final if self.before is self.final else np.where(stands, self.before, np.float32(0.0)))


def dwell_s(times: Times, next_times: Times, gap_s: float) -> Floats:
    """float32 (n,): seconds until the next event; NaN: none came, or not in the same session.

    Args:
        times: int64 (n,), milliseconds.
        next_times: int64 (n,), milliseconds, `NEVER` where none came.
        gap_s: the longest silence within a session, seconds.
    """
    seconds = np.full(len(times), np.nan, np.float32)
    came = np.flatnonzero(next_times != NEVER)
    found = (next_times[came] - times[came]) / 1000.0
    seconds[came] = np.where(found <= gap_s, found, np.nan)
    return seconds


def weights_of(
    weights: EventWeights, kinds: Sequence[str], codes: Codes, values: Values, dwell: Callable[[], Floats]
) -> Floats:
    """float32 (n,) >= 0: what each event weighs; `EventWeight.of` of one event.

    Args:
        weights: by type.
        kinds: the types that occur.
        codes: (n,), the place of each event's type in `kinds`.
        values: float (n,), NaN where an event had none.
        dwell: makes the dwell times that stand in for a missing value (`dwell_s`); called only if one is needed.
    """
    found = np.zeros(len(codes), np.float32)
    derived: Floats | None = None
    for code, kind in enumerate(kinds):
        one = weights.get(kind)
        if one is None:
            continue
        mine = np.flatnonzero(codes == code)
        if one.is_plain:
            found[mine] = one.weight
            continue
        own = values[mine]
        if one.of_dwell and np.isnan(own).any():
            derived = dwell() if derived is None else derived
            own = np.where(np.isnan(own), derived[mine], own)
        found[mine] = _of_values(one, own)
    return found


def _of_values(one: EventWeight, values: Values) -> Floats:
    kept = np.clip(values, -FLOAT_MAX, FLOAT_MAX).astype(np.float32).astype(np.float64)
    amount = np.maximum(kept if one.highest is None else np.minimum(kept, one.highest), 0.0)
    scale = np.log1p(amount) if one.log1p else amount if one.linear else np.ones(len(kept))
    scaled = np.minimum(one.weight * scale, FLOAT_MAX)
    if one.lowest is not None:
        scaled = np.where(kept < one.lowest, 0.0, scaled)
    return np.where(np.isnan(kept), one.unknown, scaled).astype(np.float32)


def next_times(owners: Codes, times: Times) -> Times:
    """int64 (n,): when the next event of each event's owner came, milliseconds; `NEVER`: none did.

    Args:
        owners: (n,), whose history each event belongs to.
        times: int64 (n,), milliseconds; the events stand in (event time, partition, offset) order.
    """
    order = np.argsort(owners, kind="stable")
    following = np.full(len(times), NEVER, np.int64)
    same = owners[order[1:]] == owners[order[:-1]]
    following[order[:-1][same]] = times[order[1:][same]]
    return following


def weigh(
    weights: EventWeights,
    kinds: Sequence[str],
    codes: Codes,
    values: Values,
    owners: Codes,
    times: Times,
    gap_s: float,
) -> Weighed:
    """The weights of events of many histories, in (event time, partition, offset) order; arguments as above."""
    unknown = np.full(len(codes), np.nan, np.float32)
    final = weights_of(weights, kinds, codes, values, lambda: dwell_s(times, next_times(owners, times), gap_s))
    needs = any(weights[kind].of_dwell for kind in kinds if kind in weights)
    return Weighed(final, weights_of(weights, kinds, codes, values, lambda: unknown) if needs else final)
