"""Erasures as a node's state carries them out: by its running writer, or without one."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from app.erasure.erased import NOBODY, Erased, TopicEnd, load_erased
from app.erasure.places import Known, PlaceReport, Subject, cleared
from app.errors import RegistryUnavailable, StateUnavailable
from app.events.schema import EVENTS, MERGE
from app.settings import Settings
from app.state.batch import session_key, user_key
from app.state.erasing import Who
from app.state.feed import feed_of
from app.state.joining import Found, joined, one_of
from app.state.layout import StatePaths, current_generation, database, open_primary, remove_older
from app.state.messages import to_batch
from app.state.position import Position
from app.state.reader import EMPTY_HISTORY, UserHistory
from app.state.room import is_held_by_another
from app.state.shares import Share, node_share, shard, shares
from app.state.store import StateStore

_AGAIN_S = 1.0
_ANSWER_S = 60.0
_STALLED_S = 30.0

log = logging.getLogger("manta.state")
Work = Callable[[StateStore], Any]


class NodeErasures:
    """What the writer of a database leaves out and takes out. `begin`, `serve`: for its thread; the rest for any."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home
        self._asked: SimpleQueue[tuple[Work, Future[Any]]] = SimpleQueue()
        self.erased = NOBODY

    def begin(self, store: StateStore, position: Position, stop: threading.Event) -> None:
        """Another database is open: whoever was erased without it goes out of it before anything is read from it."""
        while not stop.is_set():
            try:
                self.erased = load_erased(self._settings, self._home)
                break
            except RegistryUnavailable as error:
                log.warning("the state waits for the ledger of erasures: %s", error)
            stop.wait(_AGAIN_S)
        if store.erase_known(self.erased) is not None:
            position.open_anew()
            log.info("the state has made up for erasures that it had missed")

    def serve(self, store: StateStore, position: Position) -> None:
        """Does what is asked for, and publishes what has changed."""
        moves = store.published().moves
        while True:
            try:
                work, answer = self._asked.get_nowait()
            except Empty:
                break
            if answer.set_running_or_notify_cancel():
                try:
                    result = work(store)
                    self._publish(store, position, moves)
                    answer.set_result(result)
                except Exception as error:
                    answer.set_exception(error)

    @staticmethod
    def _publish(store: StateStore, position: Position, moves: int) -> None:
        published = store.published()
        if published.moves != moves:
            position.open_anew()
            position.publish(published)

    def known(self, user_id: str, ends: Mapping[str, TopicEnd]) -> Known:
        """What is known of a user, once everything up to `ends` is applied.

        Raises:
            StateUnavailable: it is not yet, or the writer does not answer.
        """

        def look(store: StateStore) -> Known:
            _require_applied(store, ends)
            return store.known(user_id)

        found: Known = self._ask(look)
        return found

    def erase(self, subject: Subject) -> None:
        """Leaves out and takes out what is the subject's; then no file of this node's state holds it.

        Raises:
            StateUnavailable: a rebuild is running, or the writer does not answer.
            RegistryUnavailable: the ledger does not.
        """

        def work(store: StateStore) -> None:
            self.erased = load_erased(self._settings, self._home)
            erase_here(store, self._home, subject)

        self._ask(work)

    def _ask(self, work: Work) -> Any:
        answer: Future[Any] = Future()
        self._asked.put((work, answer))
        try:
            return answer.result(_ANSWER_S)
        except TimeoutError:
            answer.cancel()
            raise StateUnavailable(f"the state writer did nothing for {_ANSWER_S:.0f} s; its log says why") from None


def erase_here(store: StateStore, home: Path, subject: Subject) -> None:
    """Takes the subject out of an open database, and databases away that are not in use.

    Raises:
        StateUnavailable: a rebuild is running, which may have read what goes now: later.
    """
    databases = StatePaths.of(home).shard(store.share.shard).databases
    _remove_halves(databases)
    remove_older(databases)
    boundary = [subject.boundary]
    who: Who = {user_key(subject.user_id): boundary} | {session_key(name): boundary for name in subject.sessions}
    store.erase(who)


