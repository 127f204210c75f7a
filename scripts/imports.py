"""`manta import`: rows of files, object stores and databases, over Kafka or straight into the lake."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.errors import MantaError
from scripts import show, sources
from scripts.session import Session, open_session

if TYPE_CHECKING:
    from app.events.import_sources import Source

Kind = Literal["events", "items", "users"]


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("import", epilog="Example: manta import ratings.csv --column userId=user_id --column movieId=item_id")(
        import_
    )


def import_(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Parquet, CSV, JSON lines: file, folder, s3://, gs://; a database.")
    ],
    kind: Annotated[Kind, typer.Option(help="What the rows are.")] = "events",
    column: Annotated[list[str] | None, typer.Option(metavar="FROM=TO", help="Renames a column; repeats.")] = None,
    table: Annotated[str, typer.Option(help="PATH is a database (SQLAlchemy's address): this table.")] = "",
    query: Annotated[str, typer.Option(help="PATH is a database: what this query gives.")] = "",
    since_column: Annotated[
        str, typer.Option(metavar="COLUMN", help="Of a database only rows beyond the last import's greatest value.")
    ] = "",
    to: Annotated[
        Literal["kafka", "lake"],
        typer.Option(help="`lake`: straight there, not over Kafka; then the state is rebuilt from it."),
    ] = "kafka",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check every row, send nothing.")] = False,
    refused: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets every refused row, a line each.")] = None,
    json_: show.JsonFlag = False,
) -> None:
    """Sends rows to Kafka as events, items or users, for `manta ingest` to take; or writes them into the lake."""
    from app.erasure.erased import ErasedWatch
    from app.events.import_sources import LastValues, SqlSource
    from app.events.importing import import_rows

    columns = sources.column_map(column or [])
    session = open_session()
    last = LastValues(session.home / "imports.json")
    source = sources.source_of(path, table, query, since_column, last)

    def finish() -> None:
        if isinstance(source, SqlSource) and since_column:
            last.keep(source)

    if dry_run:
        with show.progress("import") as bar:
            result = import_rows(
                source,
                kind,
                columns,
                session.settings,
                dry_run=True,
                refused_file=refused,
                progress=bar,
                erased=ErasedWatch(session.settings, session.home),
            )
    elif to == "kafka":
        result = _over_kafka(session, source, kind, columns, refused)
        finish()
    else:
        result = _into_the_lake(session, source, kind, columns, refused)
        finish()
    if json_:
        show.as_json(result)
    else:
        rows = result.pop("first_refused")
        show.facts(result)
        print()
        show.table(rows, ["row", "reason", "detail"], "no row was refused")


def _over_kafka(
    session: Session, source: "Source", kind: Kind, columns: dict[str, str], refused: Path | None
) -> dict[str, Any]:
    from app.erasure.erased import ErasedWatch
    from app.events.importing import import_rows
    from app.events.topics import ensure_topics
    from deployments.cluster import attach

    with attach(session.settings, session.home, ray=False, say=show.say) as attached:
        ensure_topics(attached.settings.kafka)
        with show.progress("import") as bar:
            erased = ErasedWatch(attached.settings, session.home)
            return import_rows(
                source, kind, columns, attached.settings, refused_file=refused, progress=bar, erased=erased
            )


def _into_the_lake(
    session: Session, source: "Source", kind: Kind, columns: dict[str, str], refused: Path | None
) -> dict[str, Any]:
    from app.erasure.erased import ErasedWatch
    from app.events.topics import ensure_topics
    from app.lake.bulk import import_into_lake
    from app.lake.identities import IDENTITIES
    from app.lake.tables import open_lake
    from app.state.rebuild import rebuild
    from deployments.cluster import attach

    with attach(session.settings, session.home, ray=False, say=show.say) as attached:
        ensure_topics(attached.settings.kafka)
        lake = open_lake(attached.settings, session.home)
        with show.progress("import") as bar:
            erased = ErasedWatch(attached.settings, session.home)
            result = import_into_lake(
                source,
                kind,
                columns,
                attached.settings,
                lake,
                refused_file=refused,
                progress=bar,
                erased=erased,
                identities=session.home / IDENTITIES,
            )
        try:
            with show.progress("rebuild") as bar:
                rebuilt = rebuild(attached.settings, session.home, lake, bar.topic)
        except MantaError as error:
            raise MantaError(
                f"{result['written']} rows are in the lake, but the state does not know them: {error}: "
                "run `manta state rebuild`"
            ) from None
    return result | {"rebuild": asdict(rebuilt)}
