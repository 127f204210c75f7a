"""Exactly once from Kafka into the lake: ranges planned from its own offsets, their ends committed with the rows.

How the ranges are read is the caller's: by Ray tasks (`tune/ingest.py`) or in this process (`blocks.read_here`).
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException

from app.erasure.erased import NOBODY, Erased
from app.errors import MantaError
from app.events.blocks import Reader, ReadFailed
from app.events.decode import TABLES
from app.events.entities import ID_FIELDS, latest_versions
from app.events.identity import Hashes
from app.events.letter_box import DeadLetterBox
from app.events.letter_owners import of_others
from app.events.ranges import OffsetRange, chunks
from app.events.schema import DLQ, EVENTS, IMPRESSIONS, ITEMS, USERS
from app.events.topics import bounds
from app.faults import reach
from app.heap import give_back
from app.lake.commit import LOST_COMMITS, TopicOffsets, append, replace
from app.lake.gaps import plan_from
from app.lake.identities import KnownEvents
from app.lake.snapshot import Snapshot, snapshot, snapshot_of
from app.lake.tables import Lake
from app.settings import Settings

TOPICS = (ITEMS, USERS, EVENTS, IMPRESSIONS)
_READ_FAILURES = 3

log = logging.getLogger(__name__)
# Called with (topic, messages read so far, messages to read).
ReadProgress = Callable[[str, int, int], None]


@dataclass
class IngestReport:
    """What one ingest did.

    Attributes:
        rows: table to rows appended (of `items` and `users`: versions applied).
        duplicates: events that counted already.
        erased: messages about users who were erased, from before that.
        dead_letters: reason to messages that went to `events.dlq`.
        offsets: topic to partition to the next offset, after the last commit.
        gaps: gaps accepted now.
        commits: snapshots made.
        lost_commits: times another ingest was first.
        seconds: wall clock.
    """

    rows: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    erased: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)
    offsets: dict[str, dict[int, int]] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    commits: int = 0
    lost_commits: int = 0
    seconds: float = 0.0


class IngestJob:
    """Plans, gathers what the reader brings, commits chunk by chunk.

    Args:
        settings: with the broker's address; the topics exist.
        lake: where to.
        read: how ranges are read.
        accept_gap: record offsets that can never be read, and go on behind them.
        progress: called as blocks arrive.
        stop: asked behind each commit: what is left is for the next run.
        report: one to go on with.
        erased: who is erased by now; asked behind each look at the table: an erasure that comes later makes the commit
            fail.
        identities: folder of the events' identities, which spares the next job to read them from the lake.
    """

    def __init__(
        self,
        settings: Settings,
        lake: Lake,
        read: Reader,
        *,
        accept_gap: bool = False,
        progress: ReadProgress | None = None,
        stop: Callable[[], bool] = lambda: False,
        report: IngestReport | None = None,
        erased: Callable[[], Erased] = lambda: NOBODY,
        identities: Path | None = None,
    ) -> None:
        self.report = report or IngestReport()
        self._letters = DeadLetterBox(settings.kafka)
        self._read_chunk = read
        self._settings = settings
        self._lake = lake
        self._accept_gap = accept_gap
        self._progress = progress
        self._stop = stop
        self._load_erased = erased
        self._erased = NOBODY.on("", "")
        self._known = KnownEvents(int(settings.events.dedup_days * 86_400_000), identities)

    def close(self) -> None:
        """Ends the producer of dead letters; another may have the identities."""
        self._letters.close()
        self._known.close()

    def take_all(self) -> None:
        """Brings every table up to its log's end as it is now.

        Raises:
            GapError: offsets that should be read next are not in the log; nothing was committed of that topic.
            BrokerUnavailable: the broker cannot be reached.
            MantaError: another ingest was first too many times.
        """
        for topic in TOPICS:
            if not self._stop():
                self.take(topic)

    def take(self, topic: str) -> None:
        """Brings one topic's table up to the log's end as it is now; raises as `take_all`."""
        failures = 0
        for _ in range(LOST_COMMITS):
            try:
                self._take_once(topic)
                return
            except (CommitFailedException, FileNotFoundError):  # of a snapshot that an erasure took away meanwhile
                self.report.lost_commits += 1
                log.info("ingest %s: another commit was first; reading the offsets again", topic)
            except ReadFailed as error:
                failures += 1
                if failures == _READ_FAILURES:  # planned anew until then: offsets that have gone are named as a gap
                    raise error.cause from None
        raise MantaError(f"ingest {topic}: found another commit first {LOST_COMMITS} times, wanted to be alone")

    def _take_once(self, topic: str) -> None:
        # The table before the log's bounds: what another ingest commits in between makes ours fail, and is no gap
        now = snapshot(self._lake, topic)
        held = bounds(self._settings.kafka, [topic])[topic]
        if not held.exists:
            return  # the offsets stay: a topic that is made anew under them is named
        self._erased = self._load_erased().on(topic, held.topic_id)
        stood = now.progress.topics.get(topic, TopicOffsets("", {}))
        ranges, gaps = plan_from(now, held, self._settings.kafka, accept_gap=self._accept_gap)
        kept = stood.next if held.topic_id == stood.topic_id else {}  # also of a partition that is not named just now
        target = TopicOffsets(held.topic_id, kept | {cut.partition: cut.start for cut in ranges})
        todo = sum(len(cut) for cut in ranges)
        self.report.offsets[topic] = target.next
        reach("ingest:planned")
        if not todo and not gaps and target == stood:
            return
        done = 0
        plans = chunks(ranges, chunk_rows=self._settings.ingest.chunk_rows, task_rows=self._settings.ingest.task_rows)
        for chunk in plans:
            target = TopicOffsets(held.topic_id, target.next | {cut.partition: cut.end for cut in chunk})
            try:
                self._begin_letters(now, held.topic_id)
                now = self._commit(topic, now, target, *self._read(topic, chunk, now, (done, todo)), gaps)
            except BaseException:
                self._known.forget()  # what was taken and not committed comes again, and counts
                raise
            gaps = []
            done += sum(len(cut) for cut in chunk)
            if self._stop():
                return
        if gaps or not todo:
            self._begin_letters(now, held.topic_id)
            self._commit(topic, now, target, TABLES[topic].empty_table(), 0, gaps)

    def _begin_letters(self, now: Snapshot, source_id: str) -> None:
        before = now.progress.topics.get(DLQ, TopicOffsets("", {}))
        self._letters.begin(before.topic_id, before.next, source_id)

    def _read(
        self, topic: str, chunk: list[OffsetRange], now: Snapshot, place: tuple[int, int]
    ) -> tuple[pa.Table, int]:
        """(rows to commit, duplicates left out) of one chunk; what is refused goes to the dead letters as it comes."""
        done, todo = place
        accepted, doubled = [TABLES[topic].empty_table()], 0
        for block in self._read_chunk(self._settings, chunk):
            reach("ingest:read")
            fresh, refused = block.decoded.events, block.decoded.rejected
            done += len(fresh) + len(refused)
            fresh, hashes = self._of_others(fresh, block.hashes)
            if hashes is not None:
                kept = self._known.fresh(fresh, hashes, now)
                doubled += len(fresh) - len(kept)
                fresh = kept
            accepted.append(fresh)
            self._letters.add(of_others(refused, self._erased))
            if self._progress is not None:
                self._progress(topic, min(done, todo), todo)
        return pa.concat_tables(accepted), doubled

    def _of_others(self, fresh: pa.Table, hashes: Hashes | None) -> tuple[pa.Table, Hashes | None]:
        """The rows, with their identities, that are not about somebody who was erased since."""
        if "user_id" not in fresh.column_names:
            return fresh, hashes
        gone = self._erased.rows(fresh)
        if not gone.any():
            return fresh, hashes
        self.report.erased += int(gone.sum())
        return fresh.filter(pa.array(~gone)), None if hashes is None else hashes[~gone]

    def _commit(
        self,
        topic: str,
        now: Snapshot,
        target: TopicOffsets,
        accepted: pa.Table,
        doubled: int,
        gaps: list[dict[str, Any]],
    ) -> Snapshot:
        progress = now.progress.moved(topic, target, gaps)
        if (began := self._letters.finish()) is not None:
            progress = progress.moved(DLQ, TopicOffsets(*began))
        if topic in ID_FIELDS:
            if len(accepted):
                replace(now.source, latest_versions(topic, now.read(), accepted), progress)
            else:
                append(now.source, accepted, progress, max_open_partitions=1)
        else:
            append(now.source, accepted, progress, max_open_partitions=self._settings.lake.max_open_partitions)
        reach("ingest:committed")
        give_back()
        self._count(topic, target, accepted, gaps, doubled)
        # Not the table as it stands by now: only what this very commit left behind is read on from
        after = snapshot_of(topic, now.source)
        if topic == EVENTS:
            self._known.committed(now, after)
        return after

    def _count(
        self,
        topic: str,
        target: TopicOffsets,
        accepted: pa.Table,
        gaps: list[dict[str, Any]],
        doubled: int,
    ) -> None:
        report = self.report
        report.rows[topic] += len(accepted)
        report.duplicates += doubled
        report.commits += 1
        report.gaps += gaps
        report.offsets[topic] = dict(target.next)
        report.dead_letters.update(self._letters.reasons)
