"""RocksDB, the writer's side: a batch of messages and the offsets behind it go in together or not at all."""

import logging
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rocksdict import BottommostLevelCompaction, Checkpoint, CompactOptions, WriteBatch

from app.erasure.erased import Boundary, Erased
from app.erasure.places import Known
from app.errors import StateUnavailable
from app.events.schema import EVENTS, USERS
from app.settings import Settings
from app.state import layout
from app.state.batch import Batch, StateEvent, counts_already, entries_by_key, identities_of, session_key, user_key
from app.state.candidates import Candidates
from app.state.erasing import Who, before_by, erasing, known_of, who_of
from app.state.history import Entry, add, drop_expired, extend, is_view, read
from app.state.items import changed_items
from app.state.joining import Found, look
from app.state.merging import Links, fold_view
from app.state.position import Published, merged
from app.state.reader import UserHistory
from app.state.shares import WHOLE, Share, ShareDiffers
from app.state.upkeep import LEAST_LOOKED_AT, expired, forgettable
from app.time_to_live import in_ms, oldest_counted

_I64 = struct.Struct("<q")
_DAY_MS = 86_400_000

log = logging.getLogger("manta.state")


@dataclass(slots=True)
class Totals:
    """What was done since the database was made."""

    events: int = 0
    duplicates: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    jumps: dict[str, int] = field(default_factory=dict)


