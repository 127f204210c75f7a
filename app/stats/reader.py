"""The live figures as the gateways read them: a RocksDB secondary of the node's database, opened when first asked."""

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import orjson
from rocksdict import Rdict

from app.errors import StateUnavailable
from app.own_folders import hold
from app.settings import StatsSettings
from app.state.layout import get_many
from app.state.secondary import Secondary
from app.stats.counters import DAY_US, HOUR_US, SIZES, Figure, read_figure, time_key
from app.stats.fold import LISTS, SECOND_US, STATE, Progress
from app.stats.held import DAYS, FAMILIES, HOURS, META
from app.stats.store import StatsPaths, scan

Step = Literal["hour", "day", "week"]
_FAMILY = {"hour": HOURS, "day": DAYS, "week": DAYS}
_SIZE = {"hour": HOUR_US, "day": DAY_US, "week": 7 * DAY_US}
_MONDAY = 4 * DAY_US  # 1970-01-05
_FRESH_S = 0.1


@dataclass(frozen=True, slots=True)
class Bucket:
    """A window's figures of one surface, variant and bundle (and source); microseconds."""

    start: int
    end: int
    figure: Figure
    final: bool


class StatsReader:
    """Reads what the node's writer has written. Every method may be called from any thread; all block."""

    def __init__(self, settings: StatsSettings, home: Path, name: str) -> None:
        """`settings.stats`, a MANTA_HOME, and a name that no other reader of the node has."""
        self._paths, self._own_path = StatsPaths(home), StatsPaths(home).replicas / name
        self._margin_us = int((settings.allowed_lateness_s + settings.attribution_s) * SECOND_US)
        self._kept = {HOURS: settings.keep_hours * HOUR_US, DAYS: settings.keep_days * DAY_US}
        self._lock = threading.Lock()
        self._secondary: Secondary | None = None
        self._families: dict[str, Rdict] = {}
        self._caught = 0.0
        self._mark: IO[bytes] | None = None

    def figures(self, first: int, end: int, step: Step, *, surface: str | None, by_source: bool) -> list[Bucket]:
        """Windows that overlap [first, end), oldest first.

        Args:
            first: microseconds since 1970.
            end: microseconds since 1970.
            step: the windows' size; weeks begin on Monday, UTC, and are made of days.
            surface: None: all.
            by_source: one row per source (None: no source is known) instead of one for all.

        Raises:
            StateUnavailable: there are no figures yet, or they cannot be read.
        """
        with self._lock:
            self._catch_up()
            family, size = _FAMILY[step], _SIZE[step]
            progress = self._progress()
            oldest = _start(first, step)
            if (kept_from := self.kept_from(step, progress)) is not None:
                oldest = max(oldest, kept_from)
            found: dict[Figure, list[int]] = {}
            for key, value in scan(self._families[family], time_key(oldest), time_key(_start(end - 1, step) + size)):
                one = read_figure(key, value)
                if one.by_source == by_source and surface in (None, one.surface):
                    place = one._replace(start=_start(one.start, step), counts=(0, 0, 0))
                    held = found.setdefault(place, [0, 0, 0])
                    for n, count in enumerate(one.counts):
                        held[n] += count
        passed = progress.complete
        return [
            Bucket(
                place.start,
                place.start + size,
                place._replace(counts=(counts[0], counts[1], counts[2])),
                passed is not None and passed - self._margin_us >= place.start + size,
            )
            for place, counts in sorted(found.items(), key=lambda pair: [(part is not None, part) for part in pair[0]])
        ]

    def kept_from(self, step: Step, progress: Progress) -> int | None:
        """Where the figures of this step begin, microseconds; older ones: the lake's table `figures`. None: nowhere."""
        newest = progress.newest
        family = _FAMILY[step]
        return None if newest is None else newest - newest % SIZES[family] - self._kept[family]

    def progress(self) -> Progress:
        """How far the figures are.

        Raises:
            StateUnavailable: as `figures`.
        """
        with self._lock:
            self._catch_up()
            return self._progress()

    def offsets(self) -> dict[str, dict[int, int]]:
        """topic → partition → next offset that is in no figure yet.

        Raises:
            StateUnavailable: as `figures`.
        """
        with self._lock:
            self._catch_up()
            (saved,) = get_many(self._families[META], [STATE])
        found = orjson.loads(saved).get("offsets", {}) if saved else {}
        return {topic: {int(partition): at for partition, at in parts.items()} for topic, parts in found.items()}

    def trending(self, surface: str) -> dict[str, Any]:
        """`{"as_of", "start", "end", "items": [[item id, score, count], ...]}`, microseconds; best first.

        Raises:
            StateUnavailable: as `figures`.
        """
        with self._lock:
            self._catch_up()
            (saved,) = get_many(self._families[META], [LISTS])
        lists = orjson.loads(saved) if saved else {"as_of": None, "surfaces": {}}
        nothing: dict[str, Any] = {"start": None, "end": None, "items": []}
        return {"as_of": lists["as_of"], **lists["surfaces"].get(surface, nothing)}

    def close(self) -> None:
        """Gives up the secondary and its folder."""
        with self._lock:
            self._secondary, self._families = None, {}
            shutil.rmtree(self._own_path, ignore_errors=True)
            if self._mark is not None:
                self._mark.close()
                self._mark = None

    def _progress(self) -> Progress:
        (saved,) = get_many(self._families[META], [STATE])
        return Progress(**orjson.loads(saved)["progress"]) if saved else Progress()

    def _catch_up(self) -> None:
        """Sees what was written until a moment ago."""
        try:
            if self._secondary is None:
                self._secondary = self._open()
            elif time.monotonic() - self._caught <= _FRESH_S:
                return
            if self._secondary.catch_up():  # something was flushed, which this one may hide
                self._secondary = self._open()
                self._secondary.catch_up()
            self._caught = time.monotonic()
        except Exception as error:  # rocksdict raises bare exceptions
            raise StateUnavailable(f"the live figures cannot be read: {error}") from None

    def _open(self) -> Secondary:
        if not (self._paths.database / "CURRENT").exists():
            raise StateUnavailable("there are no live figures yet")
        if self._mark is None:
            self._mark = hold(self._own_path)
        self._secondary, self._families = None, {}  # two at a time would share a folder
        secondary = Secondary(self._paths.database, self._own_path, FAMILIES)
        self._families = secondary.families
        return secondary


def _start(time_us: int, step: Step) -> int:
    """Start of the window that a time lies in."""
    origin = _MONDAY if step == "week" else 0
    return time_us - (time_us - origin) % _SIZE[step]
