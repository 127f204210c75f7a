"""What the fold keeps, as keys and values by family: the Protocol, its form in memory, and changes not written yet."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

HOURS = "hours"  # hour, who showed it → impressions, clicks, conversions
DAYS = "days"  # the same by day
ANSWERS = "answers"  # request id → what was shown and what came of it, while anything may still come
DUE = "due"  # time from which nothing comes any more, request id
ITEM_HOURS = "item_hours"  # surface, hour, event type, item → events
ITEMS = "items"  # surface, event type, item → events of all time
SEEN = "seen"  # identity of an event → arrivals of those that counted
META = "meta"
FAMILIES = (HOURS, DAYS, ANSWERS, DUE, ITEM_HOURS, ITEMS, SEEN, META)

Changes = Mapping[str, Mapping[bytes, bytes | None]]  # family → key → value; None: deleted


class Held(Protocol):
    """Families of keys and values, in the keys' order."""

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(self, family: str, first: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `first` <= key < `below`, ascending."""
        ...

    def write(self, changes: Changes) -> None:
        """All of them or none."""
        ...


class MemoryHeld:
    """A `Held` of dictionaries: for batch jobs and tests."""

    def __init__(self) -> None:
        self.families: dict[str, dict[bytes, bytes]] = {name: {} for name in FAMILIES}

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key; None: not there."""
        held = self.families[family]
        return [held.get(key) for key in keys]

    def scan(self, family: str, first: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As `Held.scan`."""
        held = self.families[family]
        for key in sorted(key for key in held if first <= key < below):
            yield key, held[key]

    def write(self, changes: Changes) -> None:
        """As `Held.write`."""
        for family, pairs in changes.items():
            for key, value in pairs.items():
                if value is None:
                    self.families[family].pop(key, None)
                else:
                    self.families[family][key] = value


class Draft:
    """Changes over what is held; `get` sees them, nobody else does until they are written."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.changes: dict[str, dict[bytes, bytes | None]] = {name: {} for name in FAMILIES}

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key, as it would be after the write."""
        changed = self.changes[family]
        asked = [key for key in keys if key not in changed]
        found = dict(zip(asked, self._held.get(family, asked), strict=True))
        return [changed[key] if key in changed else found[key] for key in keys]

    def scan(self, family: str, first: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As `Held.scan`, without what is only drafted."""
        return self._held.scan(family, first, below)

    def put(self, family: str, key: bytes, value: bytes | None) -> None:
        """Notes a change; None deletes."""
        self.changes[family][key] = value

    def write(self) -> None:
        """Writes everything at once."""
        self._held.write({family: pairs for family, pairs in self.changes.items() if pairs})
