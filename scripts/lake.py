"""Commands about the lake: stats, compact, expire, export, figures."""

import re
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

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# What `app.lake.maintenance` does to some tables: a report of each, as it is done.
Work = Callable[["Lake", Sequence[str], "TableProgress"], Iterator[Any]]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    lake = typer.Typer(help="The lake: stats, maintenance, export.", no_args_is_help=True)
    lake.command("stats", epilog="Example: manta lake stats --json")(stats)
    lake.command("compact", epilog="Example: manta lake compact --table events")(compact)
    lake.command("expire", epilog="Example: manta lake expire --json")(expire)
    lake.command("export", epilog="Example: manta lake export /tmp/lake")(export)
    lake.command("figures", epilog="Example: manta lake figures --size 6h --step 1h --from 2026-11-01T00:00:00Z")(
        figures
    )
    app.add_typer(lake, name="lake")


def stats(json_: show.JsonFlag = False) -> None:
    """Rows, files, bytes, snapshots and read offsets of each table; of `figures`, up to when it has final windows."""
    from app.events.schema import format_time
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
        final = {size: format_time(upto) for size, upto in now.progress.final.items()}
        read = {"offsets": offsets, "gaps": list(now.progress.gaps)} | ({"final": final} if final else {})
        rows.append({"table": name, **kept, **sizes, **read})
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


def figures(
    size: Annotated[str, typer.Option(metavar="SPAN", help="Length of a window: `15m`, `6h`, `7d`.")] = "1h",
    step: Annotated[
        str | None, typer.Option(metavar="SPAN", help="A window begins so often; absent: `--size`.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="RFC 3339; absent: the beginning.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="TIME", help="RFC 3339, exclusive; absent: the end.")] = None,
    by_source: Annotated[bool, typer.Option(help="A row per source that named the items.")] = False,
    json_: show.JsonFlag = False,
) -> None:
    """Impressions, clicks and conversions in windows of any size, computed from the lake's events and impressions."""
    import pyarrow.compute as pc

    from app.events.windows import Hopping
    from app.lake.tables import open_lake
    from app.stats.from_lake import figures_of_lake

    length = _span("--size", size)
    pace = length if step is None else _span("--step", step)
    if pace > length:
        raise SettingsError("manta lake figures", "--step", step, f"at most --size, {size}: between windows is no time")
    session = open_session()
    lake = open_lake(session.settings, session.home)
    windows = Hopping(length, pace)
    first, end = _time("--from", since), _time("--to", to)
    found = figures_of_lake(lake, session.settings, windows, start_us=first, end_us=end)
    dropped = ["count", "by_source", *([] if by_source else ["source"])]
    rows = [
        {name: value.isoformat() if name in ("start", "end") else value for name, value in row.items()}
        for row in found.filter(found["by_source"] if by_source else pc.invert(found["by_source"]))
        .drop_columns(dropped)
        .to_pylist()
    ]
    if json_:
        show.as_json({"windows": rows})
    else:
        show.table(rows, list(rows[0]) if rows else [], "nothing was shown")


def _span(option: str, text: str) -> int:
    """Microseconds."""
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if found is None:
        raise SettingsError("manta lake figures", option, text, "a number and s, m, h or d, such as 15m or 7d")
    return int(found[1]) * _SPANS[found[2]] * 1_000_000


def _time(option: str, text: str | None) -> int | None:
    """Microseconds since 1970."""
    from app.events.schema import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        raise SettingsError("manta lake figures", option, text, str(error)) from None


def _named(tables: list[str] | None, command: str) -> list[str]:
    from app.lake.tables import TABLES

    wrong = next((name for name in tables or () if name not in TABLES), None)
    if wrong is not None:
        raise SettingsError(command, "--table", wrong, f"one of {', '.join(TABLES)}")
    return list(tables or TABLES)
