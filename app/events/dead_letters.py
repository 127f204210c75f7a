"""What could not be read, and why: the topic `events.dlq`, written by ingest; `manta dlq replay` notes what it sent."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from app.erasure.erased import NOBODY, Erased
from app.events.letter_owners import is_erased
from app.events.messages import DeadLetter, ReplayNote
from app.events.ranges import OffsetRange, TopicBounds
from app.events.reader import range_consumer, read_range
from app.events.schema import DLQ, format_time
from app.events.topics import bounds
from app.settings import KafkaSettings

# A dead letter must fit into a message itself, in base64; of anything longer the beginning is kept.
_MAX_RAW, _MAX_KEY = 600_000, 100_000
# Before the position in the key of a note that a dead letter was sent back to its topic.
_REPLAYED = b"replayed:"


class Position(NamedTuple):
    """Where a message stood: the name of its dead letter."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def position_of(key: bytes) -> Position | None:
    """The position that a key of `events.dlq` names; None: it is no dead letter's (a note, or another's message)."""
    topic, _, rest = key.partition(b"/")
    partition, _, offset = rest.partition(b"/")
    if key.startswith(_REPLAYED) or not (partition.isdigit() and offset.isdigit()):
        return None
    return Position(topic.decode("utf-8", "replace"), int(partition), int(offset))


def dead_letter_messages(rejected: pa.Table, topic_id: str = "") -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs for `events.dlq`; the key names the source position, so that readers can tell repeats.

    Args:
        rejected: `columns.REJECTED`.
        topic_id: of the topic that they stood in; "" where the broker has none.
    """
    rows = (row for batch in rejected.to_batches(max_chunksize=1000) for row in batch.to_pylist())
    for row in rows:
        raw: bytes = row["raw"] or b""
        position = Position(row["topic"], row["partition"], row["offset"])
        letter = DeadLetter(
            **position._asdict(),
            reason=row["reason"],
            detail=row["detail"],
            time=format_time(row["record_time"] * 1000),
            key=base64.b64encode((row["key"] or b"")[: _MAX_KEY + 1]).decode(),  # more than _MAX_KEY: it was cut
            raw=base64.b64encode(raw[:_MAX_RAW]).decode(),
            raw_bytes=len(raw),
            topic_id=topic_id,
        )
        yield str(position).encode(), orjson.dumps(letter.model_dump())


def is_whole(letter: Mapping[str, Any]) -> bool:
    """Whether a dead letter has all of its message: only then it can be sent back."""
    key, raw = (base64.b64decode(letter[name]) for name in ("key", "raw"))
    return letter["raw_bytes"] == len(raw) and len(key) <= _MAX_KEY


def replay_note(letter: Mapping[str, Any], moment: str) -> tuple[bytes, bytes]:
    """(key, value) for `events.dlq`: this dead letter stands in its topic again since `moment` (RFC 3339)."""
    position = position_in(letter)
    note = ReplayNote(**position._asdict(), replayed=moment, topic_id=topic_id_of(letter))
    return _REPLAYED + str(position).encode(), orjson.dumps(note.model_dump())


def read_dead_letters(settings: KafkaSettings, erased: Erased = NOBODY) -> Iterator[dict[str, Any]]:
    """Every dead letter once, in the order of the topic; `raw` and `key` are base64.

    At one position of a topic that was made anew there may be several, of several topic ids.
    `replayed` is added: when it was last sent back to its topic, None where it waits.

    Args:
        settings: `settings.kafka`.
        erased: whose letters are left out.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    held = bounds(settings, [DLQ])[DLQ]
    replayed: dict[tuple[bytes, str], str] = {}
    for key, value in dlq_messages(settings, held):
        if key.startswith(_REPLAYED) and value:
            note = orjson.loads(value)
            replayed[key.removeprefix(_REPLAYED), topic_id_of(note)] = note["replayed"]
    seen: set[tuple[bytes, str]] = set()
    for key, value in dlq_messages(settings, held):
        if not value or position_of(key) is None:
            continue
        letter = orjson.loads(value)
        name = (key, topic_id_of(letter))
        if name not in seen:
            seen.add(name)
            if not is_erased(letter, erased):
                yield {**letter, "replayed": replayed.get(name)}


def dlq_messages(
    settings: KafkaSettings, held: TopicBounds, after: Mapping[int, int] | None = None
) -> Iterator[tuple[bytes, bytes | None]]:
    """(key, value) of what `events.dlq` holds, from the offsets `after` on; a key of None is given as b""."""
    consumer = range_consumer(settings)
    try:
        for partition, end in sorted(held.end.items()):
            start = max(held.first[partition], min((after or {}).get(partition, 0), end))
            for table in read_range(consumer, OffsetRange(DLQ, partition, start, end)):
                for batch in table.to_batches(max_chunksize=1000):
                    keys = (key or b"" for key in batch["key"].to_pylist())
                    yield from zip(keys, batch["value"].to_pylist(), strict=True)
    finally:
        consumer.close()


def list_dead_letters(settings: KafkaSettings, limit: int = 100, erased: Erased = NOBODY) -> dict[str, Any]:
    """`{"total", "by_reason", "replayed", "messages": [{topic, partition, offset, reason, time, detail}]}`.

    Those that wait, the first `limit` of them in full; `replayed` counts those that stand in their topic again.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    reasons: Counter[str] = Counter()
    replayed = 0
    messages: list[dict[str, Any]] = []
    for letter in read_dead_letters(settings, erased):
        if letter["replayed"] is not None:
            replayed += 1
            continue
        reasons[letter["reason"]] += 1
        if len(messages) < limit:
            names = ("topic", "partition", "offset", "reason", "time", "detail")
            messages.append({name: letter.get(name) for name in names})
    counts = {"total": reasons.total(), "by_reason": dict(reasons.most_common()), "replayed": replayed}
    return {**counts, "messages": messages}


def show_dead_letter(settings: KafkaSettings, wanted: Position, erased: Erased = NOBODY) -> dict[str, Any] | None:
    """The whole dead letter of one source position, of several topics that stood there the last; None: there is none.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    found = None
    for letter in read_dead_letters(settings, erased):
        if position_in(letter) == wanted:
            found = letter
    return found


def position_in(letter: Mapping[str, Any]) -> Position:
    """The source position that a dead letter names."""
    return Position(letter["topic"], letter["partition"], letter["offset"])


def topic_id_of(letter: Mapping[str, Any]) -> str:
    """Of a dead letter or a note: the id of the topic that it stood in; "": an older Manta's, or there are no ids."""
    return str(letter.get("topic_id") or "")
