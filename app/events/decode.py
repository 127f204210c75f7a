"""Which columns and which decoder a topic has."""

import pyarrow as pa

from app.events.columns import EVENT_COLUMNS, REJECTED, Decoded, decode
from app.events.entities import ENTITY_COLUMNS, decode_entities
from app.events.impressions import IMPRESSION_COLUMNS, decode_impressions
from app.events.rows import FIRST_ARRIVAL, LAST_ARRIVAL, odd_arrival, rejection
from app.events.schema import EVENTS, IMPRESSIONS, EventRejected
from app.settings import EventSettings

# Topic (and lake table of the same name) to the columns of its accepted messages.
TABLES: dict[str, pa.Schema] = {EVENTS: EVENT_COLUMNS, IMPRESSIONS: IMPRESSION_COLUMNS, **ENTITY_COLUMNS}


def decode_topic(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    """Checks and converts messages (`columns.RECORDS`) of `events`, `items`, `users` or `impressions`.

    None stops the others: what the columns cannot hold, though the rules let it through, is refused as `type`.
    """
    arrivals = records["record_time"].to_numpy()
    odd = (arrivals < FIRST_ARRIVAL) | (arrivals > LAST_ARRIVAL)
    if odd.any():
        found = _decode_storable(topic, records.filter(pa.array(~odd)), settings)
        refused = [
            rejection(topic, record, odd_arrival(record["record_time"]))
            for record in records.filter(pa.array(odd)).to_pylist()
        ]
        return Decoded(found.events, pa.concat_tables([found.rejected, pa.Table.from_pylist(refused, REJECTED)]))
    return _decode_storable(topic, records, settings)


def _decode_storable(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    try:
        return _decode(topic, records, settings)
    except MemoryError:
        raise
    except (pa.ArrowException, OverflowError) as error:
        if len(records) == 1:
            (record,) = records.to_pylist()
            rejected = [rejection(topic, record, EventRejected("type", f"not storable: {error}"))]
            return Decoded(TABLES[topic].empty_table(), pa.Table.from_pylist(rejected, REJECTED))
    half = len(records) // 2
    parts = [_decode_storable(topic, part, settings) for part in (records.slice(0, half), records.slice(half))]
    return Decoded(*(pa.concat_tables([getattr(part, name) for part in parts]) for name in ("events", "rejected")))


def _decode(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    if topic == EVENTS:
        return decode(topic, records, settings)
    if topic == IMPRESSIONS:
        return decode_impressions(topic, records, settings.max_future_s)
    return decode_entities(topic, records)
