"""The writer of a node's state: Kafka to RocksDB to the shared position, until it is told to stop."""

import logging
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.checkpoint import make_checkpoint, restore_newest
from app.state.feed import StateFeed
from app.state.layout import StatePaths, choose_generation, current_generation, database, remove_older
from app.state.messages import to_batch
from app.state.position import Position
from app.state.store import StateStore, Totals

_POLL_S = 0.1
_LOOK_S = 0.5  # lag, and whether another database was chosen
_LOCK_S = 0.05
_REACH_S = 10.0
_OLD_S = 60.0  # by then every replica that answers has followed to the database in use

log = logging.getLogger("manta.state")


class StateWriterLoop:
    """One thread's work. `run` blocks; everything else may be called from other threads."""

    def __init__(self, settings: Settings, home: Path) -> None:
        """Takes settings with the broker's address, and the MANTA_HOME."""
        self._settings, self._paths = settings, StatePaths.of(home)
        self._stop = threading.Event()
        self._store: StateStore | None = None
        self._feed: StateFeed | None = None
        self._lag: dict[str, int] = {}
        self._looked = 0.0
        self._opened = 0.0
        self._started = time.time()

    def stop(self) -> None:
        """Asks `run` to return; it does within a tenth of a second."""
        self._stop.set()

    def run(self) -> None:
        """Applies what the topics bring until `stop`; on to another database whenever one is chosen.

        Raises:
            StateUnavailable: the database cannot be opened or written; one that another writer holds is waited for.
        """
        self._paths.root.mkdir(parents=True, exist_ok=True)
        position = Position.create(self._paths.position)
        try:
            while not self._stop.is_set():
                self._serve(position, current_generation(self._paths.databases))
        finally:
            position.close()

    def status(self) -> dict[str, Any]:
        """What it does: pid, offsets, lag, totals, and what is wrong if anything is."""
        store, feed = self._store, self._feed
        state = "waiting for the database" if store is None else "reading" if feed and feed.connected else "no broker"
        return {
            "state": state,
            "pid": os.getpid(),
            "started": self._started,
            "error": feed.error if feed else None,
            "lag": dict(self._lag),
            "offsets": store.offsets() if store else {},
            "watermark": store.published().watermark if store else 0,
            "generation": store.generation if store else None,
            **asdict(store.totals if store else Totals()),
        }

    def lag(self) -> dict[str, int]:
        """Topic → messages that are not applied yet, as of the last half second."""
        return dict(self._lag)

    # --- one database

    def _serve(self, position: Position, generation: int) -> None:
        store = self._open(generation)
        if store is None:
            return
        feed = StateFeed(self._settings.kafka, store.offsets(), store.topic_ids)
        self._store, self._feed, self._opened = store, feed, time.monotonic()
        position.beat(-1)
        try:
            self._reach(position, store, feed)
            position.publish(store.outrun(position.moves))
            while not self._stop.is_set():
                self._step(position, store, feed)
                if self._due() and self._look(position, store, feed) != generation:
                    return
        finally:
            self._store = self._feed = None
            feed.close()
            store.close()

    def _reach(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        """Brings another database to where the one before it was, unseen: nobody's last click is gone for a moment."""
        shown = position.offsets() if position.generation != store.generation else {}
        deadline = time.monotonic() + _REACH_S
        while not self._stop.is_set() and time.monotonic() < deadline:
            done = store.offsets()
            if all(done.get(topic, {}).get(p, 0) >= shown[topic][p] for topic in shown for p in shown[topic]):
                return
            if read := feed.poll(_POLL_S, self._settings.state.batch_events):
                store.apply(to_batch(read, self._settings.events))
            elif feed.connected and not any(feed.lag().values()):
                return  # the log itself is shorter than it was

    def _step(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        read = feed.poll(_POLL_S, self._settings.state.batch_events)
        if read:
            position.publish(store.apply(to_batch(read, self._settings.events)))
        else:
            position.beat()

    def _due(self) -> bool:
        return time.monotonic() - self._looked > _LOOK_S

    def _look(self, position: Position, store: StateStore, feed: StateFeed) -> int:
        """Shows the lag and tidies up; the generation that should be written."""
        self._looked = time.monotonic()
        if self._looked - self._opened > _OLD_S:
            remove_older(self._paths.databases)
        self._lag = feed.lag()
        position.beat(sum(self._lag.values()) if feed.connected else -1)
        if self._paths.checkpoint_wanted.exists():
            make_checkpoint(store, self._paths)
        if feed.connected and (reached := feed.reached_ms(EVENTS)) is not None:
            store.forget_identities(reached)
        store.drop_expired()
        return current_generation(self._paths.databases)

    def _open(self, generation: int) -> StateStore | None:
        """Opens the database, waiting for whoever holds it; None when told to stop meanwhile."""
        path = database(self._paths.databases, generation)
        if not (self._paths.databases / "current").exists():
            if self._settings.state.checkpoints and not path.exists():
                restore_newest(self._settings.state.checkpoints, path)
            choose_generation(self._paths.databases, generation)
        while not self._stop.is_set():
            try:
                return StateStore(path, self._settings, generation=generation)
            except StateUnavailable as error:
                if "lock" not in str(error).lower():
                    raise
                log.info("waiting for the state database: %s", error)
            self._stop.wait(_LOCK_S)
        return None
