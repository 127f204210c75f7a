"""Ingest that goes on: a bounded commit every few seconds, until it is told to stop."""

import logging
from collections.abc import Callable
from pathlib import Path

from app.erasure.erased import NOBODY, Erased
from app.errors import BrokerUnavailable
from app.events.blocks import read_here
from app.events.ranges import TopicBounds
from app.events.topics import bounds
from app.lake.commit import Alone
from app.lake.ingest import TOPICS, IngestJob, IngestReport, ReadProgress
from app.lake.pace import Pace
from app.lake.tables import Lake
from app.lake.upkeep import Upkeep
from app.settings import Settings

log = logging.getLogger(__name__)
# Waits so many seconds; True: it is time to stop.
Wait = Callable[[float], bool]


def follow(
    settings: Settings,
    lake: Lake,
    report: IngestReport,
    wait: Wait,
    *,
    accept_gap: bool = False,
    progress: ReadProgress | None = None,
    erased: Callable[[], Erased] = lambda: NOBODY,
    identities: Path | None = None,
) -> None:
    """Commits what has come every `ingest.follow_s` seconds, at most `ingest.follow_rows` messages at a time.

    More than that waiting: the next commit follows at once. New partitions are read from their beginning. An outage
    of the broker is waited out. What is small is read in this process: no job is started for it. Every
    `ingest.follow_upkeep` rounds the lake is compacted and expired, beside the commits.

    Args:
        settings: with the broker's address.
        lake: where to; it has been brought up to the log's end.
        report: what is counted goes into it.
        wait: how it is told to stop; a commit under way is finished first.
        accept_gap, progress, erased, identities: as `IngestJob`.

    Raises:
        GapError, MantaError: as `IngestJob.take_all`.
    """
    ingest = settings.ingest
    rows = min(ingest.follow_rows, ingest.chunk_rows)
    bounded = settings.model_copy(update={"ingest": ingest.model_copy(update={"chunk_rows": rows})})
    job = IngestJob(
        bounded,
        lake,
        read_here,
        accept_gap=accept_gap,
        progress=progress,
        stop=lambda: wait(0.0),
        report=report,
        erased=erased,
        identities=identities,
    )
    seen: dict[str, TopicBounds] = {}
    upkeep, rounds = Upkeep(lake), 0
    pace = Pace(lake, ingest.follow_rewrite_bytes_s)
    try:
        while not wait(ingest.follow_s):
            try:
                before, seen = seen, _round(job, settings, seen, wait, upkeep.commits, pace)
                rounds += before != seen
                if ingest.follow_upkeep and rounds >= ingest.follow_upkeep:
                    rounds = 0
                    upkeep.begin()
            except BrokerUnavailable as error:
                log.warning("ingest: %s; trying again", error)
    finally:
        job.close()
        upkeep.close()


def _round(
    job: IngestJob, settings: Settings, seen: dict[str, TopicBounds], wait: Wait, commits: Alone, pace: Pace
) -> dict[str, TopicBounds]:
    """Takes the topics that have changed since `seen`, by one question to the broker; what it answered of them."""
    held = bounds(settings.kafka, TOPICS)
    for topic in TOPICS:
        if held[topic] == seen.get(topic) or wait(0.0):
            continue
        if not pace.due(topic):
            held[topic] = seen.get(topic, TopicBounds(topic, ""))
            continue
        with commits:
            job.take(topic)
        pace.wrote(topic)
    return held
