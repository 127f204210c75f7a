"""Events that are plainly right, told in a tenth of a model's time: most of what is posted and of what the state reads.

It vouches only for what is surely right. Whatever it cannot vouch for is judged by `app.events.schema.validate_event`,
so that there is one definition of a valid event.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.json import Encoder

from app.events.schema import (
    EVENT_FIELDS,
    EVENT_TYPE,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    MERGE,
    SCHEMA_VERSION,
    arrival_time,
    event_messages,
    parse_time,
    validate_event,
)
from app.settings import EventSettings

# Characters: bytes too, since only ASCII is vouched for.
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
_KNOWN = frozenset(EVENT_FIELDS)
_encode = Encoder().encode


class PlainEvent(Struct, gc=False, omit_defaults=True):
    """`app.events.schema.Event`, without keys that are not known."""

    event_type: str
    schema_version: Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)] | None = None
    event_id: _Id | None = None
    user_id: _Id | None = None
    session_id: _Id | None = None
    item_id: _Id | None = None
    event_time: str | None = None
    value: Annotated[float, Meta(ge=-1e300, le=1e300)] | None = None
    surface: _Id | None = None
    request_id: _Id | None = None
    variant: _Id | None = None
    bundle: _Id | None = None
    position: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    context: dict[str, Any] | None = None


@lru_cache(maxsize=1024)  # there are few
def _is_type(text: str) -> bool:
    return EVENT_TYPE.fullmatch(text) is not None and text != MERGE


def plain_event(raw: object, now_ms: int, settings: EventSettings) -> PlainEvent | None:
    """The event that a decoded JSON value is, where `validate_event` surely takes it; None: ask there. No merges.

    Args:
        raw: what the JSON was.
        now_ms: arrival in milliseconds, as for `validate_event`.
        settings: `settings.events`.
    """
    try:
        event = convert(raw, PlainEvent)
        if event.event_time is not None and (
            parse_time(event.event_time) > now_ms * 1000 + int(settings.max_future_s * 1_000_000)
        ):
            return None
    except (ValidationError, ValueError, OverflowError):
        return None
    user, session, item, name = event.user_id, event.session_id, event.item_id, event.event_id
    if (
        not _is_type(event.event_type)
        or (user is None and session is None)
        or (item is None and event.event_type not in settings.types_without_item)
    ):
        return None
    names = (user, session, item, name, event.surface, event.request_id, event.variant, event.bundle)
    for text in names:
        if text is not None and not text.isascii():
            return None
    return event


def messages_of(raw: object, now_ms: int, settings: EventSettings) -> Sequence[tuple[bytes, bytes]]:
    """As `event_messages` of `validate_event`, mostly in an eighth of the time.

    Raises:
        EventRejected: it is not valid.
    """
    event = plain_event(raw, now_ms, settings)
    if event is None or not _KNOWN.issuperset(raw):  # type: ignore[arg-type]
        return event_messages(validate_event(raw, now_ms, settings), now_ms)
    if event.event_id is None:
        event.event_id = os.urandom(16).hex()
    if event.event_time is None:
        event.event_time = arrival_time(now_ms)
    event.schema_version = SCHEMA_VERSION
    value = _encode(event)
    if len(value) > MAX_MESSAGE_BYTES:
        return event_messages(validate_event(raw, now_ms, settings), now_ms)
    return [((event.user_id or event.session_id or "").encode(), value)]
