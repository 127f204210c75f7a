"""How far a log has been read, told by the times at which its messages arrived: the clock of what may be forgotten.

The clock of the process will not do. A writer that comes back after weeks, on a log that holds only a few messages a
day, has nearly read everything and still reads events of weeks ago, whose repeats stand right behind them.
"""

import time
from collections.abc import Mapping

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

Place = tuple[str, int]  # topic, partition


class Arrivals:
    """Arrival of the last message that was read of each partition. For one thread."""

    def __init__(self) -> None:
        self._last: dict[Place, Message] = {}

    def saw(self, place: Place, message: Message) -> None:
        """Notes the message that was read last of a partition."""
        self._last[place] = message

    def reached_ms(self, topic: str, behind: Mapping[Place, int]) -> int | None:
        """Milliseconds since 1970: what is still to be read of the topic arrived then or later, clocks being equal.

        Of a partition that is not read to its end nothing comes that is older than what was read there last, of the
        others nothing older than the newest of all: it would stand in the log already. A broker or producer whose
        clock is ahead does not count beyond ours.

        Args:
            topic: which one.
            behind: partitions → messages not read yet.

        Returns:
            None: not known, as long as nothing was read of a partition that holds something.
        """
        times = {place: arrival_ms(message) for place, message in self._last.items() if place[0] == topic}
        waiting = [times.get(place) for place, left in behind.items() if place[0] == topic and left]
        known = [moment for moment in waiting if moment is not None]
        if not times or len(known) < len(waiting):
            return None
        return min(int(time.time() * 1000), max(times.values()), *known)


def arrival_ms(message: Message) -> int:
    """The record's timestamp, milliseconds since 1970; now, where it has none."""
    kind, moment = message.timestamp()
    return int(time.time() * 1000) if kind == TIMESTAMP_NOT_AVAILABLE else int(moment)
