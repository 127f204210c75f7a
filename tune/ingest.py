"""Kafka to lake as a Ray Data job, once or for as long as it is asked to follow."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from app.errors import BrokerUnavailable
from app.events.topics import ensure_topics
from app.lake.ingest import IngestJob, IngestReport, ReadProgress
from app.lake.tables import open_lake
from app.settings import Settings
from tune.kafka_source import stream

_FOLLOW_S = 2.0

log = logging.getLogger(__name__)
__all__ = ["IngestReport", "run_ingest"]


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
    job = IngestJob(settings, open_lake(settings, home), stream, accept_gap=accept_gap, progress=progress)
    try:
        job.take_all()
        while follow and not stop():
            time.sleep(_FOLLOW_S)
            _take_what_came(job)
    finally:
        job.close()
    job.report.seconds = time.monotonic() - started
    return job.report


def _take_what_came(job: IngestJob) -> None:
    """One round of `follow`; an outage of the broker is waited out."""
    try:
        job.take_all()
    except BrokerUnavailable as error:
        log.warning("ingest: %s; trying again", error)
