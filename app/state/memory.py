"""The state in memory: for the in-process door and for tests. It folds everything anew, which the writer must equal."""

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import orjson

from app.events.schema import MERGE
from app.events.versions import VersionPlace, stays
from app.settings import Settings
from app.state.batch import Batch, StateEvent, counts_already, session_key, user_key
from app.state.history import Entry, fold, read
from app.state.merging import Link, fold_view
from app.state.reader import ItemChange, Kind, UserHistory
from app.time_to_live import in_ms, oldest_counted

_DAY_MS = 86_400_000


def accepted(events: Sequence[StateEvent], horizon_ms: int) -> list[StateEvent]:
    """Events in the order they lie in the log, each identity once within the horizon of the one that counts."""
    seen: dict[bytes, list[tuple[int]]] = {}
    kept = []
    for event in events:
        identity = event.identity
        if identity is not None:
            arrivals = seen.setdefault(identity, [])
            if counts_already(event, arrivals, horizon_ms):
                continue
            arrivals.append((event.record_time,))
        kept.append(event)
    return kept


def fold_everything(events: Sequence[StateEvent], max_history: int, horizon_ms: int) -> dict[bytes, bytes]:
    """Key → record after all events, as one pure function of them: the definition that the writer is tested against.

    A reader leaves out what is expired (`app.state.history.read`); the writer may have dropped that already.
    """
    entries: dict[bytes, list[Entry]] = {}
    links: dict[str, Link] = {}
    for event in accepted(events, horizon_ms):
        if event.event_type == MERGE:
            link = Link.of_event(event)
            session_id = event.session_id or ""
            links[session_id] = min(link, links.get(session_id, link))
        elif event.entry is not None:
            entries.setdefault(event.key, []).append(event.entry)
    records = {key: fold(found, max_history) for key, found in entries.items()}
    sessions_of: dict[str, list[str]] = {}
    for session_id, link in links.items():
        sessions_of.setdefault(link.user_id, []).append(session_id)
    views = {
        user_key(user_id): fold_view(
            records.get(user_key(user_id)),
            [(records.get(session_key(session_id)), links[session_id]) for session_id in sessions],
            max_history,
        )
        for user_id, sessions in sessions_of.items()
    }
    return records | views


class MemoryState:
    """A `StateReader` that holds everything itself; `apply` takes what the writer's store takes."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self._max_history = settings.state.max_history
        self._horizon_ms = int(settings.events.dedup_days * _DAY_MS)
        self._ttl_ms = in_ms(settings.state.ttl_days)
        self._events: list[StateEvent] = []
        self._records: dict[bytes, bytes] = {}
        self._stale = False
        self._items: dict[str, ItemChange] = {}
        self._item_places: dict[str, VersionPlace | None] = {}
        self._users: dict[str, dict[str, Any]] = {}
        self._offsets: dict[tuple[str, int], int] = {}
        self._watermark = 0
        self._sequence = 0

    def apply(self, batch: Batch) -> None:
        """Takes messages in."""
        self._events += batch.events
        self._stale = self._stale or bool(batch.events)
        now = int(time.time() * 1000)
        for (item_id, columns), place in zip_longest(batch.items, batch.item_places):
            held = self._item_places.get(item_id)
            if place is None or held is None or not stays(held, place, now):
                self._item_places[item_id] = place
                self._put_item(item_id, columns)
        for user_id, columns in batch.users:
            if columns is None:
                self._users.pop(user_id, None)
            else:
                self._users[user_id] = orjson.loads(columns)
        self._offsets.update(batch.offsets)

    def put_item(self, item_id: str, columns: Mapping[str, Any] | None) -> None:
        """Puts an item, or withdraws it (None)."""
        self._put_item(item_id, None if columns is None else orjson.dumps(dict(columns)))

    def add(
        self, user_id: str, item_id: str, *, event_type: str = "click", time_ms: int = 0, value: float | None = None
    ) -> None:
        """One more event of a user, for tests and trying out."""
        number = float("nan") if value is None else value
        offset = len(self._events)
        self.apply(
            Batch(
                events=[
                    StateEvent(0, offset, time_ms, None, user_id, None, item_id, event_type, time_ms * 1000, number)
                ]
            )
        )

    def _put_item(self, item_id: str, columns: bytes | None) -> None:
        before = self._items.get(item_id)
        values = orjson.loads(columns) if columns is not None else (before.columns if before else {})
        if before is not None and (before.available, before.columns) == (columns is not None, values):
            return
        self._sequence += 1
        self._items.pop(item_id, None)
        self._items[item_id] = ItemChange(self._sequence, item_id, columns is not None, values)

    def _folded(self) -> dict[bytes, bytes]:
        if self._stale:
            counted = accepted(self._events, self._horizon_ms)
            self._records, self._stale = fold_everything(counted, self._max_history, self._horizon_ms), False
            self._watermark = max([0, *(event.time // 1000 for event in counted)])
        return self._records

    # --- the reader's side

    def behind(self) -> bool:
        return False

    def catch_up(self) -> None:
        """Nothing to do: what was applied is visible."""

    def histories(self, keys: Sequence[tuple[Kind, str]]) -> list[UserHistory]:
        records = self._folded()
        since = None if self._ttl_ms is None else oldest_counted(self._watermark, self._ttl_ms)
        names = [user_key(name) if kind == "user" else session_key(name) for kind, name in keys]
        return [read(records.get(name), since) for name in names]

    def user_columns(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        return [self._users.get(user_id) for user_id in user_ids]

    def item(self, item_id: str) -> ItemChange | None:
        return self._items.get(item_id)

    def item_changes(self, after: int) -> list[ItemChange]:
        return [change for change in self._items.values() if change.sequence > after]

    def item_sequence(self) -> int:
        return self._sequence

    def merged_into(self, session_id: str) -> str | None:
        links = [
            Link.of_event(event)
            for event in self._events
            if event.event_type == MERGE and event.session_id == session_id
        ]
        return min(links).user_id if links else None

    def applied(self, topic: str, partition: int) -> int:
        return self._offsets.get((topic, partition), 0)

    def as_of(self) -> int:
        self._folded()
        return self._watermark
