"""Rows of files, object stores and databases through Kafka, by the rules of any other message."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from app.erasure.erased import ErasedNow, nobody
from app.events.checked_rows import RowReader
from app.events.import_sources import Source
from app.events.producer import EventProducer
from app.events.schema import EVENTS, columns_message
from app.settings import Settings

_DELIVERY_S = 60.0
Message = tuple[bytes, bytes]


def import_rows(
    source: Source,
    kind: str,
    column_map: Mapping[str, str],
    settings: Settings,
    *,
    dry_run: bool = False,
    refused_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
    erased: ErasedNow = nobody,
) -> dict[str, Any]:
    """Sends every row of a source to its topic and waits until all are acknowledged.

    Events: ids may be numbers; `event_time` text (RFC 3339), a timestamp, or seconds (above 1e11: milliseconds) since
    1970; without `event_type` a row with a value is a `rating`, any other a `click`; without `event_id` the row's
    content, and its place where the source has an order, make one, so that the same rows sent twice count once.

    Args:
        source: where the rows are.
        kind: `events`, `items` or `users`.
        column_map: name there to name here; others keep theirs.
        settings: with the broker's address; the topics exist.
        dry_run: read and check everything, send nothing (no broker is needed).
        refused_file: gets every refused row as JSON lines `{"row", "reason", "detail"}`.
        progress: called with the number of rows read so far.
        erased: who was erased; what is about them, and from before, is refused.

    Returns:
        As `RowReader.report`; in a dry run `sent` is what would have been.

    Raises:
        MantaError: the source cannot be read.
        BrokerUnavailable: the broker cannot be reached.
    """
    with RowReader(
        source, kind, column_map, settings.events, refused_file=refused_file, progress=progress, erased=erased
    ) as rows:
        messages = _event_messages(rows) if kind == EVENTS else _entity_messages(rows)
        if dry_run:
            for _ in messages:
                pass
        else:
            producer = EventProducer(settings.kafka, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
            try:
                producer.send_blocking(kind, messages)
            finally:
                producer.close()
        return rows.report(dry_run=dry_run)


def _event_messages(rows: RowReader) -> Iterator[Message]:
    for piece in rows.events():
        owners = pc.coalesce(piece.events["user_id"], piece.events["session_id"]).cast(pa.binary())
        yield from zip(owners.to_pylist(), piece.values.to_pylist(), strict=True)


def _entity_messages(rows: RowReader) -> Iterator[Message]:
    for piece in rows.entities():
        for name, columns in piece:
            yield name.encode(), columns_message(columns)
