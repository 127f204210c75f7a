"""What clients write: events, items, users and merges go to Kafka, and answer when they count."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from app.api.problems import FieldError, Problem, wanted_in
from app.errors import Conflict, NotFound
from app.events.gathering import Record
from app.events.plain import messages_of
from app.events.schema import (
    EVENTS,
    ITEMS,
    MERGE,
    SCHEMA_VERSION,
    USERS,
    Event,
    EventRejected,
    columns_message,
    event_messages,
    format_time,
    validate_item,
    validate_user,
)
from app.settings import Settings
from app.state.reader import ItemChange, Kind, StateReader, UserHistory
from app.state.sharded import ShardedState
from deployments.column_kinds import check_kinds
from deployments.freshness import Follower
from deployments.metrics import GatewayMetrics
from deployments.positions import Positions

EVENTS_WAIT_S = 1.0
EVERYWHERE_WAIT_S = 2.0
AT_ONCE = 200  # events of a list that are looked at in one turn of the loop
OWNER_S = 1.0  # how long the owner of a shard is waited for

Json = dict[str, Any]


class Sender(Protocol):
    """What sends and waits for the acknowledgement (`app.events.producer.EventProducer`)."""

    async def send(self, topic: str, messages: Sequence[Record]) -> dict[int, int]: ...


class Merging(StateReader, Protocol):
    """State that also knows merges."""

    def merged_into(self, session_id: str) -> str | None: ...


class Writes:
    """The writing half of a gateway replica."""

    def __init__(
        self,
        settings: Settings,
        state: Merging,
        follower: Follower,
        producer: Sender,
        positions: Positions,
        metrics: GatewayMetrics,
        bundled: Callable[[str], Mapping[str, Any] | None],
        kinds: Callable[[], Mapping[str, str]],
    ) -> None:
        """Args:
        bundled: the columns of an item that only a live bundle knows; None: none does.
        kinds: column name to kind in the catalogue (`column_kinds.kinds_of`).
        """
        self._settings, self._state, self._follower = settings, state, follower
        self._producer, self._positions, self._metrics = producer, positions, metrics
        self._bundled, self._kinds = bundled, kinds

    async def post_events(self, raws: Sequence[Any], wait: bool) -> Json:
        """As `app.api.service.Service.post_events`."""
        now_ms = time.time_ns() // 1_000_000
        messages: list[Record] = []
        rejected: list[Json] = []
        for index, raw in enumerate(raws):
            if index % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)  # a long list keeps nobody else waiting
            try:
                messages.extend(messages_of(raw, now_ms, self._settings.events))
            except EventRejected as error:
                rejected.append(_rejected(index, error))
        accepted = len(raws) - len(rejected)
        self._metrics.events("rejected", len(rejected))
        try:
            sent = await self._producer.send(EVENTS, messages)
        except Exception:
            self._metrics.events("unavailable", accepted)
            raise
        self._metrics.events("accepted", accepted)
        applied = None
        if wait and accepted:
            applied = not await self._positions.passed(EVENTS, sent, EVENTS_WAIT_S)
        return {"accepted": accepted, "applied": applied, "rejected": rejected}

    # Items

    async def put_item(self, item_id: str, raw: Json) -> tuple[bool, Json]:
        """As `app.api.service.Service.put_item`."""
        try:
            _, columns = validate_item(item_id, raw)
            check_kinds(columns, self._kinds())
        except EventRejected as error:
            raise _problem(error, raw) from None
        await self._fresh()
        known = self._state.item(item_id) is not None or self._bundled(item_id) is not None
        await self._send_everywhere(ITEMS, [(item_id.encode(), columns_message(columns))], f"item {item_id!r} is put")
        shown = {name: value for name, value in columns.items() if value is not None}
        return not known, {"item_id": item_id, "available": True, **shown}

    async def post_items(self, raws: Sequence[Any]) -> Json:
        """As `app.api.service.Service.post_items`."""
        messages: list[Record] = []
        rejected: list[Json] = []
        kinds = self._kinds()
        for index, raw in enumerate(raws):
            try:
                item_id, columns = validate_item(raw.get("item_id") if isinstance(raw, dict) else None, raw)
                check_kinds(columns, kinds)
                messages.append((item_id.encode(), columns_message(columns)))
            except EventRejected as error:
                rejected.append(_rejected(index, error))
        await self._send_everywhere(ITEMS, messages, f"{len(messages)} items are put")
        return {"accepted": len(messages), "rejected": rejected}

    async def get_item(self, item_id: str) -> Json:
        """As `app.api.service.Service.get_item`."""
        await self._fresh()
        change = self._item(item_id)
        return {**change.columns, "item_id": item_id, "available": change.available}

    async def delete_item(self, item_id: str) -> None:
        """As `app.api.service.Service.delete_item`."""
        await self._fresh()
        self._item(item_id)
        # Also when it is withdrawn here already: an earlier try may have ended before every node had applied it.
        await self._send_everywhere(ITEMS, [(item_id.encode(), None)], f"item {item_id!r} is withdrawn")

    def _item(self, item_id: str) -> ItemChange:
        change = self._state.item(item_id)
        if change is not None:
            return change
        columns = self._bundled(item_id)
        if columns is None:
            raise NotFound(f"no item {item_id!r}")
        return ItemChange(0, item_id, True, dict(columns))

    # Users

    async def put_user(self, user_id: str, raw: Json) -> Json:
        """As `app.api.service.Service.put_user`."""
        try:
            _, columns = validate_user(user_id, raw)
        except EventRejected as error:
            raise _problem(error, raw) from None
        await self._send_everywhere(USERS, [(user_id.encode(), columns_message(columns))], f"user {user_id!r} is put")
        return {"user_id": user_id, **{name: value for name, value in columns.items() if value is not None}}

    async def get_user(self, user_id: str) -> Json:
        """As `app.api.service.Service.get_user`."""
        await self._fresh()
        columns = self._state.user_columns([user_id])[0]
        if columns is None and not (await self._history(user_id)).version:
            raise NotFound(f"no user {user_id!r}")
        return {**(columns or {}), "user_id": user_id}

    async def history(self, user_id: str) -> Json:
        """As `app.api.service.Service.history`."""
        await self._fresh()
        found = await self._history(user_id)
        entries = zip(found.item_ids, found.event_types, found.times.tolist(), strict=True)
        items = [
            {"item_id": item, "event_type": kind, "event_time": format_time(time_ms * 1000)}
            for item, kind, time_ms in entries
        ]
        return {"user_id": user_id, "items": items, "version": found.version}

    async def _history(self, user_id: str) -> UserHistory:
        """Wherever it lies; raises StateUnavailable where its owner is down."""
        state = self._state
        key: tuple[Kind, str] = ("user", user_id)
        if isinstance(state, ShardedState):
            return (await state.gather([key], OWNER_S)).histories([key])[0]
        return state.histories([key])[0]

    async def _merged_into(self, session_id: str) -> str | None:
        if isinstance(self._state, ShardedState):
            return await self._state.merged_anywhere(session_id, OWNER_S)
        return self._state.merged_into(session_id)

    async def merge(self, user_id: str, session_id: str) -> Json:
        """As `app.api.service.Service.merge`; the next answer for the user has the session's history."""
        if await self._owner(session_id, user_id) is None:
            now_ms = time.time_ns() // 1_000_000
            event = Event(schema_version=SCHEMA_VERSION, event_type=MERGE, user_id=user_id, session_id=session_id)
            sent = await self._producer.send(EVENTS, event_messages(event, now_ms))
            await self._positions.passed(EVENTS, sent, EVENTS_WAIT_S)
            await self._owner(session_id, user_id)  # another user's merge may have been on its way
        return {"user_id": user_id, "session_id": session_id}

    async def _owner(self, session_id: str, user_id: str) -> str | None:
        """The user, where the session is merged; raises Conflict where that is another one."""
        await self._fresh()
        owner = await self._merged_into(session_id)
        if owner not in (None, user_id):
            raise Conflict(f"session {session_id!r}: found it merged into another user, wanted one that is not merged")
        return owner

    # Both

    async def _fresh(self) -> None:
        if self._follower.behind():
            await self._follower.refresh()

    async def _send_everywhere(self, topic: str, messages: Sequence[Record], done: str) -> None:
        late = await self._positions.passed(topic, await self._producer.send(topic, messages), EVERYWHERE_WAIT_S)
        if late:
            detail = (
                f"{done} and stands, but not applied after {EVERYWHERE_WAIT_S:g} s by {', '.join(late)}; retry safely"
            )
            raise Problem(503, detail, retry_after_s=1, more={"late": late})


def _rejected(index: int, error: EventRejected) -> Json:
    more = {"field": error.field} if error.field is not None else {}
    return {"index": index, "code": error.code, "message": str(error), **more}


def _problem(error: EventRejected, raw: Json) -> Problem:
    found = raw.get(error.field) if error.field is not None else None
    return Problem(422, str(error), [FieldError(error.field or "body", found, wanted_in(str(error)))])
