"""Which columns and which decoder a topic has."""

import pyarrow as pa

from app.events.columns import EVENT_COLUMNS, Decoded, decode
from app.events.entities import ENTITY_COLUMNS, decode_entities
from app.events.impressions import IMPRESSION_COLUMNS, decode_impressions
from app.events.schema import EVENTS, IMPRESSIONS
from app.settings import EventSettings

# Topic (and lake table of the same name) to the columns of its accepted messages.
TABLES: dict[str, pa.Schema] = {EVENTS: EVENT_COLUMNS, IMPRESSIONS: IMPRESSION_COLUMNS, **ENTITY_COLUMNS}


def decode_topic(topic: str, records: pa.Table, settings: EventSettings) -> Decoded:
    """Checks and converts messages (`columns.RECORDS`) of `events`, `items`, `users` or `impressions`."""
    if topic == EVENTS:
        return decode(topic, records, settings)
    if topic == IMPRESSIONS:
        return decode_impressions(topic, records)
    return decode_entities(topic, records)
