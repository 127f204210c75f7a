"""Commands about data: lake, dlq, users."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import NotFound, SettingsError
from deployments import cluster
from scripts import show
from scripts.session import open_session

Position = Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="Where the message stood.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    lake = typer.Typer(help="The lake: stats, export.", no_args_is_help=True)
    lake.command("stats", epilog="Example: manta lake stats --json")(lake_stats)
    lake.command("export", epilog="Example: manta lake export /tmp/lake")(lake_export)
    app.add_typer(lake, name="lake")
    letters = typer.Typer(help="Messages that could not be read, and why.", no_args_is_help=True)
    letters.command("list", epilog="Example: manta dlq list --limit 20")(dlq_list)
    letters.command("show", epilog="Example: manta dlq show events/3/1207")(dlq_show)
    app.add_typer(letters, name="dlq")
    users = typer.Typer(help="What the state knows of a user.", no_args_is_help=True)
    users.command("show", epilog="Example: manta users show 42 --json")(users_show)
    app.add_typer(users, name="users")


def lake_stats(json_: show.JsonFlag = False) -> None:
    """Rows, files, bytes and read offsets of each table."""
    from app.lake.snapshot import snapshot
    from app.lake.tables import TABLES, open_lake

    session = open_session()
    lake = open_lake(session.settings, session.home)
    rows = []
    for name in TABLES:
        now = snapshot(lake, name)
        files = now.files()
        offsets = {
            topic: {str(partition): offset for partition, offset in sorted(place.next.items())}
            for topic, place in now.progress.topics.items()
        }
        sizes = {"rows": sum(part.rows for part in files), "files": len(files), "bytes": sum(f.bytes for f in files)}
        rows.append({"table": name, "snapshot": now.id, **sizes, "offsets": offsets})
    if json_:
        show.as_json({"tables": rows})
    else:
        show.table(rows, ["table", "rows", "files", "bytes", "snapshot", "offsets"], "no tables")


def lake_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where `TABLE/*.parquet` is written.")],
    json_: show.JsonFlag = False,
) -> None:
    """Writes every table as Parquet."""
    from app.lake.snapshot import export
    from app.lake.tables import open_lake

    session = open_session()
    written = export(open_lake(session.settings, session.home), folder)
    if json_:
        show.as_json({"folder": str(folder), "rows": written})
    else:
        show.facts(written)


def dlq_list(
    limit: Annotated[int, typer.Option(min=0, help="Messages shown at most; all are counted.")] = 100,
    json_: show.JsonFlag = False,
) -> None:
    """Dead letters: how many, why, and the first ones."""
    from app.events.dead_letters import list_dead_letters

    session = open_session()
    with cluster.attach(session.settings, session.home, ray=False, say=show.say) as attached:
        found = list_dead_letters(attached.settings.kafka, limit)
    if json_:
        show.as_json(found)
        return
    show.facts({"total": found["total"], **found["by_reason"]})
    print()
    show.table(found["messages"], ["topic", "partition", "offset", "reason", "time", "detail"], "no dead letters")


def dlq_show(position: Position, json_: show.JsonFlag = False) -> None:
    """One dead letter in full."""
    from app.events.dead_letters import show_dead_letter

    match = re.fullmatch(r"(.+)/(\d+)/(\d+)", position)
    if match is None:
        raise SettingsError("manta dlq show", "TOPIC/PARTITION/OFFSET", position, "for example events/3/1207")
    session = open_session()
    with cluster.attach(session.settings, session.home, ray=False, say=show.say) as attached:
        found = show_dead_letter(attached.settings.kafka, match[1], int(match[2]), int(match[3]))
    if found is None:
        raise NotFound(f"no dead letter of {position}")
    if json_:
        show.as_json(found)
    else:
        show.facts(found)


def users_show(
    user: Annotated[str, typer.Argument(metavar="ID", help="The user.")],
    json_: show.JsonFlag = False,
) -> None:
    """A user's columns and history, as the state on this machine holds them."""
    from app.state.replica import StateReplica

    session = open_session()
    replica = StateReplica.of_home(session.home, f"cli-{os.getpid()}")
    try:
        replica.catch_up()
        history = replica.histories([("user", user)])[0]
        columns = replica.user_columns([user])[0]
    finally:
        replica.close()
    rows: list[dict[str, Any]] = [
        {"item_id": item, "event_type": kind, "event_time": _time(int(at))}
        for item, kind, at in zip(history.item_ids, history.event_types, history.times, strict=True)
    ]
    if json_:
        show.as_json({"user_id": user, "columns": columns, "items": rows, "version": history.version})
        return
    show.facts({"user_id": user, "columns": columns, "version": history.version})
    print()
    show.table(rows, ["event_time", "event_type", "item_id"], "no history")


def _time(milliseconds: int) -> str:
    stamp = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
