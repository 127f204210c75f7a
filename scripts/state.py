"""Commands about the state: rebuild, checkpoint."""

from dataclasses import asdict
from typing import Any

import typer

from deployments.cluster import attach, inside_job
from deployments.run import running
from scripts import show
from scripts.session import Session, open_session


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    state = typer.Typer(help="User and item state.", no_args_is_help=True)
    state.command("rebuild", epilog="Example: manta state rebuild")(rebuild)
    state.command("checkpoint", epilog="Example: manta state checkpoint")(checkpoint)
    app.add_typer(state, name="state")


def rebuild(json_: show.JsonFlag = False) -> None:
    """Folds the lake and what Kafka holds behind it into new databases; running writers change over to them.

    Of a running system on every node.
    """
    session = open_session()
    report = _rebuilt(session)
    if json_:
        show.as_json(report)
    elif "nodes" in report:
        show.table([{"node": node} | one for node, one in report["nodes"].items()], ["node", *_SHOWN], "no node")
    else:
        show.facts(report)


_SHOWN = ("generation", "events", "items", "users", "followed", "jumps", "seconds")


def _rebuilt(session: Session) -> dict[str, Any]:
    from app.lake.tables import open_lake
    from app.state.rebuild import rebuild as fold

    run = running(session.home)
    nodes = inside_job() or (run is not None and run.ray is not None)
    with attach(session.settings, session.home, ray=nodes, say=show.say) as attached:
        if nodes:
            from deployments.rebuild_state import rebuild_everywhere

            if (reports := rebuild_everywhere(show.say)) is not None:
                return {"nodes": reports}
        with show.progress("rebuild") as bar:
            return asdict(fold(attached.settings, session.home, open_lake(attached.settings, session.home), bar.topic))


def checkpoint(json_: show.JsonFlag = False) -> None:
    """Copies this node's state to `state.checkpoints`, beside a running writer or without one."""
    from app.state.checkpoint import write_checkpoints

    session = open_session()
    reports = [asdict(one) for one in write_checkpoints(session.settings, session.home)]
    if json_:
        show.as_json(reports[0] if len(reports) == 1 else reports)
        return
    for report in reports:
        show.facts(report)
