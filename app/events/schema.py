"""The messages of Manta's topics: names, versions, fields, identity. One rule set for the edge, ingest and state."""

import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import model_validator as check_model

from app.errors import MantaError
from app.settings import EventSettings

EVENTS = "events"
ITEMS = "items"
USERS = "users"
IMPRESSIONS = "impressions"
DLQ = "events.dlq"
PUBLISHED = "bundles.published"
COMPACTED = frozenset({ITEMS, USERS})

# What stands for topic and partition of rows that came into the lake by an import, not over Kafka. Their offsets count
# on from import to import, so that (event time, partition, offset) orders them too: before a message of the same time.
IMPORTED = "import"
IMPORT_PARTITION = -1

SCHEMA_VERSION = 1
MERGE = "merge"
REMOVE = "remove"
IMPRESSION = "impression"

MAX_ID_BYTES = 128
MAX_MESSAGE_BYTES = 1_000_000

# RFC 3339: date, T, time, zone; a leap second is read as the second after it.
RFC3339 = re.compile(
    r"^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))$", re.ASCII
)
EVENT_TYPE = re.compile(r"^[a-z0-9_.-]{1,64}$", re.ASCII)

ColumnValue = str | bool | int | float | list[str] | list[float] | None


class EventRejected(MantaError):
    """A message that breaks the contract.

    Attributes:
        code: `json`, `type`, `missing`, `range`, `future`, `version`, `key` or `too_large`.
        message: what was found and what was wanted.
        field: the field, where one is to blame.
    """

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


class Identity(NamedTuple):
    """What counts once: who and which event."""

    owner: str
    event_id: str


