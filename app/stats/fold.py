"""The live figures as a pure fold over accepted messages: the same whatever the batches, however often they come."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.errors import StateUnavailable
from app.events.ahead import ahead_of
from app.events.schema import EVENTS, IMPRESSION, IMPRESSIONS, MERGE
from app.events.watermarks import Times, Watermarks
from app.settings import Settings
from app.stats.batch import TOPICS, Place, StatsBatch, after
from app.stats.counters import DAY_US, HOUR_US, SIZES, add_figures, time_key
from app.stats.held import DAYS, HOURS, META, Draft, Held
from app.stats.identities import Identities
from app.stats.joins import Joins, kinds_of
from app.stats.trending import Trending

FORMAT = 1
STATE, LISTS = b"state", b"trending"  # keys of META
SECOND_US = 1_000_000
_DAY_MS = 86_400_000
LONG_AGO = -(1 << 63)
_AT_ONCE = 2000  # records and windows that one batch lets go of, or twice what it has brought


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the figures are, microseconds since 1970; None: no events yet.

    Attributes:
        watermark: what every partition has reached that is not silent.
        as_of: the highest event time of the events.
        complete: the same, once every partition has had a row or is known to be silent; what ends far enough below it
            does not change any more.
        newest: the highest event time of events and impressions: windows are kept back from there.
    """

    watermark: int | None = None
    as_of: int | None = None
    complete: int | None = None
    newest: int | None = None


