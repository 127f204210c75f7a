"""A new database from the lake's snapshot and what Kafka holds beyond it; then everyone is pointed to it.

The database in use is never touched: the new one grows in a folder of its own while the writer goes on.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from app.erasure.erased import Erased, load_erased
from app.errors import MantaError
from app.events.schema import EVENTS, ITEMS, USERS
from app.events.topics import bounds
from app.events.versions import VersionPlace
from app.lake.scan import pieces
from app.lake.snapshot import Snapshot, snapshot
from app.lake.tables import Lake
from app.settings import Settings
from app.state.batch import Batch
from app.state.feed import TOPICS, feed_of
from app.state.layout import StatePaths, choose_generation, current_generation, database, open_primary
from app.state.messages import events_of, to_batch
from app.state.room import Room, is_held_by_another, is_out_of_space
from app.state.shares import Share
from app.state.shares import shares as all_shares
from app.state.store import StateStore

Progress = Callable[[str, int, int], None]  # what, done, of how many

_EVENT_FIELDS = (
    "event_id",
    "user_id",
    "session_id",
    "item_id",
    "event_type",
    "event_time",
    "value",
    "partition",
    "offset",
    "record_time",
)
_PLACE = ("partition", "offset", "record_time")
_ROWS = 50_000
_STALLED_S = 30.0
_NO_ROOM = "state rebuild: no room on the disk for a second database, the one in use stays"


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild did.

    Attributes:
        generation: the database that is in use from now on; of several the newest.
        events: events taken from the lake.
        items, users: rows taken from the lake.
        followed: events, items and users read from Kafka behind that.
        jumps: offsets between the lake's end and what Kafka still holds, by kind; not empty: events are missing.
        seconds: how long it took.
    """

    generation: int
    events: int = 0
    items: int = 0
    users: int = 0
    followed: int = 0
    jumps: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def rebuild(
    settings: Settings,
    home: Path,
    lake: Lake,
    progress: Progress | None = None,
    *,
    shares: Collection[Share] | None = None,
) -> RebuildReport:
    """Folds the lake, follows Kafka to where its log ends now, and switches to the result.

    A running writer switches by itself within a second, a stopped one when it starts. Interrupted, nothing has
    changed, and the next rebuild begins anew.

    Args:
        settings: with the broker's address.
        home: MANTA_HOME.
        lake: the open lake.
        progress: told of each step.
        shares: which databases; None: all that together are the state.

    Raises:
        MantaError: another rebuild is running, the broker or the lake cannot be read, or the disk has no room.
    """
    started, room, stores = time.monotonic(), Room(home, settings.state.min_free_bytes), list[StateStore]()
    report = RebuildReport(0)

    def say(what: str, done: int, total: int) -> None:
        if (shortage := room.shortage()) is not None:
            raise MantaError(f"{_NO_ROOM}: found {shortage.free:,} bytes free, wanted {shortage.wanted:,}")
        if progress is not None:
            progress(what, done, total)

    try:
        for share in all_shares(settings.state) if shares is None else shares:
            stores.append(_fresh(home, settings, share))
        report.generation = max(store.generation for store in stores)
        # After the databases are held: an erasure waits for this to be over, or is known here
        erased = load_erased(settings, home)
        _take_events(snapshot(lake, EVENTS), erased, stores, report, say)
        report.items = _take_entities(snapshot(lake, ITEMS), erased, stores, say)
        report.users = _take_entities(snapshot(lake, USERS), erased, stores, say)
        for store in stores:
            _follow(settings, erased, store, report, say)
            store.flush()
    except BaseException as error:
        for store in stores:
            store.close()
            shutil.rmtree(store.path, ignore_errors=True)
        if is_out_of_space(error) and not isinstance(error, MantaError):
            raise MantaError(f"{_NO_ROOM}: {error}") from None
        raise
    for store in stores:
        choose_generation(store.path.parent, store.generation)  # held until then: an erasure removes halves
        store.close()
    _remove_shards(home, settings)
    report.seconds = time.monotonic() - started
    return report


def _fresh(home: Path, settings: Settings, share: Share) -> StateStore:
    """An empty database where an interrupted rebuild may have left half of one."""
    databases = StatePaths.of(home).shard(share.shard).databases
    generation = current_generation(databases) + 1
    path = database(databases, generation)
    try:
        open_primary(path).close()
    except Exception as error:  # rocksdict raises bare exceptions
        raise MantaError(f"another `manta state rebuild` is running: {error}") from None
    shutil.rmtree(path)
    return StateStore(path, settings, generation=generation, share=share)


