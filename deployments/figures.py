"""The live figures as a gateway replica answers them: read from the node's database, in a thread."""

import asyncio
from pathlib import Path
from typing import Any

from app.api.service import Json, Step
from app.errors import NotFound, StateUnavailable
from app.settings import Settings
from app.state.reader import StateReader
from app.stats.answers import ctr_answer, trending_answer
from app.stats.counters import DAY_US
from app.stats.reader import StatsReader

# How far back an answer goes that names no beginning.
_BACK_US = {"hour": DAY_US, "day": 31 * DAY_US, "week": 92 * DAY_US}
_FOREVER = 253_402_300_799_000_000  # the end of the year 9999, microseconds


class Figures:
    """What `/v1/stats` asks for."""

    def __init__(self, settings: Settings, home: Path, name: str, state: StateReader) -> None:
        """`name`: that no other reader of the node has; `state`: tells which items have been withdrawn."""
        self._settings, self._state = settings, state
        self._reader = StatsReader(settings.stats, home, name)

    async def ctr(self, surface: str | None, first: int | None, end: int | None, step: Step, by_source: bool) -> Json:
        """As `Service.ctr`."""
        self._check(surface)

        def read() -> dict[str, Any]:
            progress = self._reader.progress()
            until = _FOREVER if end is None else end
            since = first
            if since is None:
                since = min(until, progress.watermark or 0) - _BACK_US[step]
            found = self._reader.figures(since, until, step, surface=surface, by_source=by_source)
            kept_from = self._reader.kept_from(step, progress)
            return ctr_answer(found, progress, by_source=by_source, kept_from=kept_from)

        return await asyncio.to_thread(read)

    async def trending(self, surface: str | None, k: int) -> Json:
        """As `Service.trending`."""
        name = surface or self._settings.default_surface
        self._check(name)
        return await asyncio.to_thread(lambda: trending_answer(self._reader.trending(name), k, self._available))

    def close(self) -> None:
        """Gives up what is on the disk."""
        self._reader.close()

    def _check(self, surface: str | None) -> None:
        """Raises NotFound for a surface that the settings do not name, StateUnavailable where nothing is counted."""
        if surface is not None and surface not in self._settings.surfaces:
            raise NotFound(f"surface {surface!r}: wanted one of {', '.join(self._settings.surfaces)}")
        if not self._settings.stats.enabled:
            raise StateUnavailable("live figures are switched off: stats.enabled is false")

    def _available(self, item_id: str) -> bool:
        item = self._state.item(item_id)
        return item is None or item.available
