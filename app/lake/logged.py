"""What the lake has of answers with their features, and the reactions to them: bounded, whatever the tables' size."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.events.schema import EVENTS, IMPRESSIONS
from app.lake.scan import pieces
from app.lake.tables import TABLES, Lake

ANSWER_COLUMNS = ("request_id", "surface", "time", "items", "feature_names", "features")
REACTION_COLUMNS = ("request_id", "item_id", "event_type", "event_time")


def logged_answers(lake: Lake, most: int) -> pa.Table:
    """ANSWER_COLUMNS of the newest `most` answers that carry features, oldest first."""
    kept = _schema(IMPRESSIONS, ANSWER_COLUMNS).empty_table()
    for piece in _pieces(lake, IMPRESSIONS, ANSWER_COLUMNS):
        some = piece.filter(pc.and_(pc.is_valid(piece["features"]), pc.is_valid(piece["feature_names"])))
        kept = pa.concat_tables([kept, some])
        if len(kept) > 2 * most:
            kept = _newest(kept, most)
    return _newest(kept, most)


def reactions(lake: Lake, answers: pa.Table) -> pa.Table:
    """REACTION_COLUMNS of the events that name one of these answers."""
    ids = answers["request_id"].combine_chunks()
    found = _pieces(lake, EVENTS, REACTION_COLUMNS) if len(ids) else iter(())
    kept = [piece.filter(pc.is_in(piece["request_id"], value_set=ids)) for piece in found]
    return pa.concat_tables([_schema(EVENTS, REACTION_COLUMNS).empty_table(), *kept])


def _pieces(lake: Lake, table: str, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """The table's rows, a few files in memory at once; none where it is from before these columns."""
    source = lake.table(table)
    if source.current_snapshot() is None or not set(columns) <= {field.name for field in source.schema().fields}:
        return
    schema = _schema(table, columns)
    for piece in pieces(source.scan(selected_fields=columns)):
        yield piece.select(columns).cast(schema)


def _schema(table: str, columns: tuple[str, ...]) -> pa.Schema:
    return pa.schema([TABLES[table].field(name) for name in columns])


def _newest(answers: pa.Table, most: int) -> pa.Table:
    order = np.asarray(pc.sort_indices(answers, [("time", "ascending"), ("request_id", "ascending")]))
    return answers.take(pa.array(order[-most:]))
