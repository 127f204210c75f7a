"""Kafka to lake, exactly once: explicit offset ranges read as a Ray Data job, their ends committed with the rows."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from ray.exceptions import RayTaskError

from app.errors import BrokerUnavailable, MantaError
from app.events.dead_letters import DeadLetterBox
from app.events.decode import TABLES
from app.events.entities import ID_FIELDS, latest_versions
from app.events.identity import SeenEvents
from app.events.ranges import Gap, OffsetRange, chunks, plan
from app.events.schema import DLQ, EVENTS, IMPRESSIONS, ITEMS, USERS
from app.events.topics import bounds, ensure_topics
from app.faults import reach
from app.lake.commit import TopicOffsets, append, gap_record, replace
from app.lake.identities import accepted_events
from app.lake.snapshot import Snapshot, snapshot, snapshot_of
from app.lake.tables import Lake, open_lake
from app.settings import Settings
from tune.kafka_source import HASHES, hashes_of, stream

TOPICS = (ITEMS, USERS, EVENTS, IMPRESSIONS)
_LOST_COMMITS = 20
_READ_FAILURES = 3
_FOLLOW_S = 2.0

log = logging.getLogger(__name__)
# Called with (topic, messages read so far, messages to read).
ReadProgress = Callable[[str, int, int], None]


@dataclass
class IngestReport:
    """What one ingest did.

    Attributes:
        rows: table to rows appended (of `items` and `users`: versions applied).
        duplicates: events that counted already.
        dead_letters: reason to messages that went to `events.dlq`.
        offsets: topic to partition to the next offset, after the last commit.
        gaps: gaps accepted now.
        commits: snapshots made.
        lost_commits: times another ingest was first.
        seconds: wall clock.
    """

    rows: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    offsets: dict[str, dict[int, int]] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    commits: int = 0
    lost_commits: int = 0
    seconds: float = 0.0


def run_ingest(
    settings: Settings,
    home: Path,
    *,
    follow: bool = False,
    accept_gap: bool = False,
    progress: ReadProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Reads `items`, `users`, `events` and `impressions` from where the lake stands to the log's end at the start.

    Args:
        settings: all of them; Ray is initialised by the caller.
        home: where the lake is, unless the settings name another.
        follow: go on with a commit every few seconds until `stop` says so.
        accept_gap: record offsets that can never be read in the lake, and go on behind them.
        progress: called as blocks arrive.
        stop: asked between commits of `follow`.

    Raises:
        GapError: offsets that should be read next are not in the log; nothing was committed of that topic.
        BrokerUnavailable: the broker cannot be reached.
        MantaError: `events` is compacted, or another ingest was first too many times.
    """
    started = time.monotonic()
    ensure_topics(settings.kafka)
    lake = open_lake(settings, home)
    report = IngestReport()
    job = _Job(settings, lake, report, accept_gap, progress)
    try:
        while True:
            for topic in TOPICS:
                job.take(topic)
            if not follow or stop():
                break
            time.sleep(_FOLLOW_S)
    finally:
        job.letters.close()
    report.seconds = time.monotonic() - started
    return report


