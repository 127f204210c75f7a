"""Erasure from the lake: rows, and at once every file, manifest and snapshot that could still show them.

1. Data files with rows of the user are written again without them, in one commit that carries the offsets. Whoever
   prepared a commit before it reads again, and leaves the rows out by the ledger; so there is a commit even where no
   row was found.
2. Of what is not in that snapshot, every file is looked at: those of older snapshots, and those that nothing refers to.
   Snapshots that refer to one with such rows are forgotten, tags and branches or not.
3. Then the manifests that name these files go, and at last the files: a killed run finds again what was left.

No grace: a reader that has planned on such a snapshot fails in the middle.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile

from app.erasure.places import PlaceReport, Subject, cleared
from app.errors import MantaError
from app.faults import reach
from app.lake.commit import LOST_COMMITS, forget_file, progress_of
from app.lake.data_files import one_file
from app.lake.doomed import Doomed
from app.lake.expiry import forget
from app.lake.files import Files, referred_to
from app.lake.named import Named, Unfinished
from app.lake.rewrite import rewrite_without
from app.lake.tables import TABLES, Lake, open_lake
from app.settings import Settings

_STILL_S = 60.0  # an unfinished file that was not written to for so long is a killed writer's
_LOOK_S = 0.5

log = logging.getLogger(__name__)


@dataclass
class Cleared:
    """What was done to one table.

    Attributes:
        table: its name.
        rows: that were left out of the table.
        files: data files that were written again.
        snapshots: that were forgotten.
        removed: files of them, and of killed writers.
        lost_commits: times another writer was first.
    """

    table: str
    rows: int = 0
    files: int = 0
    snapshots: int = 0
    removed: int = 0
    lost_commits: int = 0

    @property
    def detail(self) -> str:
        """In a sentence."""
        return (
            f"{self.rows} rows left out of {self.files} files, {self.snapshots} snapshots forgotten, "
            f"{self.removed} files removed"
        )


class LakePlace:
    """The tables of the lake that name users."""

    name = "lake"

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`."""
        lake = open_lake(self._settings, self._home)
        found = []
        for name, columns in TABLES.items():
            if "user_id" in columns.names:
                there = lake.exists(name)
                detail = erase_rows(lake, name, subject).detail if there else "there is no such table"
                found.append(cleared(f"lake: {name}", detail))
        return found


def erase_rows(lake: Lake, name: str, subject: Subject, *, still_s: float = _STILL_S) -> Cleared:
    """Takes the rows of a user out of a table and out of every file of its folder; killed anywhere, run it again.

    Args:
        lake: where.
        name: of a table with `user_id`.
        subject: whose; ingest leaves out his rows already, by the ledger.
        still_s: an unfinished file is waited for so long, and removed if it was not written to for so long.

    Raises:
        MantaError: another writer was first too many times, or a file is unfinished that is written to, or was begun
            meanwhile.
    """
    doomed, report = Doomed(subject, name), Cleared(name)
    # What stands there now belongs to writers that have loaded the table before the commit below
    before = {one.path for one in Files.of(lake.table(name)).listed()}
    _leave_out(lake, doomed, report)
    reach("erase:committed")
    held = _files_with(lake, name, doomed, before, still_s)
    _forget_snapshots(lake, report, held)
    reach("erase:forgotten")
    _remove(lake, report, held, still_s)
    return report


def _leave_out(lake: Lake, doomed: Doomed, report: Cleared) -> None:
    """One commit without the rows. What was written anew stands for files that are still there, else it is dropped."""
    ready: dict[str, tuple[DataFile, DataFile | None]] = {}
    looked: set[str] = set()
    for _ in range(LOST_COMMITS):
        table = lake.table(report.table)
        files = Files.of(table)
        tasks = {task.file.file_path: task for task in table.scan(row_filter=doomed.condition).plan_files()}
        for path, task in tasks.items():
            if path in looked:
                continue
            looked.add(path)
            with files.open(files.path(path)) as file:
                rows = doomed.count(file)
            if rows:
                kept = rows < task.file.record_count
                ready[path] = (task.file, one_file(table, [task], doomed.without) if kept else None)
        for path in [path for path in ready if path not in tasks]:
            _, made = ready.pop(path)
            if made is not None:
                forget_file(table, made)
        reach("erase:written")
        removed, added = [old for old, _ in ready.values()], [made for _, made in ready.values() if made is not None]
        try:
            rewrite_without(table, removed, added, progress_of(table))
        except CommitFailedException:
            report.lost_commits += 1
            log.info("erasure: %s: another commit was first; looking again", report.table)
            continue
        report.files = len(removed)
        report.rows = sum(file.record_count for file in removed) - sum(file.record_count for file in added)
        return
    raise _never_first(report.table)


