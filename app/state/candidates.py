"""In a user's shard: sessions that some merge says are the user's. Whether it is their first, their own shards know."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import orjson

from app.state.batch import StateEvent

CANDIDATES = b"c"  # first byte of their keys in the family of links
Copies: TypeAlias = list[tuple[int, int, int]]  # partition, offset, time in µs: the newest copy in each partition


def candidates_key(user_id: str) -> bytes:
    """Database key of the sessions that may be merged into a user."""
    return CANDIDATES + user_id.encode()


def places_of(record: bytes | None) -> dict[str, Copies]:
    """Session → the merges that name it and the user."""
    found = orjson.loads(record) if record else {}
    return {name: [(partition, offset, time) for partition, offset, time in copies] for name, copies in found.items()}


def encoded(places: Mapping[str, Copies]) -> bytes | None:
    """As `places_of` reads it; None: nothing."""
    return orjson.dumps(places) if places else None


class Candidates:
    """Candidates as they stand while a batch is applied: read through, changes kept for the write batch."""

    def __init__(self, load: Callable[[bytes], bytes | None]) -> None:
        self._load = load
        self._places: dict[bytes, dict[str, Copies]] = {}

    def take(self, event: StateEvent) -> None:
        """Takes a merge in, whose user is the shard's."""
        key, session_id = candidates_key(event.user_id or ""), event.session_id or ""
        if key not in self._places:
            self._places[key] = places_of(self._load(key))
        copies = self._places[key].get(session_id, [])
        place = (event.partition, event.offset, event.time)
        others = [copy for copy in copies if copy[0] != event.partition]
        self._places[key][session_id] = sorted([*others, max([place, *(set(copies) - set(others))])])

    def changes(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Keys and records to write."""
        return [(key, encoded(places)) for key, places in self._places.items()]
