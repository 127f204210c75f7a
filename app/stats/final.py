"""Final hours and days on their way into the lake's table `figures`, in a thread of their own: the lake may be slow."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from app.settings import Settings
from app.stats.counters import SIZES, read_figure, time_key
from app.stats.fold import LONG_AGO, StatsFold
from app.stats.held import DAYS, HOURS, Held

SIZE_NAMES = {HOURS: "hour", DAYS: "day"}
_AGAIN_S = 60.0  # after a failure
_LAST_WAIT_S = 10.0

log = logging.getLogger("manta.stats")


def final_rows(held: Held, since: Mapping[str, int], upto: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows of `app.lake.tables.FIGURE_COLUMNS`: windows that start at `since` or later and end at `upto` or before.

    Args:
        held: the fold's.
        since: family → microseconds; one that is not named has no beginning.
        upto: family → microseconds, a window's end.
    """
    rows = []
    for family, end in upto.items():
        for pair in held.scan(family, time_key(since.get(family, LONG_AGO)), time_key(end)):
            figure = read_figure(*pair)
            named = figure._asdict()
            start, counts = named.pop("start"), named.pop("counts")
            window = {"window_start": start, "window_end": start + SIZES[family], "size": SIZE_NAMES[family]}
            rows.append(window | named | dict(zip(("impressions", "clicks", "conversions"), counts, strict=True)))
    return rows


def write_rows(settings: Settings, home: Path, rows: list[dict[str, Any]], upto: Mapping[str, int]) -> int:
    """Writes those of the rows that the lake does not have yet; how many. Raises as `app.lake.figures.keep`."""
    from app.lake.figures import FinalWindows, keep  # Iceberg's library is loaded where there is something to write
    from app.lake.tables import FIGURE_COLUMNS, open_lake

    windows = FinalWindows(
        pa.Table.from_pylist(rows, FIGURE_COLUMNS), {SIZE_NAMES[family]: end for family, end in upto.items()}
    )
    return keep(open_lake(settings, home), windows)


class FigureKeeper:
    """Takes what has become final into the lake, one commit at a time. For the fold's thread."""

    def __init__(self, settings: Settings, home: Path) -> None:
        """Where the lake is; it is opened when there is something to write."""
        self._settings, self._home = settings, home
        self._thread: threading.Thread | None = None
        self._done: dict[str, int] | None = None  # what the thread has finished, up to when
        self._not_before = 0.0

    def look(self, fold: StatsFold, held: Held) -> None:
        """Notes what has been written since the last look, and starts on what has become final; never waits."""
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
            if self._done is None:
                self._not_before = time.monotonic() + _AGAIN_S
            else:
                fold.note_in_lake(self._done)
        due = fold.final_beyond_lake()
        if due and time.monotonic() >= self._not_before:
            self._done = None
            self._thread = threading.Thread(
                target=self._keep, args=(held, dict(fold.in_lake), due), name="figures-lake", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Waits for a commit under way; one that takes longer is found in the lake, or made again, by the next run."""
        if self._thread is not None:
            self._thread.join(_LAST_WAIT_S)

    def _keep(self, held: Held, since: Mapping[str, int], upto: dict[str, int]) -> None:
        try:
            rows = final_rows(held, since, upto)
            written = write_rows(self._settings, self._home, rows, upto) if rows else 0
        except Exception as error:  # of any catalog or file system: live figures go on without
            log.warning("figures: the lake did not take what is final: %s; trying again in %.0f s", error, _AGAIN_S)
            return
        log.info("figures: %s rows of final hours and days written to the lake", written)
        self._done = upto
