"""How often `items` and `users` are written while an ingest follows: each change writes the whole table anew."""

import time
from collections.abc import Callable

from app.events.entities import ID_FIELDS
from app.lake.tables import Lake


class Pace:
    """Keeps what is written anew to so many bytes a second: else a catalogue that changes all day would fill the disk.

    Args:
        lake: whose tables.
        bytes_s: `ingest.follow_rewrite_bytes_s`.
        clock: seconds from anywhere.
    """

    def __init__(self, lake: Lake, bytes_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lake, self._bytes_s, self._clock = lake, bytes_s, clock
        self._due: dict[str, float] = {}

    def due(self, topic: str) -> bool:
        """Whether a topic's changes may be committed by now."""
        return self._clock() >= self._due.get(topic, 0.0)

    def wrote(self, topic: str) -> None:
        """A topic's changes were committed: the larger its table, the longer until the next."""
        if topic not in ID_FIELDS or (current := self._lake.table(topic).current_snapshot()) is None:
            return
        found = current.summary.additional_properties if current.summary else {}
        self._due[topic] = self._clock() + int(found.get("total-files-size") or 0) / self._bytes_s