class StatesHere:
    """The state of this node where no writer runs: `app.erase.States`.

    Args:
        settings: with the broker's address.
        home: MANTA_HOME.
    """

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home

    def known(self, subject: Subject) -> Known:
        """Reads on from Kafka to the request; where there is no state, what the lake knows of merges."""

        def look(store: StateStore) -> Known:
            erased = load_erased(self._settings, self._home)
            store.erase_known(erased)
            apply_up_to(self._settings, store, subject.ends, erased)
            return store.known(subject.user_id)

        if not self._whole():
            return Known(_merged_in_the_lake(self._settings, self._home, subject), True)
        return known_together(self._with_stores(look))

    def erase(self, subject: Subject) -> list[PlaceReport]:
        """As `app.erasure.places.Place.clear`."""
        if self._with_stores(lambda store: erase_here(store, self._home, subject)):
            return [cleared("state")]
        return [cleared("state", "there is none")]

    def shown(self, user_id: str) -> tuple[UserHistory, dict[str, Any] | None]:
        """A user's history and columns, as this node has them.

        Raises:
            StateUnavailable: a shard that the history needs is not here.
        """
        section, columns = self._settings.state, None
        if self._has(node_share(section)):
            history, columns = self.with_store(node_share(section), lambda store: store.shown(user_id))
            if section.placement == "node":
                return history, columns
        if not any(self._has(share) for share in shares(section) if share.is_shard):
            return EMPTY_HISTORY, columns
        sinces: list[int] = []

        def look(number: int, keys: Sequence[bytes]) -> Sequence[Found] | StateUnavailable:
            def work(store: StateStore) -> Sequence[Found]:
                sinces.append(store.published().since or 0)
                return store.look(keys)

            found: Sequence[Found] | StateUnavailable = StateUnavailable(f"shard {number}: found no database here")
            return (
                self.with_store(shard(number, section.shards), work)
                if self._has(shard(number, section.shards))
                else found
            )

        join = joined([("user", user_id)], section, look)
        return one_of(join.histories(max(sinces, default=0) or None)[0]), columns

    def _whole(self) -> bool:
        """Whether all of the state is here, so that it knows of all merges."""
        return all(self._has(share) for share in shares(self._settings.state))

    def _has(self, share: Share) -> bool:
        databases = StatePaths.of(self._home).shard(share.shard).databases
        return database(databases, current_generation(databases)).exists()

    def _with_stores(self, work: Callable[[StateStore], Any]) -> list[Any]:
        """What the work says of each database that is here."""
        return [self.with_store(share, work) for share in shares(self._settings.state) if self._has(share)]

    def with_store(self, share: Share, work: Work) -> Any:
        """What the work says of a database; None where it is not here."""
        if not self._has(share):
            return None
        databases = StatePaths.of(self._home).shard(share.shard).databases
        generation = current_generation(databases)
        store = StateStore(database(databases, generation), self._settings, generation=generation, share=share)
        try:
            return work(store)
        finally:
            store.close()


def erase_left_behind(settings: Settings, home: Path, subject: Subject, kept: Collection[int]) -> None:
    """Takes the subject out of shards that have gone to other nodes and of which this disk still has a copy.

    One that a writer of another node holds (nodes may share a disk) is that writer's.
    """
    states, section = StatesHere(settings, home), settings.state
    gone = [share for share in shares(section) if share.is_shard and share.shard not in kept]
    for share in gone:
        try:
            states.with_store(share, lambda store: erase_here(store, home, subject))
        except StateUnavailable as error:
            if not is_held_by_another(error):
                raise


def known_together(found: Sequence[Known]) -> Known:
    """What several databases know of a user."""
    return Known(tuple(sorted({name for one in found for name in one.sessions})), any(one.columns for one in found))


