"""Commands about data: lake (`scripts.lake`), dlq."""

import base64
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import NotFound, SettingsError
from deployments import cluster
from scripts import lake, show
from scripts.session import open_session

if TYPE_CHECKING:
    from app.events.dead_letters import Position

_REASONS = ("json", "type", "missing", "range", "future", "version", "key")  # `EventRejected.code` of a message
Place = Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="Where the message stood.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    lake.add_to(app)
    letters = typer.Typer(help="Messages that could not be read, and why.", no_args_is_help=True)
    letters.command("list", epilog="Example: manta dlq list --limit 20")(dlq_list)
    letters.command("show", epilog="Example: manta dlq show events/3/1207")(dlq_show)
    letters.command("replay", epilog="Example: manta dlq replay --reason missing --dry-run")(dlq_replay)
    app.add_typer(letters, name="dlq")


def dlq_list(
    limit: Annotated[int, typer.Option(min=0, help="Messages shown at most; all are counted.")] = 100,
    json_: show.JsonFlag = False,
) -> None:
    """Dead letters: how many, why, and the first ones."""
    from app.erasure.erased import load_erased
    from app.events.dead_letters import list_dead_letters

    session = open_session()
    with cluster.attach(session.settings, session.home, ray=False, say=show.say) as attached:
        found = list_dead_letters(attached.settings.kafka, limit, load_erased(session.settings, session.home))
    if json_:
        show.as_json(found)
        return
    show.facts({"total": found["total"], **found["by_reason"], "replayed": found["replayed"]})
    print()
    show.table(found["messages"], ["topic", "partition", "offset", "reason", "time", "detail"], "no dead letters")


def dlq_show(position: Place, json_: show.JsonFlag = False) -> None:
    """One dead letter in full; key and message as text, with `--json` in base64."""
    from app.erasure.erased import load_erased
    from app.events.dead_letters import show_dead_letter

    wanted = _position("manta dlq show", position)
    session = open_session()
    with cluster.attach(session.settings, session.home, ray=False, say=show.say) as attached:
        found = show_dead_letter(attached.settings.kafka, wanted, load_erased(session.settings, session.home))
    if found is None:
        raise NotFound(f"no dead letter of {position}")
    if json_:
        show.as_json(found)
    else:
        show.facts(found | {name: _text(found[name]) for name in ("key", "raw")})


def _text(encoded: str) -> str:
    """Bytes for a terminal: what is no text, or would move the cursor, is escaped."""
    text = base64.b64decode(encoded).decode(errors="backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def dlq_replay(
    positions: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC/PARTITION/OFFSET]...", help="Only these; default: all.")
    ] = None,
    reason: Annotated[
        list[str] | None, typer.Option(help=f"Only those of this reason ({', '.join(_REASONS)}); repeats.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    json_: show.JsonFlag = False,
) -> None:
    """Sends dead letters back to their topics once the cause is mended; sent twice, an event counts once.

    Sent is what today's rules and settings accept; the rest stays where it is.
    """
    from app.erasure.erased import load_erased
    from app.events.replay import Choice, replay_dead_letters

    wanted = frozenset(_position("manta dlq replay", word) for word in positions or [])
    if wrong := [word for word in reason or [] if word not in _REASONS]:
        raise SettingsError("manta dlq replay", "--reason", wrong[0], f"one of {', '.join(_REASONS)}")
    choice = Choice(wanted, frozenset(reason or []))
    session = open_session()
    with (
        cluster.attach(session.settings, session.home, ray=False, say=show.say) as attached,
        show.progress("replay") as bar,
    ):
        erased = load_erased(session.settings, session.home)
        report = replay_dead_letters(attached.settings, choice, dry_run=dry_run, progress=bar, erased=erased)
    if json_:
        show.as_json(report.as_json())
    else:
        rows = report.as_json()
        refused = rows.pop("first_refused")
        show.facts(rows)
        print()
        show.table(refused, ["topic", "partition", "offset", "reason", "detail"], "nothing was refused")
    if report.unknown:
        raise NotFound(f"no dead letter of {', '.join(report.unknown)}")


def _position(command: str, word: str) -> "Position":
    from app.events.dead_letters import position_of

    found = position_of(word.encode())
    if found is None:
        raise SettingsError(command, "TOPIC/PARTITION/OFFSET", word, "for example events/3/1207")
    return found
