"""`manta bundles follow`: takes over what another cluster publishes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import MantaError
from deployments.processes import stopping
from deployments.run import running
from scripts import show
from scripts.session import open_session

if TYPE_CHECKING:
    from app.bundles.follow import Followed

PERIOD_S = 10.0
Source = Annotated[
    str | None, typer.Option("--from", metavar="HOST:PORT", help="The other cluster's broker; default: our own.")
]


def add_to(group: typer.Typer) -> None:
    """Registers the command."""
    group.command("follow", epilog="Example: manta bundles follow --from kafka.shop-eu:9092")(follow)


def follow(
    source: Source = None,
    once: Annotated[bool, typer.Option("--once", help="Take what is there now, and end.")] = False,
    json_: show.JsonFlag = False,
) -> None:
    """Imports what other clusters publish on `bundles.published`: each bundle once, verified, registered, not live.

    Goes on until Ctrl-C, which ends it well. With --once exit code 1 where a bundle was refused.
    """
    from app.bundles.follow import Follower, source_of

    session = open_session()
    run = running(session.home)
    broker = source_of(session.settings, source, run.kafka if run is not None else None)
    follower = Follower(session.settings, session.home, broker)
    taken: list[Followed] = []
    try:
        with stopping() as stop:
            while True:
                try:
                    for found in follower.take():
                        taken.append(found)
                        _say(found)
                except MantaError as error:
                    if once:
                        raise
                    show.say(f"{error}; trying again in {PERIOD_S:.0f} s")
                for gap in follower.gaps:
                    show.say(
                        f"{gap.topic}, partition {gap.partition}, offsets {gap.start} to {gap.end - 1}: {gap.reason}"
                    )
                if once or stop.wait(PERIOD_S):
                    break
    finally:
        follower.close()
    rows: list[dict[str, Any]] = [asdict(found) for found in taken]
    if json_:
        show.as_json({"followed": rows})
    elif once:
        show.table(rows, ["bundle", "promotion", "outcome", "reason"], "nothing new")
    refused = sum(found.outcome == "refused" for found in taken)
    if once and refused:
        raise MantaError(f"{refused} of {len(taken)} published bundles are refused")


def _say(found: "Followed") -> None:
    why = f": {found.reason}" if found.reason else ""
    show.say(f"{found.bundle or f'offset {found.offset}'}: {found.outcome}{why}")
