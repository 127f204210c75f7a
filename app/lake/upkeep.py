"""Compaction and expiry beside an ingest that follows: in a thread of its own, so that no commit waits for a merge."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

from app.errors import MantaError
from app.lake.maintenance import compact_tables, expire_tables
from app.lake.tables import TABLES, Lake

log = logging.getLogger(__name__)


class Upkeep:
    """So many commits leave so many small files and snapshots, which every commit after them pays for.

    Attributes:
        commits: held by whoever commits, ingest or upkeep, from its look at the table on: neither then loses to the
            other what it has read or merged. Merging needs no lock.
    """

    def __init__(self, lake: Lake) -> None:
        self.commits = threading.Lock()
        self._lake = lake
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "lake-upkeep")
        self._work: Future[None] | None = None

    def begin(self) -> None:
        """Starts a run, where none is at work; raises what ended the one before."""
        if self._work is not None:
            if not self._work.done():
                return
            self._work.result()
        self._work = self._pool.submit(self._run)

    def close(self) -> None:
        """Ends it behind the file that it merges just now; what is merged by then is committed."""
        self._stop.set()
        self._pool.shutdown()
        if self._work is not None and (error := self._work.exception()) is not None:
            log.error("ingest: upkeep of the lake: %r", error)

    def _run(self) -> None:
        tables, stopped = list(TABLES), self._stop.is_set
        try:
            for done in chain(
                compact_tables(self._lake, tables, alone=self.commits, stop=stopped),
                expire_tables(self._lake, tables, alone=self.commits),
            ):
                log.info("ingest: upkeep of the lake: %s", done)
                if stopped():
                    return
        except MantaError as error:  # another writer was first too often: next time
            log.warning("ingest: upkeep of the lake: %s", error)
