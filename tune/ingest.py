"""Kafka to lake by Ray tasks, once or for as long as it is asked to follow."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from app.erasure.erased import load_erased
from app.events.topics import ensure_topics
from app.lake.follow import Wait
from app.lake.follow import follow as follow_log
from app.lake.identities import IDENTITIES
from app.lake.ingest import IngestJob, IngestReport, ReadProgress
from app.lake.tables import open_lake
from app.settings import Settings
from tune.kafka_source import stream

__all__ = ["IngestReport", "run_ingest"]


def run_ingest(
    settings: Settings,
    home: Path,
    *,
    follow: Wait | None = None,
    accept_gap: bool = False,
    progress: ReadProgress | None = None,
) -> IngestReport:
    """Reads `items`, `users`, `events` and `impressions` from where the lake stands to the log's end at the start.

    Args:
        settings: all of them; Ray is initialised by the caller.
        home: where the lake is, unless the settings name another.
        follow: go on with a commit every few seconds until this says that it is time to stop (`app.lake.follow`).
        accept_gap: record offsets that can never be read in the lake, and go on behind them.
        progress: called as blocks arrive.

    Raises:
        GapError: offsets that should be read next are not in the log; nothing was committed of that topic.
        BrokerUnavailable: the broker cannot be reached.
        MantaError: `events` is compacted, or another ingest was first too many times.
    """
    started = time.monotonic()
    ensure_topics(settings.kafka)
    lake, report = open_lake(settings, home), IngestReport()
    stop: Callable[[], bool] = (lambda: follow(0.0)) if follow is not None else (lambda: False)
    erased = partial(load_erased, settings, home)
    job = IngestJob(
        settings,
        lake,
        stream,
        accept_gap=accept_gap,
        progress=progress,
        stop=stop,
        report=report,
        erased=erased,
        identities=home / IDENTITIES,
    )
    try:
        job.take_all()
    finally:
        job.close()
    if follow is not None:
        follow_log(
            settings,
            lake,
            report,
            follow,
            accept_gap=accept_gap,
            progress=progress,
            erased=erased,
            identities=home / IDENTITIES,
        )
    report.seconds = time.monotonic() - started
    return report
