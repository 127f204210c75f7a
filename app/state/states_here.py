"""The state of a node where no writer runs: what is known of a user, what is shown of him, and his erasure."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.erasure.erased import Erased, TopicEnd, load_erased
from app.erasure.places import Known, PlaceReport, Subject, cleared
from app.errors import StateUnavailable
from app.events.schema import EVENTS, MERGE
from app.settings import Settings
from app.state.erasures import Work, behind, erase_here, known_together, store_behind
from app.state.feed import feed_of
from app.state.joining import Found, joined, one_of
from app.state.layout import StatePaths, current_generation, database
from app.state.messages import to_batch
from app.state.position import gone_shards
from app.state.reader import EMPTY_HISTORY, UserHistory
from app.state.room import is_held_by_another
from app.state.shares import Share, node_share, shard, shares
from app.state.store import StateStore

_STALLED_S = 30.0


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
        gone = gone_shards(self._home)

        def look(number: int, keys: Sequence[bytes]) -> Sequence[Found] | StateUnavailable:
            def work(store: StateStore) -> Sequence[Found]:
                sinces.append(store.published().since or 0)
                return store.look(keys)

            found: Sequence[Found] | StateUnavailable = StateUnavailable(f"shard {number}: found no database here")
            return (
                self.with_store(shard(number, section.shards), work)
                if number not in gone and self._has(shard(number, section.shards))
                else found
            )

        join = joined([("user", user_id)], section, look)
        return one_of(join.histories(max(sinces, default=0) or None)[0]), columns

    def _whole(self) -> bool:
        """Whether all of the state is here, so that it knows of all merges."""
        gone = gone_shards(self._home)
        return all(share.shard not in gone and self._has(share) for share in shares(self._settings.state))

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
    if (late := behind(subject.ends.get(EVENTS), topic_id, done)) is not None:
        partition, found, wanted = late
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
        while store_behind(store, ends) is not None:
            if read := feed.poll(0.1, settings.state.batch_events):
                store.require_partitions(feed.partitions.get(EVENTS, 0))
                store.apply(to_batch(read, settings.events, erased, feed.topic_ids))
                moved = time.monotonic()
            elif (feed.connected and not any(feed.lag().values())) or time.monotonic() - moved > _STALLED_S:
                break  # the log itself is shorter by now, or nobody answers
    finally:
        feed.close()
    if store_behind(store, ends) is not None and not feed.connected:
        raise StateUnavailable(f"the state could not be read on from Kafka: {feed.error}")
