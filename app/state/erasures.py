"""Erasures as a node's state carries them out: by its running writer, or without one."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from app.erasure.erased import NOBODY, TopicEnd, load_erased
from app.erasure.places import Known, Subject
from app.errors import RegistryUnavailable, StateUnavailable
from app.events.schema import EVENTS
from app.settings import Settings
from app.state.batch import session_key, user_key
from app.state.erasing import Who
from app.state.layout import StatePaths, current_generation, open_primary, remove_older
from app.state.position import Position
from app.state.room import is_held_by_another
from app.state.store import StateStore

_AGAIN_S = 1.0
_ANSWER_S = 60.0
_LOOK_S = 0.2
_STALLED_S = 30.0

log = logging.getLogger("manta.state")
Work = Callable[[StateStore], Any]


class HeldElsewhere(StateUnavailable):
    """The writer waits for its database: another process has it open, and that one must be asked."""


class NodeErasures:
    """What the writer of a database leaves out and takes out. `begin`, `serve`: for its thread; the rest for any.

    Args:
        settings, home: where ledger and state are.
        waits: whether the writer waits for a database that another process has open.
    """

    def __init__(self, settings: Settings, home: Path, waits: Callable[[], bool] = lambda: False) -> None:
        self._settings, self._home, self._waits = settings, home, waits
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
        """Does what is asked for, and publishes what has changed; where another database was chosen, that one's turn
        comes, since it is the one that stays.
        """
        databases = StatePaths.of(self._home).shard(store.share.shard).databases
        if self._asked.empty() or current_generation(databases) != store.generation:
            return
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
            HeldElsewhere: the database is another process's.
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
            HeldElsewhere: the database is another process's.
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
        deadline = time.monotonic() + _ANSWER_S
        while not wait([answer], _LOOK_S).done:
            if self._waits() and answer.cancel():
                raise HeldElsewhere("found the state database open in another process, wanted that one to be asked")
            if time.monotonic() > deadline:
                answer.cancel()
                why = f"the state writer did nothing for {_ANSWER_S:.0f} s; its log says why"
                raise StateUnavailable(why)
        return answer.result()


def erase_here(store: StateStore, home: Path, subject: Subject) -> None:
    """Takes the subject out of an open database, and databases away that are not in use.

    Raises:
        StateUnavailable: a rebuild is running, which may have read what goes now: later.
    """
    databases = StatePaths.of(home).shard(store.share.shard).databases
    remove_halves(databases)
    remove_older(databases, store.generation)
    boundary = [subject.boundary]
    who: Who = {user_key(subject.user_id): boundary} | {session_key(name): boundary for name in subject.sessions}
    store.erase(who)


def known_together(found: Sequence[Known]) -> Known:
    """What several databases know of a user."""
    return Known(tuple(sorted({name for one in found for name in one.sessions})), any(one.columns for one in found))


def _require_applied(store: StateStore, ends: Mapping[str, TopicEnd]) -> None:
    late = store_behind(store, ends)
    if late is not None:
        partition, found, wanted = late
        raise StateUnavailable(f"state: {EVENTS}/{partition}: found offset {found} applied, wanted {wanted}")


def store_behind(store: StateStore, ends: Mapping[str, TopicEnd]) -> tuple[int, int, int] | None:
    """`behind` of a database, as far as its share of the partitions goes."""
    end = ends.get(EVENTS)
    if end is not None:
        end = TopicEnd(end.topic_id, {part: at for part, at in end.next.items() if store.share.reads(EVENTS, part)})
    return behind(end, store.topic_ids.get(EVENTS), store.offsets().get(EVENTS, {}))


def behind(end: TopicEnd | None, topic_id: str | None, done: Mapping[int, int]) -> tuple[int, int, int] | None:
    """A partition of `events`, what is read of it and what should be; None: all of it is.

    `topic_id`: of the topic that was read; one that was made anew since is not read on in.
    """
    if end is None or (topic_id and end.topic_id != topic_id):
        return None
    late = ((part, done.get(part, 0), upto) for part, upto in end.next.items() if done.get(part, 0) < upto)
    return next(late, None)


def remove_halves(databases: Path) -> None:
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
