"""The writer of a node's state: Kafka to RocksDB to the shared position, until it is told to stop."""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import StateUnavailable
from app.events.doze import Place
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.batch import Batch
from app.state.checkpoint import make_checkpoint, place_of, restore_newest
from app.state.erasures import NodeErasures
from app.state.feed import Read, StateFeed, feed_of
from app.state.layout import StatePaths, choose_generation, current_generation, database, remove_older
from app.state.leftovers import remove_leftovers
from app.state.messages import to_batch
from app.state.owners import Looked
from app.state.position import Position, shown_offsets
from app.state.room import Room, Shortage, free_bytes, is_held_by_another, is_out_of_space, used_bytes
from app.state.shares import Share, ShareDiffers, node_share
from app.state.standing_in import StandIn
from app.state.store import StateStore, Totals

_POLL_S = 0.1
_LOOK_S = 0.5  # lag, and whether another database was chosen
_LOCK_S = 0.05
_HELD_S = 2.0  # a database that is held for longer is not just being closed
_ROOM_S = 0.25
_TIDY_S = 10.0
_REFUSED_S = 10.0  # before a database that is not to be written is opened again; another one is taken at once
_AWAY_MS = 10_000  # a shard that nobody here wrote for this long may have been written elsewhere
_OLD_S = 60.0  # by then every replica that answers has followed to the database in use

log = logging.getLogger("manta.state")


