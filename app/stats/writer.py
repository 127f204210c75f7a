"""The writer of a node's live figures: Kafka to RocksDB, until it is told to stop.

It has a consumer, offsets and a database of its own, so that the state's freshness does not wait for figures.
"""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.feed import StateFeed
from app.state.room import Room, Shortage, is_held_by_another, is_out_of_space
from app.stats.batch import TOPICS, Place, StatsBatch, to_batch
from app.stats.final import FigureKeeper
from app.stats.fold import StatsFold
from app.stats.store import RocksHeld, StatsPaths

_POLL_S = 0.1
_LOCK_S = 0.05
_ROOM_S = 0.25
_FEW = 0.1  # of a full batch
_LEAST_BETWEEN_LISTS_S = 1.0
_SHARE_OF_LISTS = 0.05  # of the time goes into the lists of trending items at most

log = logging.getLogger("manta.stats")


class StatsWriterLoop:
    """One thread's work. `run` blocks; everything else may be called from other threads."""

    def __init__(self, settings: Settings, home: Path) -> None:
        """Takes settings with the broker's address, and the MANTA_HOME."""
        self._settings, self._paths = settings, StatsPaths(home)
        self._keeper = FigureKeeper(settings, home)
        self._room = Room(home, settings.state.min_free_bytes)
        self._shortage: Shortage | None = None
        self._stop = threading.Event()
        self._lag: dict[str, int] = {}
        self._fold: StatsFold | None = None
        self._error: str | None = None
        self._changed, self._list_at = True, 0.0
        self._heard: dict[Place, float] = {}

    def stop(self) -> None:
        """Asks `run` to return; it does within a second."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """What it does: pid, lag, how far the figures are, what was late, and what is wrong if anything is."""
        fold, shortage = self._fold, self._shortage
        state = "waiting for the database" if fold is None else "no broker" if self._error else "reading"
        return {
            "state": "stopped" if shortage else state,
            "pid": os.getpid(),
            "error": str(shortage) if shortage else self._error,
            "lag": dict(self._lag),
            "offsets": fold.offsets() if fold else {},
            "watermark": fold.progress.watermark if fold else None,
            "in_lake": dict(fold.in_lake) if fold else {},
            "late": dict(fold.late) if fold else {},
            "totals": dict(fold.totals) if fold else {},
        }

    def run(self) -> None:
        """Applies what the topics bring until `stop`; where the disk has no room, once it has.

        Raises:
            StateUnavailable: the database cannot be opened; one that another writer holds is waited for.
        """
        self._paths.root.mkdir(parents=True, exist_ok=True)
        while not self._stop.is_set():
            if (shortage := self._room.shortage()) is None:
                self._shortage = None
                try:
                    self._serve()
                except Exception as error:  # rocksdict raises bare exceptions
                    if not is_out_of_space(error):
                        raise
                    self._room.ran_out()
                continue
            if self._shortage is None:
                log.error("%s", shortage)
            self._shortage = shortage
            self._stop.wait(_ROOM_S)

    def _serve(self) -> None:
        held = self._open()
        if held is None:
            return
        fold = StatsFold(held, self._settings)
        feed = StateFeed(self._settings.kafka, fold.offsets(), fold.topic_ids, topics=TOPICS, group="manta-stats")
        self._fold = fold
        try:
            while self._goes_on():
                self._read(feed, fold)
                self._look(feed, fold)
                self._keeper.look(fold, held)
                self._stop.wait(self._settings.stats.interval_s)
        finally:
            self._fold = None
            feed.close()
            self._keeper.close()
            held.close()

    def _open(self) -> RocksHeld | None:
        """Opens the database, waiting for whoever holds it; None when told to stop meanwhile."""
        while not self._stop.is_set():
            try:
                return RocksHeld(self._paths.database)
            except StateUnavailable as error:
                if not is_held_by_another(error):
                    raise
                log.info("waiting for the figures' database: %s", error)
            self._stop.wait(_LOCK_S)
        return None

    def _goes_on(self) -> bool:
        return not self._stop.is_set() and self._room.shortage() is None

    def _read(self, feed: StateFeed, fold: StatsFold) -> None:
        """Applies what there is, a batch at a time."""
        settings = self._settings
        while self._goes_on() and (read := feed.poll(_POLL_S, settings.stats.batch_events)):
            now = time.time_ns()
            batch = to_batch(read, settings.events, now_ms=now // 1_000_000, partitions=feed.behind())
            fold.apply(batch, now_us=now // 1000)
            self._changed = True
            heard = time.monotonic()
            self._heard |= dict.fromkeys(read.offsets, heard)
            if len(read.messages) < _FEW * settings.stats.batch_events:
                return  # a batch has its cost, whatever its size: more gathers until the next look

    def _look(self, feed: StateFeed, fold: StatsFold) -> None:
        """Lag, silent partitions, identities that can be forgotten, lists."""
        behind, now = feed.behind(), time.monotonic()
        self._lag, self._error = feed.lag(), feed.error if not feed.connected else None
        if not feed.connected:
            return
        for place in behind:
            self._heard.setdefault(place, now)
        idle_s = self._settings.stats.idle_s
        idle = [place for place, left in behind.items() if not left and now - self._heard[place] > idle_s]
        if fold.held_back_by(behind, idle):
            fold.apply(StatsBatch(partitions=behind, idle=idle), now_us=time.time_ns() // 1000)
        if (reached := feed.reached_ms(EVENTS)) is not None:
            fold.forget_identities(reached)
        if self._changed and now >= self._list_at:
            fold.list_trending()
            took = time.monotonic() - now
            self._changed, self._list_at = False, now + max(_LEAST_BETWEEN_LISTS_S, took / _SHARE_OF_LISTS)
