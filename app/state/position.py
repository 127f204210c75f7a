"""The writer's position in shared memory: what is applied, readable without a system call.

One file per node, mapped by the writer and by every replica. The writer publishes only what RocksDB already holds.
Every number is an aligned 64-bit word, read and written at once. What a reader looks up once it has caught up stands
there before `moves` does, and the offsets come last: whoever sees an offset passed also sees that there is something to
catch up with, and whoever has caught up misses nothing of it.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.errors import StateUnavailable
from app.events.schema import EVENTS, ITEMS, USERS
from app.state.layout import StatePaths
from app.state.room import Shortage

TOPICS = (EVENTS, ITEMS, USERS)
MAX_PARTITIONS = 4096
_GONE_MS = 60_000
_SILENT_MS = 2_000  # without a beat of the writer: it is looked whether it writes another file by now
_MAGIC = int.from_bytes(b"manta\0\0\1", "little")  # the last byte is the layout
_HEAD = 16  # 64-bit words before the offsets
_WORDS = _HEAD + len(TOPICS) * MAX_PARTITIONS
SIZE = _WORDS * 8
# Words of the head.
_MOVES, _GENERATION, _ITEMS, _WATERMARK, _HEARTBEAT, _PID, _LAG, _SINCE = range(1, 9)
_STOPPED, _FREE, _WANTED, _BYTES, _ANEW, _JUMPED = range(9, 15)


@dataclass(frozen=True, slots=True)
class Published:
    """What the writer shows.

    Attributes:
        offsets: topic → partition → next offset that is not applied.
        item_sequence: sequence of the newest item change.
        watermark: highest event time, milliseconds since 1970; 0: no events.
        generation: which database folder holds it.
        moves: counts the publications; equal numbers mean equal content.
        since: earliest event time that counts as of the watermark, milliseconds; None: all count.
    """

    offsets: dict[str, dict[int, int]]
    item_sequence: int = 0
    watermark: int = 0
    generation: int = 0
    moves: int = 0
    since: int | None = None


class Position:
    """A mapping of the position's file. `create` by the writer alone, `open` by everyone else."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Maps an existing file.

        Raises:
            StateUnavailable: not there yet, or of another layout.
        """
        self.path, self._writable = path, writable
        self._map()

    def _map(self) -> None:
        path, access = self.path, mmap.ACCESS_WRITE if self._writable else mmap.ACCESS_READ
        try:
            with path.open("r+b" if self._writable else "rb") as file:
                self._inode = _inode(os.fstat(file.fileno()))
                self._memory = mmap.mmap(file.fileno(), SIZE, access=access)
        except FileNotFoundError:
            raise StateUnavailable(f"{path} cannot be read: no state has been written here yet (`manta up`)") from None
        except (OSError, ValueError) as error:
            raise StateUnavailable(f"the state writer's position {path} cannot be read: {error}") from None
        self._words = memoryview(self._memory).cast("q")
        if self._words[0] != _MAGIC:
            found = self._words[0]
            self.close()
            raise StateUnavailable(f"the state writer's position {path}: found layout {found:#x}, wanted {_MAGIC:#x}")

    @classmethod
    def open(cls, path: Path) -> "Position":
        """For reading. Raises StateUnavailable."""
        return cls(path, writable=False)

    @classmethod
    def create(cls, path: Path) -> "Position":
        """For the one writer: the file that stands there, else a new one."""
        try:
            return cls(path, writable=True)
        except StateUnavailable:
            _write(path, _MAGIC.to_bytes(8, "little") + bytes(SIZE - 8))
            return cls(path, writable=True)

    def close(self) -> None:
        self._words.release()
        self._memory.close()

    def _stands(self) -> bool | None:
        """Whether the file at the path is the one that is mapped; None: there is none."""
        try:
            return _inode(self.path.stat()) == self._inode
        except FileNotFoundError:
            return None

    # --- the writer's side

    def publish(self, published: Published) -> None:
        """Shows what the database holds by now. `published.moves` is what readers compare."""
        words = self._words
        words[_GENERATION] = published.generation
        words[_ITEMS], words[_WATERMARK] = published.item_sequence, published.watermark
        words[_SINCE] = 0 if published.since is None else published.since or 1
        words[_MOVES] = published.moves
        for topic, partitions in published.offsets.items():
            base = _HEAD + TOPICS.index(topic) * MAX_PARTITIONS
            for partition, offset in partitions.items():
                if partition < MAX_PARTITIONS:
                    words[base + partition] = offset
        words[_PID] = os.getpid()
        self.beat()

    def restore(self) -> None:
        """Puts the file back, as it stood, where somebody has removed it: readers would never hear of anything more."""
        if self._stands() is None:
            _write(self.path, self._memory[:])
            self._map()

    def open_anew(self) -> None:
        """Makes every reader open the database anew; call before the publication that follows.

        After an erasure: what a reader had read from the log stands in its own memory, over the files, and the log
        that takes it back is gone.
        """
        self._words[_ANEW] += 1

    def hide(self) -> None:
        """Shows nothing any more until the next publication: readers are told that there is no state."""
        self._words[_MOVES] = 0

    def beat(self, lag: int | None = None) -> None:
        """Says that the writer is alive, and how many messages it knows of that are not applied (-1: unknown)."""
        self._words[_HEARTBEAT] = time.time_ns() // 1_000_000
        if lag is not None:
            self._words[_LAG] = lag

    def show_shortage(self, shortage: Shortage | None) -> None:
        """Says that nothing is applied for want of room, or that there is room (None)."""
        words = self._words
        if shortage is not None:
            words[_FREE], words[_WANTED] = shortage
        words[_STOPPED] = int(shortage is not None)

    def show_disk(self, free: int, used: int) -> None:
        """Says how much room the disk has, and what the state takes of it; bytes."""
        self._words[_FREE], self._words[_BYTES] = free, used

    def show_jumped(self, messages: int) -> None:
        """Says how many offsets the log did not hold any more when the database needed them."""
        self._words[_JUMPED] = messages

    # --- the readers' side

    def is_replaced(self) -> bool:
        """Whether the writer writes another file by now, and this one is no longer anybody's; mostly a memory read."""
        silent = time.time_ns() // 1_000_000 - self._words[_HEARTBEAT] > _SILENT_MS
        return silent and self._stands() is False

    @property
    def moves(self) -> int:
        """The number of the last publication; one memory read."""
        return self._words[_MOVES]

    @property
    def generation(self) -> int:
        """Which database folder the writer writes; one memory read."""
        return self._words[_GENERATION]

    @property
    def opened(self) -> tuple[int, int]:
        """What a reader must have opened: the generation, and how often that was to be opened anew."""
        return self._words[_GENERATION], self._words[_ANEW]

    @property
    def item_sequence(self) -> int:
        return self._words[_ITEMS]

    @property
    def watermark(self) -> int:
        return self._words[_WATERMARK]

    @property
    def since(self) -> int | None:
        """Earliest event time that counts as of the watermark, milliseconds; None: all count."""
        return self._words[_SINCE] or None

    @property
    def heartbeat_ms(self) -> int:
        """When the writer was last seen alive, milliseconds since 1970; 0: never."""
        return self._words[_HEARTBEAT]

    @property
    def lag(self) -> int:
        """Messages in the log that are not applied, as of the last second; -1: the broker is away."""
        return self._words[_LAG]

    @property
    def jumped(self) -> int:
        """Offsets that the log did not hold any more: what stood there is not in this state."""
        return self._words[_JUMPED]

    @property
    def shortage(self) -> Shortage | None:
        """Why the writer applies nothing; None: it does."""
        words = self._words
        return Shortage(words[_FREE], words[_WANTED]) if words[_STOPPED] else None

    @property
    def free_bytes(self) -> int:
        """Room on the disk, as of the last seconds."""
        return self._words[_FREE]

    @property
    def used_bytes(self) -> int:
        """What the state takes of the disk, as of the last seconds."""
        return self._words[_BYTES]

    def applied(self, topic: str, partition: int) -> int:
        """Next offset of a partition that is not applied; 0: nothing is."""
        return self._words[_HEAD + TOPICS.index(topic) * MAX_PARTITIONS + partition]

    def offsets(self) -> dict[str, dict[int, int]]:
        """topic → partition → next offset that is not applied, where anything is."""
        words = self._words.tolist()
        bases = {topic: _HEAD + place * MAX_PARTITIONS for place, topic in enumerate(TOPICS)}
        return {
            topic: {p: words[base + p] for p in range(MAX_PARTITIONS) if words[base + p]}
            for topic, base in bases.items()
        }


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.rename(path)