class StateStore:
    """The one writer of a database."""

    def __init__(self, path: Path, settings: Settings, *, generation: int = 0, share: Share = WHOLE) -> None:
        """Opens or makes it; `share`: what it holds of the state.

        Raises:
            ShareDiffers: it holds another share.
            StateUnavailable: another process writes it, or it is of another format.
        """
        self.path, self.generation, self.share = path, generation, share
        self._max_history = settings.state.max_history
        self._ttl_ms = in_ms(settings.state.ttl_days)
        self._horizon_ms = int(settings.events.dedup_days * _DAY_MS)
        self._max_future_ms = int(settings.events.max_future_s * 1000)
        self._mark = layout.hold_for_writing(path)
        try:
            self._open()
        except StateUnavailable:
            self._mark.close()
            raise
        self._load_meta()

    def _open(self) -> None:
        try:
            self._db = layout.open_primary(self.path)
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"state database {self.path} cannot be opened for writing: {error}") from None
        self._families = {name: self._db.get_column_family(name) for name in layout.FAMILIES}
        self._handles = {name: self._db.get_column_family_handle(name) for name in layout.FAMILIES}

    def _load_meta(self) -> None:
        saved: dict[str, Any] = orjson.loads(self._families[layout.META].get(b"state", b"{}"))
        if saved.get("format", layout.FORMAT) != layout.FORMAT:
            found = saved["format"]
            self.close()
            raise StateUnavailable(
                f"state database {self.path}: found format {found}, wanted {layout.FORMAT}: run `manta state rebuild`"
            )
        try:
            self.share.require(Share.of_saved(saved.get("share")) if saved else self.share, self.path)
        except ShareDiffers:
            self.close()
            raise
        self._partitions: int = saved.get("partitions", 0)  # of `events`, when a shard was made; 0: not known yet
        offsets = saved.get("offsets", {})
        self._offsets = {topic: {int(p): o for p, o in parts.items()} for topic, parts in offsets.items()}
        self._sequence: int = saved.get("sequence", self.generation * layout.SEQUENCES_PER_GENERATION)
        self._watermark: int = saved.get("watermark", 0)
        self._moves: int = saved.get("moves", 0)
        self.topic_ids: dict[str, str] = saved.get("topic_ids", {})
        self._next_identity, self._new_identities = b"", 0
        self._next_history = b""
        self.totals = Totals(**saved.get("totals", {}))
        self._least_ttl_ms = self._least_ttl(saved.get("least_ttl_ms"))
        self._erased: int = saved.get("erased", 0)  # version of the erasures that are done here
        self._erasing: bool = saved.get("erasing", False)  # what was erased may still stand in old files

    def _least_ttl(self, before: int | None) -> int | None:
        """The shortest time to live that this database has known; None: never any. What it dropped does not return."""
        if before is not None and (self._ttl_ms is None or self._ttl_ms > before):
            days = before / _DAY_MS
            log.warning(
                "state.ttl_days was %g once: histories lack what had expired by then until `manta state rebuild`", days
            )
            return before
        return self._ttl_ms

    def offsets(self) -> dict[str, dict[int, int]]:
        """topic → partition → next offset to read."""
        return merged(self._offsets, {})

    def published(self) -> Published:
        """What the shared position should say."""
        return Published(self.offsets(), self._sequence, self._watermark, self.generation, self._moves, self._since())

    def require_partitions(self, found: int) -> None:
        """Takes note of how many partitions `events` has, 0: none yet; with another number a shard is not written on.

        Raises:
            ShareDiffers: it had another number when the shard was made, or the shards cannot share that number.
        """
        if not self.share.is_shard or found in (0, self._partitions):
            return
        if self._partitions:
            raise ShareDiffers(
                f"state {self.share}: found {found} partitions of {EVENTS}, wanted {self._partitions} as when it was "
                "made: run `manta state rebuild`"
            )
        if found % self.share.of:
            raise ShareDiffers(
                f"state.shards: found {self.share.of}, wanted a divisor of the {found} partitions of {EVENTS}: change "
                "the setting and run `manta state rebuild`"
            )
        self._partitions = found

    def outrun(self, moves: int) -> Published:
        """Moves the publication number past one that readers have seen; call after opening."""
        self._moves = max(self._moves, moves)
        return self.apply(Batch())

    def apply(self, batch: Batch, *, now_ms: int | None = None) -> Published:
        """Applies a batch with its offsets in one write, and says what may then be published.

        Messages below the stored offsets have been applied already and are passed over.
        """
        write = WriteBatch(raw_mode=True)
        events = self._accepted(batch.events, write)
        self._apply_histories(events, write)
        items = self._families[layout.ITEMS]
        changed, sequence = changed_items(
            batch.items, lambda keys: layout.get_many(items, keys), self._sequence, batch.item_places
        )
        for (family, key), record in changed.items():
            self._put(write, family, key, record)
        for user_id, columns in batch.users:
            self._put(write, layout.USERS, user_id.encode(), columns)
        self._count(batch, len(events))
        watermark = self._watermark_with(events, int(time.time() * 1000) if now_ms is None else now_ms)
        offsets, moves = merged(self._offsets, batch.offsets), self._moves + 1
        self._put_meta(write, offsets, sequence, watermark, moves)
        self._db.write(write)
        self._offsets, self._sequence, self._watermark, self._moves = offsets, sequence, watermark, moves
        return self.published()

    def forget_identities(self, reached_ms: int) -> int:
        """Looks at the next few identities and forgets those that nothing that is still to be read can equal.

        Call it now and then. Twice the horizon is kept, for clocks that differ. Each call looks at twice as many as
        have come since the last, so that the expired are never most of them.

        Args:
            reached_ms: when what is still to be read arrived at the earliest (`app.state.arrivals`).

        Returns:
            How many were forgotten.
        """
        limit, self._new_identities = max(LEAST_LOOKED_AT, 2 * self._new_identities), 0
        oldest = reached_ms - 2 * self._horizon_ms
        gone, self._next_identity = forgettable(self._families[layout.SEEN], self._next_identity, limit, oldest)
        self._tidy({(layout.SEEN, key): None for key in gone})
        return len(gone)

    def drop_expired(self) -> int:
        """Looks at the next few histories and drops what has expired; the number of records that changed.

        No reader sees a difference. Call it now and then; one call takes about 10 ms at most.
        """
        since = self._since()
        if since is None:
            return 0
        histories, own = self._families[layout.HISTORIES], self._families[layout.OWN]
        changes, self._next_history = expired(histories, own, self._next_history, since)
        self._tidy(changes)
        return len(changes)

    def _tidy(self, changes: layout.Changes) -> None:
        """Writes what readers see no difference by: nothing is published."""
        if not changes:
            return
        write = WriteBatch(raw_mode=True)
        for (family, key), record in changes.items():
            self._put(write, family, key, record)
        self._db.write(write)

    def known(self, user_id: str) -> Known:
        """What an erasure must know of a user."""
        return known_of(self._families, user_id)

    def look(self, keys: Sequence[bytes]) -> list[Found]:
        """What a shard has of users and sessions (`app.state.joining`)."""
        return look(self._families[layout.HISTORIES], self._families[layout.LINKS], keys)

    def shown(self, user_id: str) -> tuple[UserHistory, dict[str, Any] | None]:
        """A user's history and columns; None: there are none."""
        columns = self._families[layout.USERS].get(user_id.encode())
        history = read(self._families[layout.HISTORIES].get(user_key(user_id)), self._since())
        return history, None if columns is None else orjson.loads(columns)

    def erase(self, who: Who) -> Published:
        """Takes out what users and sessions have here from before their erasures, and gives it away to no file.

        Costs what the files cost in which their keys lie. Safe to repeat: killed in the middle, the next one for the
        same ids, or `erase_known`, ends it.
        """
        found = erasing(
            self._families,
            who,
            before_by(*self._events_topic()),
            self._columns_from_before,
            self._max_history,
            shard=self.share.is_shard,
        )
        self._erasing = True
        published = self._write_changes(found.changes)
        self._compact(found.ranges)
        self._erasing = False
        return self._note_erased(published)

    def erase_known(self, erased: Erased) -> Published | None:
        """Takes out everybody whom the ledger knows and this database does not know of yet; None: there is nobody.

        Looks at every id here, once after a start behind an erasure that this database has missed.
        """
        if self._erased == erased.version and not self._erasing:
            return None
        unfinished, who = self._erasing, who_of(self._families, erased)
        published = self.erase(who) if who else self.published()
        if unfinished:
            self._compact([(name, None, None) for name in layout.FAMILIES])
        self._erased, self._erasing = erased.version, False
        return self._note_erased(published)

    def _events_topic(self) -> tuple[str, bool]:
        """Id of `events`, and whether entries of an earlier topic of that name may be here."""
        return self.topic_ids.get(EVENTS, ""), self.generation > 0 or "recreated" in self.totals.jumps

    def _columns_from_before(self, boundary: Boundary) -> bool:
        """Whether the columns of a user are from before an erasure: its last message withdraws them."""
        end, done = boundary.ends.get(USERS), self._offsets.get(USERS, {})
        if end is None or end.topic_id != self.topic_ids.get(USERS, ""):
            return True
        return any(done.get(partition, 0) < upto for partition, upto in end.next.items())

    def _write_changes(self, changes: Mapping[tuple[str, bytes], bytes | None]) -> Published:
        """Writes records, and moves the publication number."""
        write = WriteBatch(raw_mode=True)
        for (family, key), record in changes.items():
            self._put(write, family, key, record)
        self._moves += 1
        self._put_meta(write, self._offsets, self._sequence, self._watermark, self._moves)
        self._db.write(write)
        return self.published()

    def _note_erased(self, published: Published) -> Published:
        """Keeps what is done, without another publication: readers see no difference."""
        write = WriteBatch(raw_mode=True)
        self._put_meta(write, self._offsets, self._sequence, self._watermark, self._moves)
        self._db.write(write)
        return published

    def _compact(self, ranges: Sequence[tuple[str, bytes | None, bytes | None]]) -> None:
        """Leaves no old version of these keys in any file, and no key in what RocksDB notes about its files."""
        options = CompactOptions()
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        self.flush()
        for family, first, below in ranges:
            self._families[family].compact_range(first, below, options)
        # The manifest and RocksDB's own log name the keys at the edges of files and ranges: opening makes new ones.
        self._let_go()
        self._open()
        layout.forget_old_logs(self.path)

    def flush(self) -> None:
        """Writes what is in memory to files (the log before them makes this unnecessary for safety)."""
        for family in self._families.values():
            family.flush()

    def checkpoint(self, folder: Path) -> None:
        """A consistent copy in a folder that is not there yet (hard links where the file system is the same)."""
        Checkpoint(self._db).create_checkpoint(str(folder))

    def _let_go(self) -> None:
        """RocksDB's own lock is held as long as any handle lives."""
        db = self.__dict__.pop("_db", None)  # not there: it was closed, and opening it again failed
        if db is not None:
            layout.close(db, self._families, self._handles)

    def close(self) -> None:
        """Lets go of the database."""
        self._let_go()
        self._mark.close()

    # --- events

    def _accepted(self, events: Sequence[StateEvent], write: WriteBatch) -> list[StateEvent]:
        """Those not applied before and not counted before; their identities go into the write batch."""
        done = self._offsets.get(EVENTS, {})
        unseen = [event for event in events if event.offset >= done.get(event.partition, 0)]
        fresh = self.share.taken(unseen)
        if len(fresh) < len(unseen):
            self.totals.skipped["key"] = self.totals.skipped.get("key", 0) + len(unseen) - len(fresh)
        identities = identities_of(fresh)
        asked = [identity for identity in identities if identity is not None]
        seen = dict(zip(asked, layout.get_many(self._families[layout.SEEN], asked), strict=True))
        handle, put, accepted = self._handles[layout.SEEN], write.put, []
        for event, identity in zip(fresh, identities, strict=True):
            if identity is not None:
                arrivals = seen[identity]
                if arrivals is None:
                    arrivals = b""
                elif counts_already(event, _I64.iter_unpack(arrivals), self._horizon_ms):
                    self.totals.duplicates += 1
                    continue
                seen[identity] = arrivals = arrivals + _I64.pack(event.record_time)
                put(identity, arrivals, handle)
            accepted.append(event)
        self._new_identities += len(asked)
        return accepted

    def _apply_histories(self, events: Sequence[StateEvent], write: WriteBatch) -> None:
        entries, merges = entries_by_key(events)
        links, candidates = Links(self._families[layout.LINKS].get), Candidates(self._families[layout.LINKS].get)
        stale: set[str] = set()
        for event in merges:
            if self.share.holds(event.session_id or ""):
                stale |= links.merge(event)
            if self.share.is_shard and self.share.holds(event.user_id or ""):
                candidates.take(event)
        keys = list(entries)
        records = dict(zip(keys, layout.get_many(self._families[layout.HISTORIES], keys), strict=True))
        own: dict[bytes, bytes | None] = {}  # records of users whose history is a view
        for key, more in entries.items():
            record = records[key]
            if key[:1] == b"u" and not is_view(record):  # most are
                records[key] = add(record, more, self._max_history)
            else:
                stale |= self._fold(key, more, records, own, links)
        for user_id in () if self.share.is_shard else stale:  # a shard's histories are joined when they are read
            self._refold(user_id, records, own, links)
        since = self._since()  # as readers know it by now: as of the new watermark they would miss entries for a moment
        for family, histories in ((layout.HISTORIES, records), (layout.OWN, own)):
            handle = self._handles[family]
            for key, record in histories.items():
                kept = record if since is None else drop_expired(record, since)
                if kept is None:
                    write.delete(key, handle)
                else:
                    write.put(key, kept, handle)
        for key, link in (*links.changes(), *candidates.changes()):
            self._put(write, layout.LINKS, key, link)

    def _fold(
        self,
        key: bytes,
        more: list[Entry],
        records: dict[bytes, bytes | None],
        own: dict[bytes, bytes | None],
        links: Links,
    ) -> set[str]:
        """Adds entries to the records of one key; the users whose view must be folded anew."""
        record = records[key]
        if record is None or not is_view(record):
            records[key] = add(record, more, self._max_history)
            link = links.of_session(key[1:].decode()) if key[:1] == b"s" else None
            return {link.user_id} if link else set()
        own[key] = add(self._families[layout.OWN].get(key), more, self._max_history)
        extended = extend(record, more, self._max_history)
        if extended is None:
            return {key[1:].decode()}
        records[key] = extended
        return set()

    def _refold(
        self, user_id: str, records: dict[bytes, bytes | None], own: dict[bytes, bytes | None], links: Links
    ) -> None:
        """The user's history from what each id keeps; without a session (it is another's by now) the user's own."""
        key = user_key(user_id)
        mine = own.get(key) or self._own_record(key, records)
        sessions = sorted(links.sessions(user_id))
        if not sessions:
            records[key], own[key] = mine or None, None
            return
        parts, since = [], self._since()
        for session_id in sessions:
            link = links.of_session(session_id)
            assert link is not None
            if since is None or link.time >= since * 1000:  # else all that it would bring has expired
                parts.append((self._record(session_key(session_id), records), link))
        own[key] = mine or b""
        records[key] = fold_view(mine, parts, self._max_history)

    def _own_record(self, key: bytes, records: dict[bytes, bytes | None]) -> bytes | None:
        record = self._record(key, records)
        if is_view(record):
            found: bytes | None = self._families[layout.OWN].get(key)
            return found
        return record

    def _record(self, key: bytes, records: dict[bytes, bytes | None]) -> bytes | None:
        if key not in records:
            found: bytes | None = self._families[layout.HISTORIES].get(key)
            return found
        return records[key]

    def _since(self) -> int | None:
        """Earliest event time that counts as of the watermark, milliseconds; None: all count."""
        return None if self._ttl_ms is None else oldest_counted(self._watermark, self._ttl_ms)

    def _watermark_with(self, events: Sequence[StateEvent], now_ms: int) -> int:
        ahead = now_ms + self._max_future_ms
        times = [event.time // 1000 for event in events]
        return max([self._watermark, *(moment for moment in times if moment <= ahead)])

    # --- meta

    def _count(self, batch: Batch, accepted: int) -> None:
        self.totals.events += accepted
        for totals, more in ((self.totals.skipped, batch.skipped), (self.totals.jumps, batch.jumps)):
            for name, count in more.items():
                totals[name] = totals.get(name, 0) + count

    def _put_meta(
        self, write: WriteBatch, offsets: dict[str, dict[int, int]], sequence: int, watermark: int, moves: int
    ) -> None:
        totals = self.totals
        saved = {
            "format": layout.FORMAT,
            "offsets": {topic: {str(p): o for p, o in parts.items()} for topic, parts in offsets.items()},
            "sequence": sequence,
            "watermark": watermark,
            "moves": moves,
            "topic_ids": self.topic_ids,
            "totals": {
                "events": totals.events,
                "duplicates": totals.duplicates,
                "skipped": totals.skipped,
                "jumps": totals.jumps,
            },
            "least_ttl_ms": self._least_ttl_ms,
            "erased": self._erased,
            "erasing": self._erasing,
            "share": self.share.saved(),
            "partitions": self._partitions,
        }
        self._put(write, layout.META, b"state", orjson.dumps(saved))
        for family in layout.MARKED:
            self._put(write, family, layout.MARK, _I64.pack(moves))

    def _put(self, write: WriteBatch, family: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            write.delete(key, self._handles[family])
        else:
            write.put(key, value, self._handles[family])
