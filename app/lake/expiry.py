"""Old snapshots forgotten, and what nothing refers to any more removed once no reader in flight can need it."""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotsUpdate, SetPropertiesUpdate, TableUpdate

from app.errors import MantaError
from app.faults import reach
from app.lake.commit import LOST_COMMITS, NOBODY_ELSE, OFFSETS, Alone, append, progress_of
from app.lake.files import Files, referred_to
from app.lake.tables import TABLES, Lake

EXPIRED = "manta.expired"  # table property: [{"at": milliseconds, "file": whose snapshots' manifest lists}], in grace

log = logging.getLogger(__name__)
# Called with (files removed, files to remove).
FileProgress = Callable[[int, int], None]


@dataclass
class Expiry:
    """What was forgotten and removed of one table.

    Attributes:
        table: its name.
        snapshots: that were forgotten.
        snapshots_left: that can still be read by id.
        files: that were removed.
        bytes: of those.
        waiting: files that nothing refers to but readers in flight, for whom they stay until the grace period ends.
        lost_commits: times another writer was first.
    """

    table: str
    snapshots: int = 0
    snapshots_left: int = 0
    files: int = 0
    bytes: int = 0
    waiting: int = 0
    lost_commits: int = 0


def expire(
    lake: Lake,
    name: str,
    *,
    keep_s: float,
    grace_s: float,
    keep_most: int | None = None,
    now_ms: int | None = None,
    progress: FileProgress | None = None,
    alone: Alone = NOBODY_ELSE,
) -> Expiry:
    """Forgets snapshots that were superseded `keep_s` ago, then removes files that nobody can be reading.

    A file goes when no snapshot refers to it, none that was forgotten within `grace_s` did, and it is older than
    that itself (a commit under way has files that nothing refers to yet). The current snapshot stays, with the
    offsets; those that branches and tags name stay too. Killed anywhere, the next run goes on.

    Args:
        lake: where.
        name: of the table.
        keep_s: how long a snapshot can be read by its id once another has followed, seconds.
        grace_s: how long whoever planned a scan may take to read it, seconds.
        keep_most: older snapshots than the newest so many go, however young; None: all may stay.
        now_ms: the time, milliseconds; None: the clock's.
        progress: called as files are removed.
        alone: entered around the commit.

    Raises:
        MantaError: another writer was first too many times.
    """
    now = int(time.time() * 1000) if now_ms is None else now_ms
    report = Expiry(name)
    for _ in range(LOST_COMMITS):
        try:
            with alone:
                table = lake.table(name)
                _forget(table, report, now, int(keep_s * 1000), int(grace_s * 1000), keep_most)
            break
        except CommitFailedException:
            report.lost_commits += 1
            log.info("expire %s: another commit was first; looking again", name)
    else:
        raise MantaError(f"expire {name}: found another commit first {LOST_COMMITS} times, wanted to be first once")
    reach("expire:committed")
    report.snapshots_left = len(table.metadata.snapshots)
    _remove(lake, report, now - int(grace_s * 1000), progress)
    return report


def _forget(table: Table, report: Expiry, now: int, keep_ms: int, grace_ms: int, keep_most: int | None) -> None:
    """One commit: the old snapshots go, and where their files stand is written down."""
    current = table.current_snapshot()
    if current is None:
        return
    if OFFSETS not in (current.summary.additional_properties if current.summary else {}):
        # Made by another program: the offsets stand in an older one, which must not be their last place
        append(table, TABLES[table.name()[-1]].empty_table(), progress_of(table), max_open_partitions=1)
        current = table.current_snapshot()
    metadata = table.metadata
    old = _superseded(metadata, now - keep_ms, keep_most)
    if not old:
        return
    record = f"{table.location()}/metadata/expired-{uuid.uuid4()}.json"
    with table.io.new_output(record).create() as file:
        file.write(json.dumps([one.manifest_list for one in old]).encode())
    reach("expire:written")
    in_grace = [one for one in expired_records(table) if one["at"] > now - grace_ms]
    ids = [one.snapshot_id for one in old]
    records = json.dumps([*in_grace, {"at": now, "file": record}])
    forget(table, ids, SetPropertiesUpdate(updates={EXPIRED: records}))
    report.snapshots = len(old)


def forget(table: Table, ids: Sequence[int], *updates: TableUpdate) -> None:
    """Takes snapshots out of the table's metadata, with the tags and branches that name them, in one commit.

    Raises:
        pyiceberg.exceptions.CommitFailedException: another commit was first; nothing has changed.
    """
    current = table.current_snapshot()
    transaction = table.transaction()
    transaction._stage(
        (RemoveSnapshotsUpdate(snapshot_ids=list(ids)), *updates),
        (AssertRefSnapshotId(ref="main", snapshot_id=current.snapshot_id if current else None),),
    )
    try:
        transaction.commit_transaction()
    except ValueError as error:  # what pyiceberg says where another has forgotten one of them meanwhile
        if "does not exist" not in str(error):
            raise
        raise CommitFailedException("a snapshot has gone") from None


def _superseded(metadata: TableMetadata, before_ms: int, keep_most: int | None) -> list[Snapshot]:
    """Snapshots that another followed before, or that are too many; none that a branch or tag names."""
    followed = {one.parent_snapshot_id: one.timestamp_ms for one in metadata.snapshots}
    named = {ref.snapshot_id for ref in metadata.refs.values()}
    ordered = sorted(metadata.snapshots, key=lambda one: one.sequence_number or 0)
    too_many = {one.snapshot_id for one in (ordered[:-keep_most] if keep_most is not None else [])}
    return [
        one
        for one in metadata.snapshots
        if one.snapshot_id not in named
        and (followed.get(one.snapshot_id, one.timestamp_ms) <= before_ms or one.snapshot_id in too_many)
    ]


def expired_records(table: Table) -> list[dict[str, Any]]:
    """`{"at": milliseconds, "file": ...}`: when snapshots were forgotten, and the file that lists their manifests."""
    found: list[dict[str, Any]] = json.loads(table.metadata.properties.get(EXPIRED, "[]"))
    return found


def _remove(lake: Lake, report: Expiry, before_ms: int, progress: FileProgress | None) -> None:
    """Removes the files of the table's folder that nothing refers to since `before_ms`."""
    there = list(Files.of(lake.table(report.table)).listed())
    table = lake.table(report.table)  # after the listing: what was committed meanwhile is referred to
    files = Files.of(table)
    kept = referred_to(table, files)
    in_grace = [one["file"] for one in expired_records(table) if one["at"] > before_ms]
    kept_for_readers = files.of_expired(in_grace)
    gone = [one for one in there if one.path not in kept]
    old = [one for one in gone if one.path not in kept_for_readers and one.modified_ms <= before_ms]
    report.waiting = len(gone) - len(old)
    for place, one in enumerate(old, 1):
        reach("expire:removing")
        if files.remove(one.path):
            report.files += 1
            report.bytes += one.bytes
        if progress is not None:
            progress(place, len(old))