def _files_with(lake: Lake, name: str, doomed: Doomed, before: Iterable[str], still_s: float) -> set[str]:
    """Paths of the data files outside the current snapshot that hold rows of the user, or were never finished."""
    table = lake.table(name)
    files = Files.of(table)
    live = files.of_snapshot(table.current_snapshot().manifest_list)
    old = set(before)
    found = set()
    for one in files.listed():
        if not one.path.endswith(".parquet") or one.path in live:
            continue
        state = _look(files, one.path, doomed)
        deadline = time.monotonic() + still_s
        while state is None and not _is_still(files, one.path, still_s) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            state = _look(files, one.path, doomed)
        if state is None and not (one.path in old and _is_still(files, one.path, still_s)):
            raise MantaError(
                f"lake: {name}: a file is being written, wanted it whole or gone; the erasure goes on later"
            )
        if state is not False:
            found.add(one.path)
    return found


def _look(files: Files, path: str, doomed: Doomed) -> bool | None:
    """Whether a file holds such rows; None: it is unfinished."""
    try:
        with files.open(path) as file:
            return doomed.count(file) > 0
    except FileNotFoundError:
        return False
    except pa.ArrowInvalid:
        return None


def _is_still(files: Files, path: str, still_s: float) -> bool:
    modified = files.modified_ms(path)
    return modified is None or time.time() * 1000 - modified >= still_s * 1000


def _forget_snapshots(lake: Lake, report: Cleared, held: set[str]) -> None:
    """Forgets the snapshots that name one of the files."""
    for _ in range(LOST_COMMITS):
        table = lake.table(report.table)
        named, current = Named(table), table.current_snapshot()
        others = [one for one in table.snapshots() if one.snapshot_id != current.snapshot_id]
        ids = [one.snapshot_id for one in others if not named.all_of(one.manifest_list).isdisjoint(held)]
        if not ids:
            return
        try:
            forget(table, ids)
        except CommitFailedException:
            report.lost_commits += 1
            continue
        report.snapshots += len(ids)
        return
    raise _never_first(report.table)


def _remove(lake: Lake, report: Cleared, held: set[str], still_s: float) -> None:
    """Removes what nothing refers to any more: lists of manifests, manifests, and then the data files they name.

    A manifest that names a file which is gone may have its bounds, too.
    """
    there = [one.path for one in Files.of(lake.table(report.table)).listed()]
    table = lake.table(report.table)  # after the listing: what was committed meanwhile is referred to
    files, named = Files.of(table), Named(table)
    kept = referred_to(table, files)
    clean = set(there) - held
    loose = [path for path in there if path.endswith(".avro") and path not in kept]
    torn = [path for path in loose if _is_torn(files, named, path, still_s)]
    loose = [path for path in loose if path not in torn]
    lists = [path for path in loose if Named.is_list(path) and not named.all_of(files.location(path)) <= clean]
    listed = {one for path in lists for one in named.manifests(files.location(path))}
    manifests = [path for path in loose if not Named.is_list(path)]
    gone = [one for one in manifests if one in listed or not named.entries(files.location(one)) <= clean]
    for path in [*torn, *lists, *gone, *sorted(held - kept)]:
        reach("erase:removing")
        report.removed += files.remove(path)


def _is_torn(files: Files, named: Named, path: str, still_s: float) -> bool:
    """Whether a killed writer left a manifest, or list, unfinished.

    Raises:
        MantaError: it may still be written.
    """
    try:
        (named.manifests if Named.is_list(path) else named.entries)(files.location(path))
    except Unfinished:
        if _is_still(files, path, still_s):
            return True
        raise MantaError(
            "lake: a manifest is being written, wanted it whole or gone; the erasure goes on later"
        ) from None
    return False


def _never_first(name: str) -> MantaError:
    return MantaError(f"lake: {name}: found another commit first {LOST_COMMITS} times, wanted to be first once")
