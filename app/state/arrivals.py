"""How far a log has been read, told by the times at which its messages arrived: the clock of what may be forgotten.

The clock of the process will not do. A writer that comes back after weeks, on a log that holds only a few messages a
day, has nearly read everything and still reads events of weeks ago, whose repeats stand right behind them.
"""

import time
from collections import defaultdict, deque
from collections.abc import Mapping

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

Place = tuple[str, int]  # topic, partition
LOOKED_AT = 32  # messages of a partition: the oldest of them counts, so that one with a wrong clock says nothing


class Arrivals:
    """Arrivals of the messages that were read last of each partition. For one thread."""

    def __init__(self) -> None:
        self._last: defaultdict[Place, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=LOOKED_AT))

    def saw(self, place: Place, message: Message) -> None:
        """Notes the message that was read last of a partition."""
        self._last[place].append(message.timestamp())

    def reached_ms(self, topic: str, behind: Mapping[Place, int]) -> int | None:
        """Milliseconds since 1970: what is still to be read of the topic arrived then or later, clocks being equal.

        Of a partition that is not read to its end nothing comes that is older than what was read there last, of the
        others nothing older than the newest of all: it would stand in the log already. A message from beyond our clock
        says nothing: a broker's or a producer's is wrong, and what stands behind it may be of weeks ago.

        Args:
            topic: which one.
            behind: partitions → messages not read yet.

        Returns:
            None: not known, as long as nothing that tells was read of a partition that holds something.
        """
        now = int(time.time() * 1000)
        last = {place: seen for place, seen in self._last.items() if place[0] == topic}
        times = {place: moment for place, seen in last.items() if (moment := _oldest(seen, now)) is not None}
        waiting = [times.get(place) for place, left in behind.items() if place[0] == topic and left]
        known = [moment for moment in waiting if moment is not None]
        if not times or len(known) < len(waiting):
            return None
        return min(max(times.values()), *known) if known else max(times.values())


def _oldest(seen: deque[tuple[int, int]], now: int) -> int | None:
    """Of the arrivals that are not ahead of our clock; None: all are."""
    moments = (now if kind == TIMESTAMP_NOT_AVAILABLE else moment for kind, moment in seen)
    return min((moment for moment in moments if moment <= now), default=None)


def arrival_ms(message: Message) -> int:
    """The record's timestamp, milliseconds since 1970; now, where it has none."""
    kind, moment = message.timestamp()
    return int(time.time() * 1000) if kind == TIMESTAMP_NOT_AVAILABLE else int(moment)