@lru_cache(maxsize=4096)  # checked as an event comes in, and asked for again just after; a batch's times repeat
def parse_time(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time; digits after the sixth are cut off.

    Raises:
        ValueError: no RFC 3339 time with a zone, no such day or hour, or outside the years 1 to 9999; it says what was
            wanted.
    """
    plain = plain_time(text)
    return any_time(text) if plain is None else plain


def any_time(text: str) -> int:
    """`parse_time` of whatever RFC 3339 lets through."""
    found = RFC3339.fullmatch(text)
    if found is None:
        raise ValueError("an RFC 3339 time with a zone, such as 2026-01-31T12:00:00Z")
    year, month, day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = found.groups()
    leap = second == "60"
    at = (int(year), int(month), int(day), int(hour), int(minute), 59 if leap else int(second))
    try:
        moment = datetime(*at, tzinfo=UTC)
    except ValueError:
        raise ValueError("a day and a time of day that there are") from None
    if sign and (int(zone_hours) > 23 or int(zone_minutes) > 59):
        raise ValueError("a zone between -23:59 and +23:59")
    shift = (int(zone_hours) * 60 + int(zone_minutes)) * 60 if sign else 0
    seconds = int((moment - _EPOCH).total_seconds()) + leap - (-shift if sign == "-" else shift)
    micros = seconds * 1_000_000 + (0 if leap else int((fraction or "0")[:6].ljust(6, "0")))
    if not _FIRST_US <= micros <= _LAST_US:
        raise ValueError("a time between the years 1 and 9999")
    return micros


def plain_time(text: str) -> int | None:
    """`parse_time` in a quarter of its time, of what is mostly written: `2026-01-31T12:00:00Z`, or with a fraction."""
    marks = text[4:20:3]
    if marks != "--T::Z" if len(text) == 20 else (marks != "--T::." or text[-1] != "Z" or not 21 < len(text) < 28):
        return None
    try:
        since = datetime.fromisoformat(text) - _EPOCH
    except ValueError:
        return None
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return micros if micros <= _LAST_US else None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US = int((datetime(1, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) * 1_000_000
_LAST_US = int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH).total_seconds()) * 1_000_000


def format_time(micros: int) -> str:
    """RFC 3339 in UTC with microseconds where there are any."""
    seconds, rest = divmod(micros, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return f"{text}.{rest:06d}Z" if rest else f"{text}Z"


@lru_cache(maxsize=8)  # the events of a request arrive together
def arrival_time(now_ms: int) -> str:
    """The event time of what arrives without one."""
    return format_time(now_ms * 1000)


def _bounded(value: str) -> str:
    short = 0 < len(value) <= MAX_ID_BYTES // 4  # whatever its characters
    if not short and not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise ValueError(f"1 to {MAX_ID_BYTES} bytes of UTF-8")
    return value


def _time(value: object) -> object:
    if not isinstance(value, str):
        return value  # the strict type says what is wrong
    parse_time(value)
    return value


def _type(value: str) -> str:
    if EVENT_TYPE.fullmatch(value) is None:
        raise ValueError("1 to 64 characters out of a-z 0-9 _ . -")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a finite number")
    return value


Id = Annotated[str, AfterValidator(_bounded), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES})]
Time = Annotated[str, BeforeValidator(_time), Field(json_schema_extra={"format": "date-time"})]
Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class Event(BaseModel):
    """Something a user did to an item. Unknown keys are kept and reach the lake; null is the same as absent."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    schema_version: int = Field(SCHEMA_VERSION, ge=1, description="Version of this message; absent: 1.")
    event_id: Id | None = Field(None, description="Same (user or session, event_id) counts once.")
    user_id: Id | None = Field(None, description="The user; this or `session_id` is needed.")
    session_id: Id | None = Field(None, description="The session of a visitor.")
    item_id: Id | None = Field(None, description="The item; required but for types without one.")
    event_type: Annotated[str, AfterValidator(_type)] = Field(
        description="`impression`, `click`, `purchase`, `rating`, `remove`, `merge` or any other.",
        json_schema_extra={"pattern": EVENT_TYPE.pattern},
    )
    event_time: Time | None = Field(None, description="RFC 3339; absent: the time of arrival.")
    value: Finite | None = Field(None, description="Rating, price, dwell seconds.")
    surface: Id | None = Field(None, description="What it was a reaction to: the surface.")
    request_id: Id | None = Field(None, description="What it was a reaction to: the answer.")
    variant: Id | None = Field(None, description="What it was a reaction to: the variant.")
    bundle: Id | None = Field(None, description="What it was a reaction to: the bundle.")
    position: int | None = Field(None, ge=1, le=1_000_000, description="Place in the answer, from 1.")
    context: dict[str, Any] | None = Field(None, description="Free keys, kept into the lake.")

    @check_model(mode="after")
    def _somebody(self) -> "Event":
        if self.user_id is None and self.session_id is None:
            raise ValueError("missing: user_id or session_id")
        if self.event_type == MERGE and (self.user_id is None or self.session_id is None):
            raise ValueError("missing: a merge has both user_id and session_id")
        return self

    @property
    def owner(self) -> str:
        """Whose event it is: the user alone where both ids are there."""
        return self.user_id or self.session_id or ""

    @property
    def identity(self) -> Identity | None:
        """None without an event id (then topic, partition and offset are the identity)."""
        return Identity(self.owner, self.event_id) if self.event_id else None

    @property
    def time_us(self) -> int | None:
        """Event time in microseconds since 1970; None: the arrival."""
        return parse_time(self.event_time) if self.event_time else None


_validated: Callable[[object], Event] = Event.__pydantic_validator__.validate_python  # half of `model_validate`'s cost


# Every key of the wire that is a column of its own; all others go into the lake's `context` as `{key: value}`.
EVENT_FIELDS = tuple(Event.model_fields)


def validate_event(raw: object, now_ms: int, settings: EventSettings) -> Event:
    """The event that `raw` (a decoded JSON object) is; keys that are null are left out.

    Args:
        raw: what the JSON was.
        now_ms: arrival in milliseconds: the record's timestamp, or now at the edge.
        settings: `settings.events`.

    Raises:
        EventRejected: with code and message, what was found and what was wanted.
    """
    if not isinstance(raw, dict):
        raise EventRejected("type", f"found {_kind(raw)}, wanted an object")
    check_version(raw.get("schema_version"))
    if None in raw.values():
        raw = {key: value for key, value in raw.items() if value is not None}
    try:
        event = _validated(raw)
    except ValidationError as error:
        raise refusal(error) from None
    if event.item_id is None and event.event_type not in settings.types_without_item:
        raise EventRejected("missing", f"item_id: an event of type {event.event_type} needs one", "item_id")
    moment = event.time_us
    if moment is not None and moment > now_ms * 1000 + int(settings.max_future_s * 1_000_000):
        raise EventRejected(
            "future",
            f"event_time: found {event.event_time}, wanted at most {settings.max_future_s:g} s after arrival",
            "event_time",
        )
    return event


def event_messages(event: Event, now_ms: int) -> list[tuple[bytes, bytes]]:
    """(key, value) pairs for the topic `events`: one, or two for a merge (under both keys).

    An absent event id is made here, an absent time is `now_ms`.

    Raises:
        EventRejected: code `too_large`.
    """
    # What `model_dump(exclude_none=True)` says of plain values, in a third of its time.
    body = {key: value for key, value in event.__dict__.items() if value is not None}
    body |= event.__pydantic_extra__ or {}
    if event.event_id is None:
        body["event_id"] = uuid.uuid4().hex
    if event.event_time is None:
        body["event_time"] = arrival_time(now_ms)
    body["schema_version"] = SCHEMA_VERSION
    value = encode_message(body)
    keys = [event.user_id, event.session_id] if event.event_type == MERGE else [event.owner]
    return [(key.encode(), value) for key in keys if key]


def validate_columns(raw: object, id_field: str) -> dict[str, ColumnValue]:
    """The columns of an item (`id_field` "item_id") or a user: text, number, truth, list of text or of numbers, null.

    `id_field` and `schema_version` are no columns and are left out.

    Raises:
        EventRejected: wrong type or size.
    """
    if not isinstance(raw, dict):
        raise EventRejected("type", f"found {_kind(raw)}, wanted an object of columns")
    check_version(raw.get("schema_version"))
    columns: dict[str, ColumnValue] = {}
    for name, value in raw.items():
        if name in (id_field, "schema_version"):
            continue
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= MAX_ID_BYTES:
            raise EventRejected("range", f"column {name!r}: wanted a name of 1 to {MAX_ID_BYTES} bytes", str(name))
        columns[name] = _column(name, value)
    encode_message(columns)
    return columns


def validate_item(item_id: object, raw: object) -> tuple[str, dict[str, ColumnValue]]:
    """(id, columns) of an item.

    Raises:
        EventRejected: as `validate_columns`, or a wrong id, or `available` (what is read may be put again) is not true.
    """
    name, columns = validate_id(item_id, "item_id"), validate_columns(raw, "item_id")
    available = columns.pop("available", None)
    if available is not None and available is not True:
        raise EventRejected("range", "available: wanted true or nothing; DELETE withdraws an item", "available")
    return name, columns


def validate_user(user_id: object, raw: object) -> tuple[str, dict[str, ColumnValue]]:
    """(id, columns) of a user.

    Raises:
        EventRejected: as `validate_columns`, or a wrong id.
    """
    return validate_id(user_id, "user_id"), validate_columns(raw, "user_id")


def validate_id(value: object, field: str) -> str:
    """A text of 1 to 128 bytes.

    Raises:
        EventRejected: it is not.
    """
    if not isinstance(value, str):
        raise EventRejected(
            "missing" if value is None else "type", f"{field}: found {_kind(value)}, wanted text", field
        )
    try:
        return _bounded(value)
    except ValueError as error:
        raise EventRejected("range", f"{field}: found {short(value)}, wanted {error}", field) from None


def columns_message(columns: Mapping[str, ColumnValue]) -> bytes:
    """The value on the topics `items` and `users`; the id is the key, None as value withdraws."""
    return encode_message({"schema_version": SCHEMA_VERSION, **columns})


def read_columns(key: bytes | None, value: bytes, id_field: str) -> tuple[str, dict[str, ColumnValue] | None]:
    """(id, columns) of a message on `items` or `users`; columns None: withdrawn.

    Raises:
        EventRejected: codes `key` and `json` besides those of `validate_columns`.
    """
    try:
        name = validate_id((key or b"").decode(), id_field)
    except (UnicodeDecodeError, EventRejected):
        raise EventRejected("key", f"{id_field}: found {key!r:.60}, wanted a key of 1 to 128 bytes of UTF-8") from None
    if not value or value.strip() == b"null":
        return name, None
    try:
        raw = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise EventRejected("json", f"not JSON: {error}") from None
    if isinstance(raw, dict):
        check_version(raw.get("schema_version"))
    if isinstance(raw, dict) and raw.get(id_field, name) != name:
        raise EventRejected("key", f"{id_field}: found {raw[id_field]!r:.60}, wanted the message's key")
    return name, validate_columns(raw, id_field)


class ShownItem(BaseModel):
    """One item of an answer."""

    model_config = ConfigDict(extra="allow")

    item_id: Id
    position: int = Field(ge=1)
    score: float | None = None
    propensity: float | None = Field(None, description="Probability that this item stood here.")
    sources: list[str] | None = Field(None, description="Families that brought it.")


class Impression(BaseModel):
    """One answer as it was given, on the topic `impressions` (key: user, else session, else request id)."""

    model_config = ConfigDict(extra="allow")

    schema_version: int = Field(SCHEMA_VERSION, ge=1)
    request_id: Id
    surface: Id
    variant: Id | None = None
    bundle: Id | None = None
    user_id: Id | None = None
    session_id: Id | None = None
    time: Time = Field(description="RFC 3339: when the answer was given.")
    degraded: str | None = None
    items: list[ShownItem]
    context: dict[str, Any] | None = None
    feature_names: list[str] | None = Field(None, description="Of the ranker's features, where `features` are.")
    features: list[list[float]] | None = Field(
        None, description="What the ranker saw of each item, in the order of `items`: float32, a number a name."
    )

    @property
    def key(self) -> bytes:
        return (self.user_id or self.session_id or self.request_id).encode()


def check_version(found: object) -> None:
    """Refuses what a newer Manta wrote, before anything else of it is judged: its rules are not known here.

    Raises:
        EventRejected: code `version`.
    """
    if isinstance(found, int) and not isinstance(found, bool) and found > SCHEMA_VERSION:
        raise EventRejected(
            "version", f"schema_version: found {found}, wanted at most {SCHEMA_VERSION}", "schema_version"
        )


def _column(name: str, value: object) -> ColumnValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, int | float):
        return _finite(name, value)
    if isinstance(value, list):
        if all(isinstance(entry, str) for entry in value):
            return [_text(name, entry) for entry in value]
        if all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value):
            return [float(_finite(name, entry)) for entry in value]
        kinds = " and ".join(sorted({_kind(entry) for entry in value}))
        raise EventRejected("type", f"{name}: found a list with {kinds}, wanted a list of text or of numbers", name)
    raise EventRejected(
        "type", f"{name}: found {_kind(value)}, wanted text, number, truth value, list of text or of numbers", name
    )


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value) or abs(value) > 1e300 or (isinstance(value, int) and abs(value) >= 2**63):
        raise EventRejected("range", f"{name}: found {value!r:.40}, wanted a finite number", name)
    return value


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EventRejected("type", f"{name}: found broken UTF-16, wanted text", name) from None
    return value


def encode_message(body: Mapping[str, Any]) -> bytes:
    """A message's value.

    Raises:
        EventRejected: codes `type` and `too_large`.
    """
    try:
        encoded = orjson.dumps(body)
    except TypeError as error:  # integers over 64 bits, broken text
        raise EventRejected("type", f"not storable as JSON: {error}") from None
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise EventRejected("too_large", f"found {len(encoded)} bytes, wanted at most {MAX_MESSAGE_BYTES}")
    return encoded


def refusal(error: ValidationError) -> EventRejected:
    """What is wrong first, with a code that says of which kind it is."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    kind = str(first["type"])
    if kind == "missing":
        return EventRejected("missing", f"{field}: missing", field)
    wanted = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if wanted.startswith("missing: "):
        return EventRejected("missing", wanted, field)
    is_type = kind.endswith("_type") or kind in ("int_from_float", "string_unicode")
    message = f"{field}: found {short(first.get('input'))}, wanted {wanted}"
    return EventRejected("type" if is_type else "range", message, field)


def short(value: object) -> str:
    """A value as a message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
