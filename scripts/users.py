"""Commands about users: show, erase."""

import os
import urllib.parse
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.errors import MantaError, NotFound
from deployments.run import Run, running
from scripts import show
from scripts.bundles import serving
from scripts.endpoint import asked_again, call
from scripts.session import Session, open_session

if TYPE_CHECKING:
    from app.state.reader import UserHistory

UserId = Annotated[str, typer.Argument(metavar="ID", help="The user's id.")]
Document = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    users = typer.Typer(help="Users: what is known of one, and erasure.", no_args_is_help=True)
    users.command("show", epilog="Example: manta users show 42")(show_)
    users.command("erase", epilog="Example: manta users erase 42 --json")(erase)
    app.add_typer(users, name="users")


def show_(user_id: UserId, json_: show.JsonFlag = False) -> None:
    """Says what the state has of a user: columns and events; and what his last erasure came to."""
    session = open_session()
    found = _known(session, user_id)
    if found is None:
        raise NotFound("no such user: nothing is known of that id, and nothing was erased")
    if json_:
        show.as_json(found)
        return
    show.facts({key: value for key, value in found.items() if key != "erasure"})
    if found["erasure"] is not None:
        print()
        _print(found["erasure"])


def erase(user_id: UserId, json_: show.JsonFlag = False) -> None:
    """Erases all that is known of a user, everywhere; returns once it is done, or says which places failed."""
    session = open_session()
    run = serving(session.home)
    done = _erase_here(session, user_id) if run is None else _erase_there(run, user_id)
    if json_:
        show.as_json(done)
    else:
        _print(done)
    if done["state"] != "done":
        raise MantaError(f"erasure {done['erasure']}: {done['state']}: {done['reason']}; run it again")


def _erase_there(run: Run, user_id: str) -> Document:
    """Through the endpoint: every node does its part."""
    path = "/v1/users/" + urllib.parse.quote(user_id, safe="")
    begun = call(run.endpoint, path, method="DELETE")
    show.say(f"erasure {begun['erasure']}")
    told = 0
    answers = asked_again(run.endpoint, f"/v1/erasures/{begun['erasure']}")
    while True:
        found = next(answers)
        for place in found["places"][told:]:
            show.say(f"{place['place']}: {place.get('detail') or 'clear'}")
        told = max(told, len(found["places"]))
        if found["state"] != "running":
            return found


def _erase_here(session: Session, user_id: str) -> Document:
    """In this process: no system answers."""
    from app.erase import Eraser, alone, request
    from app.erasure.ledger import ErasureLedger
    from app.events.topics import ensure_topics
    from app.state.states_here import StatesHere
    from deployments.cluster import attach
    from deployments.erase_files import places_of

    with attach(session.settings, session.home, ray=False, say=show.say) as attached, alone(session.home) as mine:
        if not mine:
            raise MantaError("another erasure is being carried out in this home: run it again once that has ended")
        settings = attached.settings
        ensure_topics(settings.kafka)
        ledger = ErasureLedger(settings, session.home)
        states = StatesHere(settings, session.home)
        eraser = Eraser(settings, ledger, states, places_of(settings, session.home, None))
        try:
            erasure = request(settings, ledger, user_id)
            show.say(f"erasure {erasure.id}")
            return eraser.run(erasure.id, show.say).as_json()
        finally:
            ledger.close()


def _known(session: Session, user_id: str) -> Document | None:
    from app.erasure.ledger import ErasureLedger
    from app.events.schema import format_time

    latest = None
    if session.settings.registry.url or (session.home / "registry.db").exists():
        latest = ErasureLedger(session.settings, session.home).latest(user_id)
    kept = _in_the_state(session, user_id)
    found: Document = {"user_id": user_id, "columns": kept.columns, "events": kept.events, "newest": None}
    if kept.newest_ms is not None:
        found["newest"] = format_time(kept.newest_ms * 1000)
    found["erasure"] = latest.as_json() if latest is not None else None
    return found if any(found[key] for key in ("columns", "events", "erasure")) else None


class _Kept(NamedTuple):
    """What the state has of a user; `newest_ms`: time of the newest event."""

    events: int
    newest_ms: int | None
    columns: dict[str, Any] | None


def _in_the_state(session: Session, user_id: str) -> _Kept:
    """As the writers show it, or where none runs as the databases have it."""
    from app.state.sharded import open_reader
    from app.state.states_here import StatesHere

    if running(session.home) is None:
        return _kept(*StatesHere(session.settings, session.home).shown(user_id))
    reader = open_reader(session.home, f"show-{os.getpid()}", session.settings.state)
    try:
        reader.catch_up()
        columns = reader.user_columns([user_id])[0]
        run = serving(session.home) if session.settings.state.placement == "sharded" else None
        if run is not None:  # his shard may be on another node
            return _told(run, user_id, columns)
        return _kept(reader.histories([("user", user_id)])[0], columns)
    finally:
        reader.close()


def _kept(history: "UserHistory", columns: dict[str, Any] | None) -> _Kept:
    return _Kept(len(history.item_ids), int(history.times[-1]) if len(history.times) else None, columns)


def _told(run: Run, user_id: str, columns: dict[str, Any] | None) -> _Kept:
    """As the endpoint says."""
    items = call(run.endpoint, f"/v1/users/{urllib.parse.quote(user_id, safe='')}/history")["items"]
    newest = datetime.fromisoformat(items[-1]["event_time"]) if items else None
    return _Kept(len(items), None if newest is None else round(newest.timestamp() * 1000), columns)


def _print(erasure: Document) -> None:
    show.facts({key: value for key, value in erasure.items() if key != "places" and value is not None})
    print()
    show.table(erasure["places"], ["place", "cleared", "retention_until", "detail"], "no place has been reported yet")