class StatsFold:
    """Applies batches to what is held; for one thread."""

    def __init__(self, held: Held, settings: Settings) -> None:
        """Goes on from what is held.

        Raises:
            StateUnavailable: it is of another format.
        """
        stats = settings.stats
        self._held = held
        self._max_future_us = int(settings.events.max_future_s * SECOND_US)
        self._kept = {HOURS: stats.keep_hours * HOUR_US, DAYS: stats.keep_days * DAY_US}
        self._attribution_us = int(stats.attribution_s * SECOND_US)
        self._margin_us = int(stats.allowed_lateness_s * SECOND_US) + self._attribution_us
        self._to_lake = stats.in_lake
        self._identities = Identities(int(settings.events.dedup_days * _DAY_MS))
        self._trending = Trending(settings)
        self._kinds = kinds_of(IMPRESSION, stats.click_types, stats.conversion_types)
        posted = frozenset(name for name, surface in settings.surfaces.items() if surface.impressions == "posted")
        self._joins = Joins(posted, self._attribution_us, self._kinds)
        (saved,) = held.get(META, [STATE])
        self._load(orjson.loads(saved) if saved else {}, int(stats.allowed_lateness_s * SECOND_US))

    def _load(self, saved: dict[str, Any], lateness_us: int) -> None:
        if (found := saved.get("format", FORMAT)) != FORMAT:
            raise StateUnavailable(f"live figures: found format {found}, wanted {FORMAT}")

        def by_partition(name: str, topic: str) -> dict[int, int]:
            return {int(partition): number for partition, number in saved.get(name, {}).get(topic, {}).items()}

        self._offsets = {topic: by_partition("offsets", topic) for topic in TOPICS}
        self._watermarks = {
            topic: Watermarks(lateness_us, streams=(), heights=by_partition("heights", topic)) for topic in TOPICS
        }
        self.progress = Progress(**saved.get("progress", {}))
        self.topic_ids: dict[str, str] = saved.get("topic_ids", {})
        self.in_lake: dict[str, int] = saved.get("in_lake", {})  # family → up to when its windows are in the lake
        self.late: Counter[str] = Counter(saved.get("late", {}))
        self.totals: Counter[str] = Counter(saved.get("totals", {}))

    def offsets(self) -> dict[str, dict[int, int]]:
        """topic → partition → next offset to read."""
        return {topic: dict(partitions) for topic, partitions in self._offsets.items()}

    def apply(self, batch: StatsBatch, *, now_us: int) -> None:
        """Applies a batch with its offsets in one write.

        Args:
            batch: messages; those below the stored offsets have been applied already and are passed over.
            now_us: no time further ahead of this than `events.max_future_s` moves a watermark; what clocks cannot
                explain (`app.events.ahead`) is left out.
        """
        draft = Draft(self._held)
        impressions = self._not_ahead(after(batch.impressions, self._offsets[IMPRESSIONS]), "time", now_us)
        events = self._not_ahead(after(batch.events, self._offsets[EVENTS]), "event_time", now_us)
        events = self._accepted(events, draft)
        late_answers = self._advance(IMPRESSIONS, impressions, "time", now_us)
        late_events = self._advance(EVENTS, events, "event_time", now_us)
        self._join(impressions.filter(pa.array(~late_answers)), events.filter(pa.array(~late_events)), draft)
        self._move(batch.partitions, frozenset(batch.idle))
        self._count_items(events, late_events, draft)
        self._let_go(draft, max(_AT_ONCE, 2 * (len(impressions) + len(events))))
        for topic, partition in batch.offsets:
            self._offsets[topic][partition] = batch.offsets[topic, partition]
        self.totals.update({"events": len(events), "impressions": len(impressions), **batch.skipped, **batch.jumps})
        draft.put(META, STATE, self._saved())
        draft.write()

    def held_back_by(self, partitions: Iterable[Place], idle: Collection[Place]) -> bool:
        """Whether more would be complete if these of the partitions held nothing back."""
        complete = self.progress.complete
        reached = self._reached(partitions, idle) if self._high() else None
        return reached is not None and (complete is None or reached > complete)

    def final_beyond_lake(self) -> dict[str, int]:
        """Family → the end of its newest final window, where that is further than the lake; empty: nothing to write."""
        if not self._to_lake or (final := self._final()) is None:
            return {}
        ends = {family: final - final % size for family, size in SIZES.items()}
        return {family: end for family, end in ends.items() if end > self.in_lake.get(family, LONG_AGO)}

    def note_in_lake(self, upto: Mapping[str, int]) -> None:
        """Family → up to when its windows are in the lake by now: older ones need not be kept for that any more."""
        self.in_lake |= upto
        self._held.write({META: {STATE: self._saved()}})

    def list_trending(self) -> None:
        """Makes the lists of trending items anew from what is held."""
        now = self._watermarks[EVENTS].high
        found = {"as_of": now, "surfaces": self._trending.lists(self._held, now)}
        self._held.write({META: {LISTS: orjson.dumps(found)}})

    def forget_identities(self, reached_ms: int) -> int:
        """As `Identities.forget`."""
        return self._identities.forget(self._held, reached_ms)

    # --- the parts of a batch

    def _accepted(self, events: pa.Table, draft: Draft) -> pa.Table:
        """Without merges, which say nothing of items, and without repeats."""
        events = events.filter(pc.not_equal(events["event_type"], MERGE)) if len(events) else events
        if not len(events):
            return events
        repeated = self._identities.repeats(events, draft)
        self.totals["duplicates"] += int(repeated.sum())
        return events.filter(pa.array(~repeated))

    def _not_ahead(self, rows: pa.Table, time: str, now_us: int) -> pa.Table:
        """Without rows of a wrong clock: one of them would end every window that is still open."""
        wrong = ahead_of(now_us, rows[time].cast(pa.int64()).to_numpy())
        if not wrong.any():
            return rows
        self.late["ahead"] += int(wrong.sum())
        return rows.filter(pa.array(~wrong))

    def _advance(self, topic: str, rows: pa.Table, time: str, now_us: int) -> NDArray[np.bool_]:
        """bool (n,): which rows are late; moves the topic's watermarks."""
        times: Times = rows[time].cast(pa.int64()).to_numpy()
        partitions = rows["partition"].to_numpy().astype(np.int32)
        late = self._watermarks[topic].advance(np.minimum(times, now_us + self._max_future_us), partitions)
        self.late[topic] += int(late.sum())
        return late

    def _move(self, partitions: Iterable[Place], idle: Collection[Place]) -> None:
        """Says how far everything is."""
        heights = [height for mark in self._watermarks.values() for height in mark.heights.values()]
        if not heights:
            return
        complete = self._reached(partitions, idle)
        if complete is None or (self.progress.complete or complete) > complete:
            complete = self.progress.complete
        watermark = min(heights) if complete is None else complete
        self.progress = Progress(watermark, self._watermarks[EVENTS].high, complete, self._high())

    def _reached(self, partitions: Iterable[Place], idle: Collection[Place]) -> int | None:
        """What every partition has reached that is not idle; None: one of them has had no row yet."""
        heights = [self._watermarks[topic].heights.get(p) for topic, p in partitions if (topic, p) not in idle]
        found = [height for height in heights if height is not None]
        if len(found) < len(heights):
            return None
        return min(found) if found else self._high()

    def _join(self, impressions: pa.Table, events: pa.Table, draft: Draft) -> None:
        """Adds rows that are not late to the figures, but for those that lie in windows that are final."""
        impressions, events = self._open(IMPRESSIONS, impressions, "time"), self._open(EVENTS, events, "event_time")
        reacting = pc.is_in(events["event_type"], value_set=pa.array(sorted(self._kinds), pa.string()))
        events = events.filter(reacting)
        about = pc.and_(pc.is_valid(events["request_id"]), pc.is_valid(events["item_id"]))
        about_answers = events.filter(about)
        self.late["unattributed"] += len(events) - len(about_answers)
        changed = self._joins.apply(impressions, about_answers, draft)
        oldest = {family: self._oldest(family) for family in SIZES}
        if (final := self._final()) is not None:  # a reaction that still counts may be to what was shown in one of them
            oldest = {family: max(start, final - SIZES[family] + 1) for family, start in oldest.items()}
        add_figures(changed, draft, oldest)

    def _open(self, topic: str, rows: pa.Table, time: str) -> pa.Table:
        """Without rows from before everything that is complete: a partition that was silent brings them."""
        if (final := self._final()) is None:
            return rows
        closed = rows[time].cast(pa.int64()).to_numpy() < final
        self.late[topic] += int(closed.sum())
        return rows.filter(pa.array(~closed)) if closed.any() else rows

    def _count_items(self, events: pa.Table, late: NDArray[np.bool_], draft: Draft) -> None:
        counted = self._trending.counts(events.append_column("late", pa.array(late)))
        if len(counted):
            self._trending.add(counted, counted["late"].to_numpy(), self._watermarks[EVENTS].high or 0, draft)

    def _let_go(self, draft: Draft, at_most: int) -> None:
        """Deletes what is too old: windows, and records that nothing can be added to."""
        if (final := self._final()) is not None:
            self._joins.forget(draft, final, at_most, self.late)
        for family in SIZES:
            below = time_key(self._oldest(family))
            for (key, _), _place in zip(draft.scan(family, b"", below), range(at_most), strict=False):
                draft.put(family, key, None)
        if (as_of := self._watermarks[EVENTS].high) is not None:
            self._trending.expire(as_of, at_most, draft)

    def _final(self) -> int | None:
        """Windows that end here or before do not change any more; None: it is not known yet."""
        return None if self.progress.complete is None else self.progress.complete - self._margin_us

    def _oldest(self, family: str) -> int:
        """Start of the oldest window that is kept: as long as the settings say, and until the lake has it."""
        high, size = self._high(), SIZES[family]
        oldest = high - high % size - self._kept[family]
        return min(oldest, self.in_lake.get(family, LONG_AGO)) if self._to_lake else oldest

    def _high(self) -> int:
        """The highest time of all; 0 without any."""
        return max((mark.high for mark in self._watermarks.values() if mark.high is not None), default=0)

    def _saved(self) -> bytes:
        def text_keys(found: Mapping[int, int]) -> dict[str, int]:
            return {str(partition): number for partition, number in found.items()}

        saved = {
            "format": FORMAT,
            "offsets": {topic: text_keys(partitions) for topic, partitions in self._offsets.items()},
            "heights": {topic: text_keys(mark.heights) for topic, mark in self._watermarks.items()},
            "progress": asdict(self.progress),
            "topic_ids": self.topic_ids,
            "in_lake": self.in_lake,
            "late": dict(self.late),
            "totals": dict(self.totals),
        }
        return orjson.dumps(saved)
