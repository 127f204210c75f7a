"""CSV as it comes: every cell is text at first. A row that does not fit is refused by itself, and stops no other.

The first rows of a column say whether its cells are numbers, truth values or text; a cell that is not of its column's
kind stays text (which the rules of events may refuse). So neither where a block ends nor one odd cell changes what
becomes of other rows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from app.events.import_columns import IDS, json_cells, local_times, text_cells, time_cells

Kind = Literal["number", "truth", "text"]
Refused = deque[tuple[int, "Unreadable"]]  # by place in the file, from 0, the header not counted
_TEXTS = frozenset((*IDS, "event_type", "context"))
_FIELDS_OF_NUMBERS = frozenset(("value", "position", "schema_version"))
_MOSTLY = 0.9
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"  # longer ones are names, and so is what begins with 0
_NUMBER = r"^-?((0|[1-9]\d*)?\.\d*|(0|[1-9]\d*)(\.\d*)?[eE][+-]?\d+)$"
_ZIP = r"^-?0\d"
_BLOCK_BYTES = 4_000_000
_NOTHING = ["", "NULL", "null", "NaN"]


class Unreadable(NamedTuple):
    """A row that is none.

    Attributes:
        reason: the code.
        detail: what was found and what was wanted.
    """

    reason: str
    detail: str


def csv_rows(open_stream: Callable[[], Any], column_map: Mapping[str, str]) -> Iterator[pa.Table | list[Unreadable]]:
    """The rows of a file with a header, in their order.

    Args:
        open_stream: opens it for reading, from its beginning (it is opened twice).
        column_map: name there to name here: ids are text, times may be numbers.

    Raises:
        pa.ArrowException: there is no header, or the text is not UTF-8.
    """
    with open_stream() as stream:
        names = _open(stream, deque(), []).schema.names
    kinds: dict[str, Kind] = {}
    with open_stream() as stream:
        refused: Refused = deque()
        place = 0
        for batch in _open(stream, refused, names):
            rows = pa.Table.from_batches([batch])
            kinds = kinds or {name: _kind(column_map.get(name, name), rows[name]) for name in names}
            columns = [_read(column_map.get(name, name), rows[name].combine_chunks(), kinds[name]) for name in names]
            for piece in _in_order(pa.table(columns, names), refused, place):
                yield piece
                place += len(piece)
        if refused:
            yield [one for _, one in refused]


def _open(stream: Any, refused: Refused, texts: list[str]) -> Any:
    def refuse(row: Any) -> str:
        found = f"found {row.actual_columns} columns, wanted {row.expected_columns}: {row.text[:60]!r}"
        refused.append((row.number - 2, Unreadable("columns", found)))  # it counts from 1, the header too
        return "skip"

    return pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, null_values=_NOTHING, column_types=dict.fromkeys(texts, pa.string())
        ),
    )


def _in_order(rows: pa.Table, refused: Refused, place: int) -> Iterator[pa.Table | list[Unreadable]]:
    """The rows of a block, and what was refused between them, as they stand in the file from `place` on."""
    while refused and refused[0][0] < place + len(rows):
        if count := refused[0][0] - place:
            yield rows.slice(0, count)
            rows, place = rows.slice(count), place + count
        run = []
        while refused and refused[0][0] == place:
            run.append(refused.popleft()[1])
            place += 1
        yield run
    if len(rows):
        yield rows


def _kind(name: str, cells: pa.ChunkedArray) -> Kind:
    """What nearly all of the first cells are; numbers where there is nothing yet."""
    if name in _FIELDS_OF_NUMBERS:
        return "number"
    if name in _TEXTS or pc.any(pc.match_substring_regex(cells, _ZIP)).as_py():
        return "text"
    first = cells.combine_chunks()
    enough = _MOSTLY * (len(first) - first.null_count)
    if len(first) - _numbers(first).null_count >= enough:
        return "number"
    return "truth" if len(first) - _truths(first).null_count >= enough else "text"


def _read(name: str, cells: pa.StringArray, kind: Kind) -> pa.Array:
    if name == "event_time":
        times = pc.coalesce(time_cells(_numbers(cells).cast(pa.float64())), local_times(cells))
        return json_cells(pc.coalesce(times, text_cells(cells)))
    if kind == "text":
        return cells
    found = _numbers(cells) if kind == "number" else _truths(cells)
    return json_cells(pc.coalesce(found, text_cells(cells)))


def _numbers(cells: pa.StringArray) -> pa.StringArray:
    """As JSON writes them; null where a cell is no number."""
    cells = pc.utf8_trim_whitespace(cells)
    integers = pc.if_else(pc.match_substring_regex(cells, _INTEGER), cells, None).cast(pa.int64())
    others = pc.if_else(pc.match_substring_regex(cells, _NUMBER), cells, None)
    others = pc.if_else(pc.equal(others, "."), None, others).cast(pa.float64())
    finite = pc.if_else(pc.is_finite(others), others, None)
    return pc.coalesce(integers.cast(pa.string()), finite.cast(pa.string()))


def _truths(cells: pa.StringArray) -> pa.StringArray:
    """`true` or `false`; null where a cell is neither."""
    lower = pc.utf8_lower(cells)
    return pc.if_else(pc.is_in(lower, value_set=pa.array(["true", "false"])), lower, None)
