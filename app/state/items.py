"""Items as the state keeps them: the last state of each, and a log of who changed last, by rising sequences."""

import struct
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

import orjson

from app.events.versions import VersionPlace, stays
from app.state.layout import ITEM_LOG, ITEMS, Changes
from app.state.reader import ItemChange

_ITEM = struct.Struct("<QB")  # sequence, flags; then the place, where there is one, and the columns' JSON
_PLACE = struct.Struct("<iq")  # partition, arrival
_AVAILABLE, _PLACED = 1, 2


class ItemVersion(NamedTuple):
    """What an item is by one of its messages.

    Attributes:
        columns: JSON; None: none were ever given.
        available: false: withdrawn.
        place: where the message stood; None: not known, anything holds against it.
    """

    columns: bytes | None
    available: bool
    place: VersionPlace | None

    def then(self, other: "ItemVersion", now_ms: int) -> "ItemVersion":
        """What holds once another version is read: a withdrawn item keeps the columns that were there."""
        known = self.place is not None and other.place is not None
        held = known and stays(self.place, other.place, now_ms)  # type: ignore[arg-type]
        last, before = (self, other) if held else (other, self)
        return last if last.columns is not None else last._replace(columns=before.columns)

    @classmethod
    def of(cls, record: bytes) -> "ItemVersion":
        """The version that a stored record means."""
        _, flags = _ITEM.unpack_from(record)
        end, place = _ITEM.size, None
        if flags & _PLACED:
            place, end = VersionPlace(*_PLACE.unpack_from(record, end)), end + _PLACE.size
        return cls(record[end:] or None, bool(flags & _AVAILABLE), place)

    def encode(self, sequence: int) -> bytes:
        """The record that stands for it."""
        flags = _AVAILABLE * self.available + _PLACED * (self.place is not None)
        place = b"" if self.place is None else _PLACE.pack(*self.place)
        return _ITEM.pack(sequence, flags) + place + (self.columns or b"")

    def same_item(self, other: "ItemVersion") -> bool:
        """Whether readers see no difference."""
        return self.available == other.available and (self.columns or b"{}") == (other.columns or b"{}")


def changed_items(
    items: Sequence[tuple[str, bytes | None]],
    stored: Callable[[list[bytes]], list[bytes | None]],
    sequence: int,
    places: Sequence[VersionPlace] = (),
) -> tuple[Changes, int]:
    """What to write so that each item is as its latest version says, with a new sequence where that is a change.

    Args:
        items: (id, columns as JSON), None: withdrawn, which keeps the columns that were there.
        stored: the records of items by their keys.
        sequence: the newest so far.
        places: where each of `items` came from (`app.events.entities.stays` says which is the latest); empty: all from
            one partition.

    Returns:
        The changes, and the newest sequence.
    """
    now = int(time.time() * 1000)
    versions: dict[str, list[ItemVersion]] = {}
    for (item_id, columns), place in zip_longest(items, places):
        versions.setdefault(item_id, []).append(ItemVersion(columns, columns is not None, place))
    keys = [item_id.encode() for item_id in versions]
    changes: Changes = {}
    for key, before, more in zip(keys, stored(keys), versions.values(), strict=True):
        stood = latest = None if before is None else ItemVersion.of(before)
        for version in more:
            latest = version if latest is None else latest.then(version, now)
        assert latest is not None
        if stood is not None and before is not None and stood.same_item(latest):
            if stood.place != latest.place:  # where it stands now decides what may still replace it
                changes[ITEMS, key] = latest.encode(_ITEM.unpack_from(before)[0])
            continue
        sequence += 1
        if before is not None:
            changes[ITEM_LOG, _ITEM.unpack_from(before)[0].to_bytes(8, "big")] = None
        changes[ITEMS, key] = latest.encode(sequence)
        changes[ITEM_LOG, sequence.to_bytes(8, "big")] = key
    return changes, sequence


def item_change(item_id: str, record: bytes) -> ItemChange:
    """The item that a stored record means."""
    found = ItemVersion.of(record)
    columns = orjson.loads(found.columns) if found.columns else {}
    return ItemChange(_ITEM.unpack_from(record)[0], item_id, found.available, columns)