def shown_offsets(path: Path) -> dict[str, dict[int, int]]:
    """`Position.offsets` of a position's file; empty where there is none."""
    try:
        position = Position.open(path)
    except StateUnavailable:
        return {}
    try:
        return position.offsets()
    finally:
        position.close()


def positions_here(home: Path) -> list[Position]:
    """The positions of a node's state: its own, and those of shards that have not gone to other nodes."""
    paths, found = StatePaths.of(home), []
    for path in (paths.position, *sorted(paths.shards.glob("*/position"))):
        with contextlib.suppress(StateUnavailable):
            found.append(Position.open(path))
    newest = max((one.heartbeat_ms for one in found), default=0)
    gone = [one for one in found if newest - one.heartbeat_ms > _GONE_MS]
    for one in gone:
        one.close()
    return [one for one in found if one not in gone]


def gone_shards(home: Path) -> frozenset[int]:
    """Shards that other nodes write: what is on this disk is what they were when they went."""
    here = positions_here(home)
    paths = {one.path for one in here}
    for one in here:
        one.close()
    known = (path for path in StatePaths.of(home).shards.glob("[0-9]*/position") if path not in paths)
    return frozenset(int(path.parent.name) for path in known if path.parent.name.isdigit())


def merged(offsets: Mapping[str, Mapping[int, int]], more: Mapping[tuple[str, int], int]) -> dict[str, dict[int, int]]:
    """Offsets with those of some partitions moved."""
    result = {topic: dict(partitions) for topic, partitions in offsets.items()}
    for (topic, partition), offset in more.items():
        result.setdefault(topic, {})[partition] = offset
    return result