def _merged_in_the_lake(settings: Settings, home: Path, subject: Subject) -> tuple[str, ...]:
    """Sessions whose first merge is into a user, by the events of the lake.

    Raises:
        StateUnavailable: it has not read up to the request: what is still to come may merge another session.
    """
    from app.lake.snapshot import snapshot
    from app.lake.tables import open_lake

    lake = open_lake(settings, home)
    now = snapshot(lake, EVENTS) if lake.exists(EVENTS) else None
    read = now.progress.topics.get(EVENTS) if now is not None else None
    topic_id, done = (read.topic_id, read.next) if read is not None else ("", {})
    if (behind := _behind(subject.ends.get(EVENTS), topic_id, done)) is not None:
        partition, found, wanted = behind
        raise StateUnavailable(
            f"there is no state, and the lake has read {EVENTS}/{partition} up to offset {found}, wanted {wanted}, "
            "since a session may have been merged there: run `manta ingest`, and again"
        )
    if now is None or now.id is None:
        return ()
    names = ("event_time", "user_id", "session_id")
    merges = now.source.scan(f"event_type = '{MERGE}'", selected_fields=names, snapshot_id=now.id).to_arrow()
    first: dict[str, tuple[Any, ...]] = {}
    for *link, session_id in zip(*(merges[name].to_pylist() for name in names), strict=True):
        first[session_id] = min(tuple(link), first.get(session_id, tuple(link)))
    return tuple(sorted(session_id for session_id, link in first.items() if link[-1] == subject.user_id))


def apply_up_to(settings: Settings, store: StateStore, ends: Mapping[str, TopicEnd], erased: Erased) -> None:
    """Reads on from where a database stands to where topics ended.

    Raises:
        StateUnavailable: the broker brings nothing any more.
    """
    feed, moved = feed_of(settings.kafka, store), time.monotonic()
    try:
        while _store_behind(store, ends) is not None:
            if read := feed.poll(0.1, settings.state.batch_events):
                store.require_partitions(feed.partitions.get(EVENTS, 0))
                store.apply(to_batch(read, settings.events, erased, feed.topic_ids))
                moved = time.monotonic()
            elif (feed.connected and not any(feed.lag().values())) or time.monotonic() - moved > _STALLED_S:
                break  # the log itself is shorter by now, or nobody answers
    finally:
        feed.close()
    if _store_behind(store, ends) is not None and not feed.connected:
        raise StateUnavailable(f"the state could not be read on from Kafka: {feed.error}")


def _require_applied(store: StateStore, ends: Mapping[str, TopicEnd]) -> None:
    behind = _store_behind(store, ends)
    if behind is not None:
        partition, found, wanted = behind
        raise StateUnavailable(f"state: {EVENTS}/{partition}: found offset {found} applied, wanted {wanted}")


def _store_behind(store: StateStore, ends: Mapping[str, TopicEnd]) -> tuple[int, int, int] | None:
    end = ends.get(EVENTS)
    if end is not None:
        end = TopicEnd(end.topic_id, {part: at for part, at in end.next.items() if store.share.reads(EVENTS, part)})
    return _behind(end, store.topic_ids.get(EVENTS), store.offsets().get(EVENTS, {}))


def _behind(end: TopicEnd | None, topic_id: str | None, done: Mapping[int, int]) -> tuple[int, int, int] | None:
    """A partition of `events`, what is read of it and what should be; None: all of it is.

    `topic_id`: of the topic that was read; one that was made anew since is not read on in.
    """
    if end is None or (topic_id and end.topic_id != topic_id):
        return None
    late = ((part, done.get(part, 0), upto) for part, upto in end.next.items() if done.get(part, 0) < upto)
    return next(late, None)


def _remove_halves(databases: Path) -> None:
    """Removes databases that a killed rebuild or a killed restore has begun."""
    current = current_generation(databases)
    for folder in databases.glob("[0-9]*"):
        if folder.suffix == ".new":
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.name.isdigit() and int(folder.name) > current:
            try:
                open_primary(folder).close()
            except Exception as error:  # rocksdict raises bare exceptions
                if is_held_by_another(error):
                    raise StateUnavailable("state: found a rebuild running, wanted it to be over") from None
            shutil.rmtree(folder, ignore_errors=True)