class StateWriterLoop:
    """One thread's work. `run` blocks; everything else may be called from other threads.

    Attributes:
        erasures: what is asked of it on behalf of those who are erased.
    """

    def __init__(self, settings: Settings, home: Path, share: Share | None = None) -> None:
        """Takes settings with the broker's address, and the MANTA_HOME; `share`: None: what is every node's."""
        self.erasures = NodeErasures(settings, home, self.waits)
        self.share = node_share(settings.state) if share is None else share
        self._settings, self._home, self._paths = settings, home, StatePaths.of(home).shard(self.share.shard)
        self._stand_in = StandIn(home, self.share)
        self._refused: str | None = None
        self._shown = False
        self._blocked: float | None = None  # since when
        self._room = Room(home, settings.state.min_free_bytes)
        self._shortage: Shortage | None = None
        self._stop = threading.Event()
        self._store: StateStore | None = None
        self._feed: StateFeed | None = None
        self._lag: dict[str, int] = {}
        self._looked = self._tidied = 0.0
        self._reached = False
        self._opened = 0.0
        self._started = time.time()

    def stop(self) -> None:
        """Asks `run` to return; it does within a tenth of a second."""
        self._stop.set()

    def run(self) -> None:
        """Applies what the topics bring until `stop`; on to another database whenever one is chosen.

        A database of another share is not written, its position says so, until another one is chosen. Where the disk
        has no room nothing is applied until it has: the database is closed, and opened again.

        Raises:
            StateUnavailable: the database cannot be opened or written; one that another writer holds is waited for.
        """
        self._paths.root.mkdir(parents=True, exist_ok=True)
        self._paths.stopped.unlink(missing_ok=True)
        position = Position.create(self._paths.position)
        if self.share.is_shard and time.time() * 1000 - position.heartbeat_ms > _AWAY_MS:
            position.hide()  # it may have been written elsewhere meanwhile
        try:
            while not self._stop.is_set():
                self._wait_for_room(position)
                generation = current_generation(self._paths.databases)
                try:
                    self._serve(position, generation)
                except ShareDiffers as error:
                    self._refuse(position, str(error), generation)
                except Exception as error:  # rocksdict raises bare exceptions
                    if not is_out_of_space(error):
                        raise
                    log.error("nothing is applied, the disk is full: %s", error)
                    self._room.ran_out()
        finally:
            position.close()
            self._stand_in.close()
            self._paths.stopped.unlink(missing_ok=True)  # it is another's to say, where the shard goes

    def status(self) -> dict[str, Any]:
        """What it does: pid, offsets, lag, totals, and what is wrong if anything is."""
        store, feed = self._store, self._feed
        state = "waiting for the database" if store is None else "reading" if feed and feed.connected else "no broker"
        shortage = self._shortage
        return {
            "share": str(self.share),
            "state": "stopped" if shortage or self._refused else state,
            "pid": os.getpid(),
            "started": self._started,
            "error": self._refused or (str(shortage) if shortage else feed.error if feed else None),
            "lag": dict(self._lag),
            "offsets": self._offsets(),
            "watermark": store.published().watermark if store else 0,
            "generation": store.generation if store else None,
            **asdict(store.totals if store else Totals()),
        }

    def lag(self) -> dict[str, int]:
        """Topic → messages that are not applied yet, as of the last half second."""
        return dict(self._lag)

    def look(self, keys: Sequence[bytes]) -> Looked:
        """What the shard has of users and sessions, for readers of other nodes.

        Raises:
            StateUnavailable: it has not caught up yet, or cannot be read.
        """
        store = self._store
        if store is None or not self._shown:
            return self._stand_in.look(keys)
        try:
            found = store.look(keys)
        except Exception as error:  # rocksdict raises bare exceptions, as where it is just being opened anew
            raise StateUnavailable(f"{self.share} cannot be read: {error}") from None
        published = store.published()
        return Looked(found, published.watermark, published.since, published.offsets.get(EVENTS, {}))

    def caught_up(self) -> bool:
        """Whether `look` answers."""
        return self._store is not None and self._shown

    @property
    def blocked(self) -> bool:
        """Whether another process holds the database."""
        return self._blocked is not None

    def waits(self) -> bool:
        """Whether another process holds the database, and not just while it ends: one of another node, on one disk."""
        since = self._blocked
        return since is not None and time.monotonic() - since > _HELD_S

    def _offsets(self) -> dict[str, dict[int, int]]:
        """What is applied; while another process holds the database, what readers here see of it."""
        if (store := self._store) is not None:
            return store.offsets()
        return shown_offsets(self._paths.position) if self.blocked else {}

    # --- one database

    def _refuse(self, position: Position, line: str, generation: int) -> None:
        """Says why nothing is applied, and leaves the database alone for a while: its readers go on with it."""
        if self._refused != line:
            log.error("nothing is applied: %s", line)
            self._refused = line
            self._paths.stopped.write_text(line)
        deadline = time.monotonic() + _REFUSED_S
        while not self._stop.wait(_LOOK_S) and time.monotonic() < deadline:
            position.beat(-1)
            if current_generation(self._paths.databases) != generation:
                return

    def _accept(self, store: StateStore, feed: StateFeed) -> None:
        """Checks that the database is still of what the topics are shared by."""
        store.require_partitions(found := feed.partitions.get(EVENTS, 0))
        if self._refused is not None and (found or not self.share.is_shard):
            log.warning("the state is written on")
            self._refused = None
            self._paths.stopped.unlink(missing_ok=True)

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
            self._store, self._shown = None, False
            store.close()

    def _follow(self, position: Position, store: StateStore, generation: int) -> None:
        feed = feed_of(self._settings.kafka, store)
        self._store, self._feed, self._opened = store, feed, time.monotonic()
        position.beat(-1)
        try:
            self._reach(position, store, feed)
            if not self._stop.is_set() and (position.moves or not self.share.is_shard or self._reached):
                position.publish(store.outrun(position.moves))
                self._shown = True
                self._stand_in.close()
            while self._shown and not self._stop.is_set() and self._room.shortage() is None:
                self._step(position, store, feed)
                if self._due() and self._look(position, store, feed) != generation:
                    return
        finally:
            self._feed = None
            feed.close()

    def _reach(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        """Brings another database to where the one before it was, unseen: nobody's last click is gone for a moment.

        A shard that shows nothing is brought to where the log ended at first: half its histories would be wrong ones.
        """
        shown = position.offsets() if position.generation != store.generation else {}
        unseen, self._reached = self.share.is_shard and not position.moves, False
        while not self._stop.is_set() and self._room.shortage() is None:
            done = store.offsets()
            late = (done.get(topic, {}).get(p, 0) < shown[topic][p] for topic in shown for p in shown[topic])
            if not unseen and not any(late) and self._refused is None:
                return
            if read := feed.poll(_POLL_S, self._settings.state.batch_events):
                self._accept(store, feed)
                store.apply(self._batch(read, feed))
                there = unseen and _holds(store, feed.ends)  # events that go on coming are no reason to wait
            else:
                there = not any(feed.lag().values())  # the log itself may be shorter than it was
            if feed.connected and there:
                self._accept(store, feed)
                self._reached = True
                return
            position.beat(-1)
            if self._due():
                self._show_lag(position, store, feed)

    def _step(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        read = feed.poll(_POLL_S, self._settings.state.batch_events)
        if feed.connected:
            self._accept(store, feed)
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
        self._show_lag(position, store, feed)
        if self._looked - self._opened > _OLD_S:
            remove_older(self._paths.databases, store.generation)  # another may be chosen, whom nobody reads yet
        if self._paths.checkpoint_wanted.exists():
            make_checkpoint(store, self._paths)
        if feed.connected and (reached := feed.reached_ms(EVENTS)) is not None:
            store.forget_identities(reached)
        store.drop_expired()
        if self._looked - self._tidied > _TIDY_S:
            self._tidied = self._looked
            self._tidy(position)
        return current_generation(self._paths.databases)

    def _show_lag(self, position: Position, store: StateStore, feed: StateFeed) -> None:
        self._looked = time.monotonic()
        self._lag = feed.lag()
        position.beat(sum(self._lag.values()) if feed.connected else -1)
        position.show_jumped(sum(store.totals.jumps.values()))

    def _tidy(self, position: Position) -> None:
        if removed := remove_leftovers(self._home, self.share.shard):
            log.info("removed what others have left: %s", ", ".join(removed))
        position.show_disk(free_bytes(self._home), used_bytes(self._paths.root))
        position.restore()

    def _open(self, generation: int) -> StateStore | None:
        """Opens the database, waiting for whoever holds it; None when told to stop meanwhile."""
        path = database(self._paths.databases, generation)
        if not (self._paths.databases / "current").exists():
            if self._settings.state.checkpoints and not path.exists():
                restore_newest(place_of(self._settings.state.checkpoints, self.share), path)
            choose_generation(self._paths.databases, generation)
        while not self._stop.is_set():
            try:
                store = StateStore(path, self._settings, generation=generation, share=self.share)
                self._blocked = None
                return store
            except StateUnavailable as error:
                if not is_held_by_another(error):
                    raise
                if self._blocked is None:
                    log.info("waiting for the state database: %s", error)
                    self._blocked = time.monotonic()
            self._stop.wait(_LOCK_S)
        return None


def _holds(store: StateStore, ends: Mapping[Place, int]) -> bool:
    """Whether a database has everything up to some offsets."""
    done = store.offsets()
    return all(done.get(topic, {}).get(partition, 0) >= end for (topic, partition), end in ends.items())
