"""Commands about the lake: stats, compact, expire, export."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import SettingsError
from scripts import show
from scripts.session import open_session

if TYPE_CHECKING:
    from app.lake.maintenance import TableProgress
    from app.lake.tables import Lake

Tables = Annotated[
    list[str] | None, typer.Option("--table", metavar="NAME", help="Only this table; repeats. Default: all.")
]

# What `app.lake.maintenance` does to some tables: a report of each, as it is done.
Work = Callable[["Lake", Sequence[str], "TableProgress"], Iterator[Any]]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    lake = typer.Typer(help="The lake: stats, maintenance, export.", no_args_is_help=True)
    lake.command("stats", epilog="Example: manta lake stats --json")(stats)
    lake.command("compact", epilog="Example: manta lake compact --table events")(compact)
    lake.command("expire", epilog="Example: manta lake expire --json")(expire)
    lake.command("export", epilog="Example: manta lake export /tmp/lake")(export)
    app.add_typer(lake, name="lake")


def stats(json_: show.JsonFlag = False) -> None:
    """Rows, files, bytes, snapshots and read offsets of each table."""
    from app.lake.snapshot import snapshot
    from app.lake.tables import TABLES, open_lake

    session = open_session()
    lake = open_lake(session.settings, session.home)
    rows: list[dict[str, Any]] = []
    for name in TABLES:
        now = snapshot(lake, name)
        files = now.files()
        offsets = {
            topic: {str(partition): offset for partition, offset in sorted(place.next.items())}
            for topic, place in now.progress.topics.items()
        }
        sizes = {"rows": sum(part.rows for part in files), "files": len(files), "bytes": sum(f.bytes for f in files)}
        kept = {"snapshot": now.id, "snapshots": len(now.source.metadata.snapshots)}
        rows.append({"table": name, **kept, **sizes, "offsets": offsets, "gaps": list(now.progress.gaps)})
    if json_:
        show.as_json({"tables": rows})
    else:
        shown = ["table", "rows", "files", "bytes", "snapshot", "snapshots", "offsets"]
        show.table([{**row, "gaps": len(row["gaps"])} for row in rows], [*shown, "gaps"], "no tables")


def compact(table: Tables = None, json_: show.JsonFlag = False) -> None:
    """Merges small files of each partition (`lake.target_file_bytes`); ingest and readers go on meanwhile."""
    from app.lake.maintenance import compact_tables

    shown = ["table", "files_before", "files_after", "merged", "bytes", "commits"]
    _maintain("compact", compact_tables, table, shown, json_)


def expire(table: Tables = None, json_: show.JsonFlag = False) -> None:
    """Forgets old snapshots (`lake.keep_snapshots_h`); removes files once no reader needs them (`lake.grace_h`)."""
    from app.lake.maintenance import expire_tables

    shown = ["table", "snapshots", "snapshots_left", "files", "bytes", "waiting"]
    _maintain("expire", expire_tables, table, shown, json_)


def _maintain(verb: str, work: Work, table: Tables, shown: list[str], json_: bool) -> None:
    from app.lake.tables import open_lake

    session, names = open_session(), _named(table, f"manta lake {verb}")
    with show.progress(verb) as bar:
        done = work(open_lake(session.settings, session.home), names, bar.topic)
        rows = [asdict(one) for one in done]
    if json_:
        show.as_json({"tables": rows})
    else:
        show.table(rows, shown, "no tables")


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where `TABLE/*.parquet` is written.")],
    json_: show.JsonFlag = False,
) -> None:
    """Writes every table as Parquet."""
    from app.lake.snapshot import export as write
    from app.lake.tables import open_lake

    session = open_session()
    written = write(open_lake(session.settings, session.home), folder)
    if json_:
        show.as_json({"folder": str(folder), "rows": written})
    else:
        show.facts(written)


def _named(tables: list[str] | None, command: str) -> list[str]:
    from app.lake.tables import TABLES

    wrong = next((name for name in tables or () if name not in TABLES), None)
    if wrong is not None:
        raise SettingsError(command, "--table", wrong, f"one of {', '.join(TABLES)}")
    return list(tables or TABLES)
