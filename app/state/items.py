"""Items as the state keeps them: the last state of each, and a log of who changed last, by rising sequences."""

import struct
from collections.abc import Callable, Sequence

import orjson

from app.state.layout import ITEM_LOG, ITEMS, Changes
from app.state.reader import ItemChange

_ITEM = struct.Struct("<QB")  # sequence, available; the columns' JSON follows


def changed_items(
    items: Sequence[tuple[str, bytes | None]], stored: Callable[[list[bytes]], list[bytes | None]], sequence: int
) -> tuple[Changes, int]:
    """What to write so that each item is as it was given last, with a new sequence where that is a change.

    Args:
        items: (id, columns as JSON), None: withdrawn, which keeps the columns that were there.
        stored: the records of items by their keys.
        sequence: the newest so far.

    Returns:
        The changes, and the newest sequence.
    """
    latest: dict[str, list[bytes | None]] = {}
    for item_id, columns in items:
        latest.setdefault(item_id, []).append(columns)
    keys = [item_id.encode() for item_id in latest]
    changes: Changes = {}
    for key, before, states in zip(keys, stored(keys), latest.values(), strict=True):
        known = next((columns for columns in reversed(states) if columns is not None), None)
        columns = known if known is not None else (before[_ITEM.size :] if before else b"{}")
        available = states[-1] is not None
        if before is not None and before[8:] == bytes([available]) + columns:
            continue
        sequence += 1
        if before is not None:
            changes[ITEM_LOG, _ITEM.unpack_from(before)[0].to_bytes(8, "big")] = None
        changes[ITEMS, key] = _ITEM.pack(sequence, available) + columns
        changes[ITEM_LOG, sequence.to_bytes(8, "big")] = key
    return changes, sequence


def item_change(item_id: str, record: bytes) -> ItemChange:
    """The item that a stored record means."""
    sequence, available = _ITEM.unpack_from(record)
    return ItemChange(sequence, item_id, bool(available), orjson.loads(record[_ITEM.size :]))