def _remove_shards(home: Path, settings: Settings) -> None:
    """Removes shards that there are no more, unless somebody still writes them."""
    wanted = {share.shard for share in all_shares(settings.state)}
    for folder in StatePaths.of(home).shards.glob("[0-9]*"):
        if not folder.name.isdigit() or int(folder.name) in wanted:
            continue
        paths = StatePaths(folder)
        try:
            open_primary(database(paths.databases, current_generation(paths.databases))).close()
        except Exception as error:  # rocksdict raises bare exceptions
            if is_held_by_another(error):
                continue
        shutil.rmtree(folder, ignore_errors=True)


def _take_events(
    events: Snapshot, erased: Erased, stores: Sequence[StateStore], report: RebuildReport, say: Progress
) -> None:
    total, takers = events.rows, [store for store in stores if EVENTS in store.share.topics]
    if not takers:
        return
    for table in _batches(events, _EVENT_FIELDS):
        report.events += len(table)
        found = events_of(_about_others(table, EVENTS, erased))
        for store in takers:
            store.apply(Batch(events=store.share.taken(found)))
        say("events from the lake", report.events, total)
    _take_offsets(events, takers)


def _take_entities(entities: Snapshot, erased: Erased, stores: Sequence[StateStore], say: Progress) -> int:
    """Items or users; a withdrawn item comes with the columns that it had."""
    done, total = 0, entities.rows
    takers = [store for store in stores if entities.table in store.share.topics]
    if not takers:
        return 0
    shown = ["item_id" if entities.table == ITEMS else "user_id", "available", "columns"]
    for table in _batches(entities, (*shown, *_PLACE)):
        found: list[tuple[str, bytes | None]] = []
        places: list[VersionPlace] = []
        done += len(table)
        if entities.table == USERS:
            table = _about_others(table, USERS, erased)
        arrived = (table["record_time"].cast(pa.int64()).to_numpy() // 1000).tolist()
        rows = zip(*(table[name].to_pylist() for name in (*shown, "partition")), arrived, strict=True)
        for name, available, columns, *place in rows:
            versions = [columns.encode()] if columns is not None and (available or entities.table == ITEMS) else []
            versions += [] if available else [None]
            found += [(name, version) for version in versions]
            places += [VersionPlace(*place)] * len(versions)
        for store in takers:
            store.apply(Batch(items=found, item_places=places) if entities.table == ITEMS else Batch(users=found))
        say(f"{entities.table} from the lake", done, total)
    _take_offsets(entities, takers)
    return done


def _about_others(table: pa.Table, topic: str, erased: Erased) -> pa.Table:
    """Rows without those from before an erasure of whom they are about."""
    gone = erased.stored(topic, table)
    return table.filter(pa.array(~gone)) if gone.any() else table


def _take_offsets(source: Snapshot, stores: Sequence[StateStore]) -> None:
    held = source.progress.topics.get(source.table)
    if held is None:
        return
    for store in stores:
        store.topic_ids[source.table] = held.topic_id
        places = {(source.table, partition): offset for partition, offset in held.next.items()}
        store.apply(Batch(offsets={place: offset for place, offset in places.items() if store.share.reads(*place)}))


def _batches(source: Snapshot, names: tuple[str, ...]) -> Iterator[pa.Table]:
    """The rows of a snapshot in bounded pieces, in no particular order: the fold does not depend on it."""
    if source.id is None:
        return
    scan = source.source.scan(selected_fields=names, snapshot_id=source.id)
    for piece in pieces(scan):
        table = piece.select(list(names))
        for start in range(0, len(table), _ROWS):
            yield table.slice(start, _ROWS)


def _follow(settings: Settings, erased: Erased, store: StateStore, report: RebuildReport, say: Progress) -> None:
    """Reads on from the lake's offsets to the ends that the topics have now."""
    ends = {
        (topic, partition): end
        for topic, held in bounds(settings.kafka, TOPICS).items()
        for partition, end in held.end.items()
        if store.share.reads(topic, partition)
    }
    feed = feed_of(settings.kafka, store)
    first, moved = _missing(ends, store), time.monotonic()
    try:
        while (left := _missing(ends, store)) and time.monotonic() - moved < _STALLED_S:
            if read := feed.poll(0.1, settings.state.batch_events):
                moved = time.monotonic()
                store.require_partitions(feed.partitions.get(EVENTS, 0))
                batch = to_batch(read, settings.events, erased, feed.topic_ids)
                store.apply(batch)
                report.followed += len(batch)
                say("messages from Kafka", max(0, first - left), first)
            elif feed.connected and not any(feed.lag().values()):
                break  # the log itself is shorter by now
    finally:
        feed.close()
    if _missing(ends, store) and not feed.connected:
        raise MantaError(f"state rebuild: Kafka stopped answering: {feed.error}")
    for kind, offsets in store.totals.jumps.items():
        report.jumps[kind] = report.jumps.get(kind, 0) + offsets


def _missing(ends: dict[tuple[str, int], int], store: StateStore) -> int:
    done = store.offsets()
    return sum(max(0, end - done.get(topic, {}).get(partition, 0)) for (topic, partition), end in ends.items())
