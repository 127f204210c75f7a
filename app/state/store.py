"""RocksDB, the writer's side: a batch of messages and the offsets behind it go in together or not at all."""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rocksdict import Checkpoint, WriteBatch

from app.errors import StateUnavailable
from app.events.schema import EVENTS, MERGE
from app.settings import Settings
from app.state import layout
from app.state.batch import Batch, StateEvent, counts_already, session_key, user_key
from app.state.history import Entry, add, extend, is_view
from app.state.merging import Links, fold_view
from app.state.position import Published, merged

ITEM = struct.Struct("<QB")  # sequence, available; the columns' JSON follows
_I64 = struct.Struct("<q")
_DAY_MS = 86_400_000
_LEAST_LOOKED_AT = 200


@dataclass(slots=True)
class Totals:
    """What was done since the database was made."""

    events: int = 0
    duplicates: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    jumps: dict[str, int] = field(default_factory=dict)


class StateStore:
    """The one writer of a database."""

    def __init__(self, path: Path, settings: Settings, *, generation: int = 0) -> None:
        """Opens or makes it.

        Raises:
            StateUnavailable: another process writes it, or it is of another format.
        """
        self.path, self.generation = path, generation
        self._max_history = settings.state.max_history
        self._horizon_ms = int(settings.events.dedup_days * _DAY_MS)
        self._max_future_ms = int(settings.events.max_future_s * 1000)
        try:
            self._db = layout.open_primary(path)
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"state database {path} cannot be opened for writing: {error}") from None
        self._families = {name: self._db.get_column_family(name) for name in layout.FAMILIES}
        self._handles = {name: self._db.get_column_family_handle(name) for name in layout.FAMILIES}
        self._load_meta()

    def _load_meta(self) -> None:
        saved: dict[str, Any] = orjson.loads(self._families[layout.META].get(b"state", b"{}"))
        if saved.get("format", layout.FORMAT) != layout.FORMAT:
            found = saved["format"]
            self.close()
            raise StateUnavailable(
                f"state database {self.path}: found format {found}, wanted {layout.FORMAT}: run `manta state rebuild`"
            )
        offsets = saved.get("offsets", {})
        self._offsets = {topic: {int(p): o for p, o in parts.items()} for topic, parts in offsets.items()}
        self._sequence: int = saved.get("sequence", self.generation * layout.SEQUENCES_PER_GENERATION)
        self._watermark: int = saved.get("watermark", 0)
        self._moves: int = saved.get("moves", 0)
        self.topic_ids: dict[str, str] = saved.get("topic_ids", {})
        self._next_identity, self._new_identities = b"", 0
        self.totals = Totals(**saved.get("totals", {}))

    def offsets(self) -> dict[str, dict[int, int]]:
        """topic → partition → next offset to read."""
        return merged(self._offsets, {})

    def published(self) -> Published:
        """What the shared position should say."""
        return Published(self.offsets(), self._sequence, self._watermark, self.generation, self._moves)

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
        sequence = self._apply_items(batch.items, write)
        for user_id, columns in batch.users:
            self._put(write, layout.USERS, user_id.encode(), columns)
        self._count(batch, len(events))
        watermark = self._watermark_with(events, int(time.time() * 1000) if now_ms is None else now_ms)
        offsets, moves = merged(self._offsets, batch.offsets), self._moves + 1
        self._put_meta(write, offsets, sequence, watermark, moves)
        self._db.write(write)
        self._offsets, self._sequence, self._watermark, self._moves = offsets, sequence, watermark, moves
        return self.published()

    def forget_identities(self, now_ms: int) -> int:
        """Looks at the next few identities and forgets those that nothing that arrives from now on can equal.

        Call it now and then while the log is nearly read. Twice the horizon is kept, for clocks that differ. Each
        call looks at twice as many as have come since the last, so that the expired are never most of them.

        Returns:
            How many were forgotten.
        """
        family, limit = self._families[layout.SEEN], max(_LEAST_LOOKED_AT, 2 * self._new_identities)
        oldest, write, self._new_identities = now_ms - 2 * self._horizon_ms, WriteBatch(raw_mode=True), 0
        for looked, (key, arrivals) in enumerate(family.items(from_key=self._next_identity), 1):
            self._next_identity = key
            if max(arrival for (arrival,) in _I64.iter_unpack(arrivals)) < oldest:
                write.delete(key, self._handles[layout.SEEN])
            if looked == limit:
                break
        else:
            self._next_identity = b""  # from the start again
        if forgotten := len(write):
            self._db.write(write)
        return forgotten

    def flush(self) -> None:
        """Writes what is in memory to files (the log before them makes this unnecessary for safety)."""
        self._db.flush()

    def checkpoint(self, folder: Path) -> None:
        """A consistent copy in a folder that is not there yet (hard links where the file system is the same)."""
        Checkpoint(self._db).create_checkpoint(str(folder))

    def close(self) -> None:
        """Lets go of the database: RocksDB's lock is held as long as any handle lives."""
        layout.close(self._db, self._families, self._handles)

    # --- events

    def _accepted(self, events: Sequence[StateEvent], write: WriteBatch) -> list[StateEvent]:
        """Those not applied before and not counted before; their identities go into the write batch."""
        done = self._offsets.get(EVENTS, {})
        fresh = [event for event in events if event.offset >= done.get(event.partition, 0)]
        identities = [event.identity for event in fresh]
        asked = list({identity for identity in identities if identity is not None})
        found = layout.get_many(self._families[layout.SEEN], asked)
        seen = {key: value or b"" for key, value in zip(asked, found, strict=True)}
        handle, accepted = self._handles[layout.SEEN], []
        for event, identity in zip(fresh, identities, strict=True):
            if identity is not None:
                arrivals = seen[identity]
                if arrivals and counts_already(event, _I64.iter_unpack(arrivals), self._horizon_ms):
                    self.totals.duplicates += 1
                    continue
                seen[identity] = arrivals + _I64.pack(event.record_time)
                write.put(identity, seen[identity], handle)
                self._new_identities += 1
            accepted.append(event)
        return accepted

    def _apply_histories(self, events: Sequence[StateEvent], write: WriteBatch) -> None:
        entries: dict[bytes, list[Entry]] = {}
        merges: list[StateEvent] = []
        for event in events:
            if event.event_type == MERGE:
                merges.append(event)
            elif (entry := event.entry) is not None:
                entries.setdefault(event.key, []).append(entry)
        links = Links(self._families[layout.LINKS].get)
        stale = {user_id for event in merges for user_id in links.merge(event)}
        keys = list(entries)
        records = dict(zip(keys, layout.get_many(self._families[layout.HISTORIES], keys), strict=True))
        own: dict[bytes, bytes | None] = {}  # records of users whose history is a view
        for key, more in entries.items():
            stale |= self._fold(key, more, records, own, links)
        for user_id in stale:
            self._refold(user_id, records, own, links)
        for family, changed in ((layout.HISTORIES, records), (layout.OWN, own), (layout.LINKS, dict(links.changes()))):
            for key, record in changed.items():
                self._put(write, family, key, record)

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
        parts = []
        for session_id in sessions:
            link = links.of_session(session_id)
            assert link is not None
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

    def _watermark_with(self, events: Sequence[StateEvent], now_ms: int) -> int:
        ahead = now_ms + self._max_future_ms
        times = [event.time // 1000 for event in events]
        return max([self._watermark, *(moment for moment in times if moment <= ahead)])

    # --- items, users, meta

    def _apply_items(self, items: Sequence[tuple[str, bytes | None]], write: WriteBatch) -> int:
        """Puts the last state of each item with a new sequence where it changed; the newest sequence."""
        sequence = self._sequence
        latest: dict[str, list[bytes | None]] = {}
        for item_id, columns in items:
            latest.setdefault(item_id, []).append(columns)
        keys = [item_id.encode() for item_id in latest]
        stored = layout.get_many(self._families[layout.ITEMS], keys)
        for key, before, states in zip(keys, stored, latest.values(), strict=True):
            known = next((columns for columns in reversed(states) if columns is not None), None)
            columns = known if known is not None else (before[ITEM.size :] if before else b"{}")
            available = states[-1] is not None
            if before is not None and before[8:] == bytes([available]) + columns:
                continue
            sequence += 1
            if before is not None:
                write.delete(ITEM.unpack_from(before)[0].to_bytes(8, "big"), self._handles[layout.ITEM_LOG])
            write.put(key, ITEM.pack(sequence, available) + columns, self._handles[layout.ITEMS])
            write.put(sequence.to_bytes(8, "big"), key, self._handles[layout.ITEM_LOG])
        return sequence

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
        }
        self._put(write, layout.META, b"state", orjson.dumps(saved))
        self._put(write, layout.META, b"moves", _I64.pack(moves))

    def _put(self, write: WriteBatch, family: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            write.delete(key, self._handles[family])
        else:
            write.put(key, value, self._handles[family])