class _Job:
    """The driver: plans, gathers what the read tasks bring, commits chunk by chunk."""

    def __init__(
        self, settings: Settings, lake: Lake, report: IngestReport, accept_gap: bool, progress: ReadProgress | None
    ) -> None:
        self.letters = DeadLetterBox(settings.kafka)
        self._settings = settings
        self._lake = lake
        self._report = report
        self._accept_gap = accept_gap
        self._progress = progress
        self._seen: SeenEvents | None = None
        self._seen_from: int | None = None

    def take(self, topic: str) -> None:
        """Brings one topic's table up to the log's end as it is now."""
        failures = 0
        for _ in range(_LOST_COMMITS):
            try:
                self._take_once(topic)
                return
            except CommitFailedException:
                self._report.lost_commits += 1
                self._seen = None
                log.info("ingest %s: another commit was first; reading the offsets again", topic)
            except RayTaskError as error:
                failures += 1
                if failures == _READ_FAILURES:
                    raise _plain(error) from None
                self._seen = None  # planned anew: offsets that have gone meanwhile are named as a gap
        raise MantaError(f"ingest {topic}: found another commit first {_LOST_COMMITS} times, wanted to be alone")

    def _take_once(self, topic: str) -> None:
        # The table before the log's bounds: what another ingest commits in between makes ours fail, and is no gap
        now = snapshot(self._lake, topic)
        held = bounds(self._settings.kafka, [topic])[topic]
        stood = now.progress.topics.get(topic, TopicOffsets("", {}))
        ranges, gaps = plan(held, stood.topic_id, stood.next, accept_gap=self._accept_gap, compacted=topic in ID_FIELDS)
        target = TopicOffsets(held.topic_id, {cut.partition: cut.start for cut in ranges})
        todo = sum(len(cut) for cut in ranges)
        self._report.offsets[topic] = target.next
        reach("ingest:planned")
        if not todo and not gaps and target == stood:
            return
        done = 0
        plans = chunks(ranges, chunk_rows=self._settings.ingest.chunk_rows, task_rows=self._settings.ingest.task_rows)
        for chunk in plans:
            target = TopicOffsets(held.topic_id, target.next | {cut.partition: cut.end for cut in chunk})
            accepted, rejected, doubled = self._read(topic, chunk, now, (done, todo))
            now = self._commit(topic, now, target, accepted, rejected, gaps, doubled)
            gaps = []
            done += sum(len(cut) for cut in chunk)
        if gaps or not todo:
            self._commit(topic, now, target, TABLES[topic].empty_table(), None, gaps, 0)

    def _read(
        self, topic: str, chunk: list[OffsetRange], now: Snapshot, place: tuple[int, int]
    ) -> tuple[pa.Table, pa.Table | None, int]:
        """(rows to commit, messages refused, duplicates left out) of one chunk."""
        done, todo = place
        accepted, rejected, doubled = [TABLES[topic].empty_table()], [], 0
        for decoded in stream(self._settings, chunk):
            reach("ingest:read")
            fresh = decoded.events
            if topic == EVENTS:
                fresh = self._fresh(fresh, now)
                doubled += len(decoded.events) - len(fresh)
            accepted.append(fresh.cast(TABLES[topic]))
            if len(decoded.rejected):
                rejected.append(decoded.rejected)
            done += len(decoded.events) + len(decoded.rejected)
            if self._progress is not None:
                self._progress(topic, min(done, todo), todo)
        return pa.concat_tables(accepted), pa.concat_tables(rejected) if rejected else None, doubled

    def _fresh(self, events: pa.Table, now: Snapshot) -> pa.Table:
        """The events that do not count yet, without the hash columns."""
        bare = events.drop_columns(list(HASHES))
        if not len(events):
            return bare
        times = events["record_time"].cast(pa.int64()).to_numpy() // 1000
        hashes = hashes_of(events)
        seen = self._remember(now, int(times.min()))
        doubled = seen.duplicates(hashes, times)
        seen.add(hashes[~doubled], times[~doubled])
        return bare.filter(pa.array(~doubled)) if doubled.any() else bare

    def _remember(self, now: Snapshot, arrival_ms: int) -> SeenEvents:
        """The lake's events that one arriving at `arrival_ms` or later may double."""
        horizon_ms = int(self._settings.events.dedup_days * 86_400_000)
        least = arrival_ms - horizon_ms
        if self._seen is None:
            self._seen, self._seen_from = SeenEvents(horizon_ms), None
        if self._seen_from is None or least < self._seen_from:
            for hashes, times in accepted_events(now, least, self._seen_from):
                self._seen.add(hashes, times)
            self._seen_from = least
        return self._seen

    def _commit(
        self,
        topic: str,
        now: Snapshot,
        target: TopicOffsets,
        accepted: pa.Table,
        rejected: pa.Table | None,
        gaps: list[Gap],
        doubled: int,
    ) -> Snapshot:
        recorded = [gap_record(gap.topic, gap.partition, gap.start, gap.end, gap.reason) for gap in gaps]
        progress = now.progress.moved(topic, target, recorded)
        if rejected is not None:
            before = progress.topics.get(DLQ, TopicOffsets("", {}))
            progress = progress.moved(DLQ, TopicOffsets(*self.letters.put(rejected, before.topic_id, before.next)))
            reach("ingest:dead_letters")
        if topic in ID_FIELDS:
            if len(accepted):
                replace(now.source, latest_versions(topic, now.read(), accepted), progress)
            else:
                append(now.source, accepted, progress, max_open_partitions=1)
        else:
            append(now.source, accepted, progress, max_open_partitions=self._settings.lake.max_open_partitions)
        reach("ingest:committed")
        self._count(topic, target, accepted, rejected, recorded, doubled)
        # Not the table as it stands by now: only what this very commit left behind is read on from
        return snapshot_of(topic, now.source)

    def _count(
        self,
        topic: str,
        target: TopicOffsets,
        accepted: pa.Table,
        rejected: pa.Table | None,
        gaps: list[dict[str, Any]],
        doubled: int,
    ) -> None:
        report = self._report
        report.rows[topic] += len(accepted)
        report.duplicates += doubled
        report.commits += 1
        report.gaps += gaps
        report.offsets[topic] = dict(target.next)
        if rejected is not None:
            report.dead_letters.update(rejected["reason"].to_pylist())


def _plain(error: RayTaskError) -> Exception:
    """What a read task raised, as this process would have raised it."""
    cause = error.cause
    return (
        cause if isinstance(cause, MantaError) else BrokerUnavailable(f"ingest: a read task failed: {cause or error}")
    )
