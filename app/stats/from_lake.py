"""Figures as a batch job over the lake: any size of window, any attribution window, as far back as the lake goes.

What is late, what a reaction belongs to and what a window is are the same lines as in the live figures
(`events.watermarks`, `joins`, `events.windows`); only where they are kept differs.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.events.ahead import plausible
from app.events.schema import EVENTS, IMPORT_PARTITION, IMPRESSION, IMPRESSIONS, MERGE
from app.events.watermarks import Times, Watermarks
from app.events.window_merge import key_codes
from app.events.windows import Hopping, WindowFold
from app.lake.commit import ARRIVAL_TIME
from app.lake.snapshot import snapshot
from app.lake.tables import Lake
from app.settings import Settings
from app.stats.counters import KEYS, SUMS, TIME, figure_rows
from app.stats.fold import SECOND_US
from app.stats.held import Draft, MemoryHeld
from app.stats.joins import Joins, kinds_of

REQUESTS_AT_ONCE = 50_000
_ANY_LATENESS = 1 << 62  # what is late was said before: by partition and offset
_PLACE = ("partition", "offset")
_ANSWER = ("request_id", "surface", "variant", "bundle", "time", "items", *_PLACE)
_REACTION = ("request_id", "item_id", "event_type", "event_time", "surface", "variant", "bundle", *_PLACE)


def figures_of_lake(
    lake: Lake, settings: Settings, windows: Hopping, *, start_us: int | None = None, end_us: int | None = None
) -> pa.Table:
    """Windows that begin in [start, end): `counters.KEYS`, `start`, `end`, `count`, `counters.SUMS`.

    Args:
        lake: its events and impressions are read as they stand.
        settings: `stats` says what is a click, how late is late, and how far a click may lie from its impression.
        windows: tumbling or hopping.
        start_us, end_us: microseconds since 1970; None: without bound.

    Raises:
        MantaError: as `snapshot`.
    """
    # Rows from before could make none of these late: what is late is below a higher time on its partition
    reach = int((settings.stats.attribution_s + settings.stats.allowed_lateness_s) * SECOND_US) + windows.size_us
    first = None if start_us is None else start_us - reach
    impressions = snapshot(lake, IMPRESSIONS).read((*_ANSWER, ARRIVAL_TIME), start_us=first)
    events = snapshot(lake, EVENTS).read((*_REACTION, ARRIVAL_TIME), start_us=first)
    impressions = plausible(impressions, "time", ARRIVAL_TIME)
    events = plausible(events, "event_time", ARRIVAL_TIME)
    found = fold_tables(impressions, events, settings, windows)
    starts = pc.cast(found["start"], pa.int64())
    keep = pa.array(np.ones(len(found), np.bool_))
    if start_us is not None:
        keep = pc.and_(keep, pc.greater_equal(starts, start_us))
    if end_us is not None:
        keep = pc.and_(keep, pc.less(starts, end_us))
    return found.filter(keep).sort_by([("start", "ascending"), *((name, "ascending") for name in KEYS)])


def fold_tables(impressions: pa.Table, events: pa.Table, settings: Settings, windows: Hopping) -> pa.Table:
    """As `figures_of_lake`, of rows that count once (`_ANSWER`, `_REACTION`)."""
    stats = settings.stats
    lateness = int(stats.allowed_lateness_s * SECOND_US)
    kinds = kinds_of(IMPRESSION, stats.click_types, stats.conversion_types)
    posted = frozenset(name for name, surface in settings.surfaces.items() if surface.impressions == "posted")
    joins = Joins(posted, int(stats.attribution_s * SECOND_US), kinds)
    events = events.filter(pc.not_equal(events["event_type"], MERGE))
    answers, reactions = _timely(impressions, "time", lateness), _timely(events, "event_time", lateness)
    about = pc.and_(pc.is_valid(reactions["request_id"]), pc.is_valid(reactions["item_id"]))
    reacting = pc.is_in(reactions["event_type"], value_set=pa.array(sorted(kinds), pa.string()))
    reactions = reactions.filter(pc.and_(about, reacting))
    fold = WindowFold(windows, KEYS, SUMS, time=TIME, allowed_lateness_us=_ANY_LATENESS)
    fold.add(figure_rows({}))
    for some, to_them in _by_request(answers, reactions):
        fold.add(figure_rows(joins.apply(some, to_them, Draft(MemoryHeld()))))
    return fold.finish()


def _timely(rows: pa.Table, time: str, lateness_us: int) -> pa.Table:
    """The rows that were not late on their partition; imported ones came in no order of time, and are never late."""
    rows = rows.sort_by([(name, "ascending") for name in _PLACE])
    imported = int(pc.sum(pc.equal(rows["partition"], IMPORT_PARTITION)).as_py() or 0)  # the lowest: they stand first
    read = rows.slice(imported)
    times: Times = read[time].cast(pa.int64()).to_numpy()
    late = Watermarks(lateness_us, streams=()).advance(times, read["partition"].to_numpy().astype(np.int32))
    return pa.concat_tables([rows.slice(0, imported), read.filter(pa.array(~late))])


def _by_request(answers: pa.Table, reactions: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Both cut into parts, so that all rows of a request id are in the same one."""
    both = pa.concat_tables([answers.select(["request_id"]), reactions.select(["request_id"])])
    part = key_codes(both, ["request_id"]) // REQUESTS_AT_ONCE
    of_answers, of_reactions = part[: len(answers)], part[len(answers) :]
    for number in range(int(part.max()) + 1 if len(part) else 0):
        yield (
            answers.take(pa.array(np.flatnonzero(of_answers == number))),
            reactions.take(pa.array(np.flatnonzero(of_reactions == number))),
        )
