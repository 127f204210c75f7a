"""Small files of a table merged, partition by partition, beside an ingest that goes on."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import TimestamptzType

from app.errors import MantaError
from app.faults import reach
from app.lake.commit import LOST_COMMITS, NOBODY_ELSE, UNPARTITIONED, Alone, forget_file, progress_of
from app.lake.data_files import one_file
from app.lake.rewrite import rewrite
from app.lake.tables import ARRIVAL, Lake

_SMALL = 0.75  # of the wanted size: a file from there on is left alone
_COMMIT_BYTES = 1_000_000_000  # of small files that one commit replaces, roughly
_ARRIVAL = "record_time"  # but for the tables in `ARRIVAL`

log = logging.getLogger(__name__)
# Called with (files looked at, files to look at).
FileProgress = Callable[[int, int], None]


@dataclass
class Compaction:
    """What was merged of one table.

    Attributes:
        table: its name.
        files_before: data files before, all of them.
        files_after: and after.
        merged: small files that were merged away.
        bytes: of those.
        commits: snapshots made.
        lost_commits: times another writer was first.
    """

    table: str
    files_before: int = 0
    files_after: int = 0
    merged: int = 0
    bytes: int = 0
    commits: int = 0
    lost_commits: int = 0


@dataclass(frozen=True, slots=True)
class _Merged:
    """A file and what it stands for; nothing refers to it before the commit."""

    sources: list[DataFile]
    file: DataFile


def compact(
    lake: Lake,
    name: str,
    *,
    target_bytes: int,
    progress: FileProgress | None = None,
    alone: Alone = NOBODY_ELSE,
    stop: Callable[[], bool] = lambda: False,
) -> Compaction:
    """Merges the files of each partition that are smaller than three quarters of `target_bytes`.

    Rows stay as they are; every snapshot made carries the offsets. A commit by another in between is no reason to
    read again: what was merged still stands for files that are still there, or is thrown away.

    Args:
        lake: where.
        name: of the table.
        target_bytes: wanted size of a Parquet file.
        progress: called as files are merged.
        alone: entered around each commit.
        stop: asked behind each merge; what is merged by then is committed, the rest is for the next run.

    Raises:
        MantaError: another writer was first too many times.
    """
    table = lake.table(name)
    report = Compaction(name)
    if table.current_snapshot() is None:
        return report
    tasks = list(table.scan().plan_files())
    report.files_before = report.files_after = len(tasks)
    waiting = list(bins(table, tasks, target_bytes))
    todo, done = sum(map(len, waiting)), 0
    ready: list[_Merged] = []
    for place, small in enumerate(waiting):
        try:
            ready.append(_Merged([task.file for task in small], one_file(table, small)))
        except FileNotFoundError:
            log.info("compact %s: an erasure has removed a file; it is for the next run", name)
        done += len(small)
        if progress is not None:
            progress(done, todo)
        full = sum(file.file_size_in_bytes for merged in ready for file in merged.sources) >= _COMMIT_BYTES
        last = place == len(waiting) - 1 or stop()
        if full or last:
            reach("compact:written")
            with alone:
                _commit(lake, name, ready, report)
            reach("compact:committed")
            ready = []
        if last:
            break
    return report


def bins(table: Table, tasks: list[FileScanTask], target_bytes: int) -> Iterator[list[FileScanTask]]:
    """The files that become one, two or more at a time, in the order of their arrival.

    Files of one partition only; those without a partition together; files with deletes are left alone.
    """
    groups: dict[tuple[object, ...], list[FileScanTask]] = {}
    known = {UNPARTITIONED, table.spec().spec_id}
    for task in tasks:
        file = task.file
        if file.file_size_in_bytes < _SMALL * target_bytes and not task.delete_files and file.spec_id in known:
            groups.setdefault((file.spec_id, *(file.partition[i] for i in range(len(file.partition)))), []).append(task)
    arrival = table.schema().find_field(ARRIVAL.get(table.name()[-1], _ARRIVAL)).field_id
    for group in groups.values():
        group.sort(key=lambda task: _lower_bound(task.file, arrival))
        gathered: list[FileScanTask] = []
        for task in group:
            gathered.append(task)
            if sum(one.file.file_size_in_bytes for one in gathered) >= target_bytes:
                if len(gathered) > 1:
                    yield gathered
                gathered = []
        if len(gathered) > 1:
            yield gathered


def _lower_bound(file: DataFile, field_id: int) -> int:
    bound = (file.lower_bounds or {}).get(field_id)
    return int(from_bytes(TimestamptzType(), bound)) if bound is not None else 0


def _commit(lake: Lake, name: str, ready: list[_Merged], report: Compaction) -> None:
    """Puts merged files in their place, on the table as it stands by now."""
    for _ in range(LOST_COMMITS):
        table = lake.table(name)
        live = {task.file.file_path: task for task in table.scan().plan_files()}
        whole = [one for one in ready if _stands(table, live, one)]
        for lost in ready:
            if lost not in whole:
                forget_file(table, lost.file)
        ready = whole
        report.files_after = len(live)
        if not ready:
            return
        removed = [file for one in ready for file in one.sources]
        added = [one.file for one in ready]
        try:
            rewrite(table, removed, added, progress_of(table))
        except (CommitFailedException, FileNotFoundError):  # of a snapshot that an erasure took away meanwhile
            report.lost_commits += 1
            log.info("compact %s: another commit was first; looking again", name)
            continue
        report.commits += 1
        report.merged += len(removed)
        report.bytes += sum(file.file_size_in_bytes for file in removed)
        report.files_after = len(live) - len(removed) + len(added)
        return
    raise MantaError(f"compact {name}: found another commit first {LOST_COMMITS} times, wanted to be first once")


def _stands(table: Table, live: Mapping[str, FileScanTask], one: _Merged) -> bool:
    """Whether all that it stands for is still there as it was, and it itself: an erasure removes what is unfinished."""
    sources = [live.get(file.file_path) for file in one.sources]
    untouched = all(task is not None and not task.delete_files for task in sources)
    return untouched and bool(table.io.new_input(one.file.file_path).exists())
