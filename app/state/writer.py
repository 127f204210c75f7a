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
from app.state.batch import Batch
from app.state.checkpoint import make_checkpoint, restore_newest
from app.state.erasures import NodeErasures
from app.state.feed import Read, StateFeed
from app.state.layout import StatePaths, choose_generation, current_generation, database, remove_older
from app.state.leftovers import remove_leftovers
from app.state.messages import to_batch
from app.state.position import Position
from app.state.room import Room, Shortage, free_bytes, is_held_by_another, is_out_of_space, used_bytes
from app.state.store import StateStore, Totals

_POLL_S = 0.1
_LOOK_S = 0.5  # lag, and whether another database was chosen
_LOCK_S = 0.05
_ROOM_S = 0.25
_TIDY_S = 10.0
_OLD_S = 60.0  # by then every replica that answers has followed to the database in use

log = logging.getLogger("manta.state")


class StateWriterLoop:
    """One thread's work. `run` blocks; everything else may be called from other threads.

    Attributes:
        erasures: what is asked of it on behalf of those who are erased.
    """

    def __init__(self, settings: Settings, home: Path) -> None:
        """Takes settings with the broker's address, and the MANTA_HOME."""
        self.erasures = NodeErasures(settings, home)
        self._settings, self._home, self._paths = settings, home, StatePaths.of(home)
        self._room = Room(home, settings.state.min_free_bytes)
        self._shortage: Shortage | None = None
        self._stop = threading.Event()
        self._store: StateStore | None = None
        self._feed: StateFeed | None = None
        self._lag: dict[str, int] = {}
        self._looked = self._tidied = 0.0
        self._opened = 0.0
        self._started = time.time()

    def stop(self) -> None:
        """Asks `run` to return; it does within a tenth of a second."""
        self._stop.set()

    def run(self) -> None:
        """Applies what the topics bring until `stop`; on to another database whenever one is chosen.

        Where the disk has no room nothing is applied until it has: the database is closed, and opened again.

        Raises:
            StateUnavailable: the database cannot be opened or written; one that another writer holds is waited for.
        """
        self._paths.root.mkdir(parents=True, exist_ok=True)
        position = Position.create(self._paths.position)
        try:
            while not self._stop.is_set():
                self._wait_for_room(position)
                try:
                    self._serve(position, current_generation(self._paths.databases))
                except Exception as error:  # rocksdict raises bare exceptions
                    if not is_out_of_space(error):
                        raise
                    log.error("nothing is applied, the disk is full: %s", error)
                    self._room.ran_out()
        finally:
            position.close()

    def status(self) -> dict[str, Any]:
        """What it does: pid, offsets, lag, totals, and what is wrong if anything is."""
        store, feed = self._store, self._feed
        state = "waiting for the database" if store is None else "reading" if feed and feed.connected else "no broker"
        shortage = self._shortage
        return {
            "state": "stopped" if shortage else state,
            "pid": os.getpid(),
            "started": self._started,
            "error": str(shortage) if shortage else feed.error if feed else None,
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

    def _wait_for_room(self, position: Position) -> None:
        while (shortage := self._room.shortage()) is not None and not self._stop.is_set():
            if self._shortage is None:
                log.error("%s", shortage)
                self._tidy(position)  # it may be all that was needed
            self._shortage = shortage
            position.show_shortage(shortage)
            position.beat(-1)
            self._stop.wait(_ROOM_S)
        if shortage is None and self._shortage is not None:
            log.warning("the disk has room again, the state is written on")
            self._shortage = None
        position.show_shortage(shortage)

    def _serve(self, position: Position, generation: int) -> None:
        store = None if self._stop.is_set() else self._open(generation)
        if store is None:
            return
        try:
            self.erasures.begin(store, position, self._stop)
            self._follow(position, store, generation)
        finally:
            self._store = None
            store.close()

    def _follow(self, position: Position, store: StateStore, generation: int) -> None:
        feed = StateFeed(self._settings.kafka, store.offsets(), store.topic_ids)
        self._store, self._feed, self._opened = store, feed, time.monotonic()
        position.beat(-1)
        try:
            self._reach(position, store, feed)
            position.publish(store.outrun(position.moves))
            while not self._stop.is_set() and self._room.shortage() is None:
                self._step(position, store, feed)
                if self._due() and self._look(position, store, feed) != generation:
                    return
        finally:
            self._feed = None
            feed.close()

    def _reach(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        """Brings another database to where the one before it was, unseen: nobody's last click is gone for a moment."""
        shown = position.offsets() if position.generation != store.generation else {}
        while not self._stop.is_set() and self._room.shortage() is None:
            done = store.offsets()
            if all(done.get(topic, {}).get(p, 0) >= shown[topic][p] for topic in shown for p in shown[topic]):
                return
            if read := feed.poll(_POLL_S, self._settings.state.batch_events):
                store.apply(self._batch(read, feed))
            elif feed.connected and not any(feed.lag().values()):
                return  # the log itself is shorter than it was
            position.beat(-1)

    def _step(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        read = feed.poll(_POLL_S, self._settings.state.batch_events)
        if read:
            position.publish(store.apply(self._batch(read, feed)))
        else:
            position.beat()
        self.erasures.serve(store, position)

    def _batch(self, read: Read, feed: StateFeed) -> Batch:
        return to_batch(read, self._settings.events, self.erasures.erased, feed.topic_ids)

    def _due(self) -> bool:
        return time.monotonic() - self._looked > _LOOK_S

    def _look(self, position: Position, store: StateStore, feed: StateFeed) -> int:
        """Shows the lag and tidies up; the generation that should be written."""
        self._looked = time.monotonic()
        if self._looked - self._opened > _OLD_S:
            remove_older(self._paths.databases)
        self._lag = feed.lag()
        position.beat(sum(self._lag.values()) if feed.connected else -1)
        position.show_jumped(sum(store.totals.jumps.values()))
        if self._paths.checkpoint_wanted.exists():
            make_checkpoint(store, self._paths)
        if feed.connected and (reached := feed.reached_ms(EVENTS)) is not None:
            store.forget_identities(reached)
        store.drop_expired()
        if self._looked - self._tidied > _TIDY_S:
            self._tidied = self._looked
            self._tidy(position)
        return current_generation(self._paths.databases)

    def _tidy(self, position: Position) -> None:
        if removed := remove_leftovers(self._home):
            log.info("removed what others have left: %s", ", ".join(removed))
        position.show_disk(free_bytes(self._home), used_bytes(self._paths.root))

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
                if not is_held_by_another(error):
                    raise
                log.info("waiting for the state database: %s", error)
            self._stop.wait(_LOCK_S)
        return None
