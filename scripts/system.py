"""Commands about the running system: up, down, serve, status, env, openapi."""

import json
import logging
import shlex
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from app.errors import MantaError
from app.settings import Settings
from deployments import cluster
from deployments.environment import client_environment
from deployments.ports import require_free
from deployments.run import Run, running
from deployments.status import status as system_status
from scripts import show
from scripts.session import Session, open_session

READY_S = 180.0


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command(epilog="Example: manta up --port 8001")(up)
    app.command(epilog="Example: manta down")(down)
    app.command(epilog="Example: manta serve")(serve)
    app.command(epilog="Example: manta status --json")(status)
    app.command(epilog='Example: eval "$(manta env)"; ray job submit -- manta status')(env)
    app.command(epilog="Example: manta openapi > openapi.json")(openapi)


Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the endpoint; default: http.port.")]


def up(port: Port = None, json_: show.JsonFlag = False) -> None:
    """Starts the broker (unless the settings name one), Ray and the endpoint; they stay until `manta down`."""
    session = _with_port(open_session(), port)
    run = running(session.home)
    if run is not None and run.state == "up":
        _refuse_other_port(run, port)
        show.say(f"already up: {run.endpoint}")
    else:
        _require_endpoint_port(session, run)
        with cluster.attach(session.settings, session.home, say=show.say) as attached:
            if attached.run is None:  # a job on a cluster that `ray up` started
                _deploy(attached.settings, session.home)
            else:
                launch(attached.settings, attached.run)
                cluster.mark_up(attached.run, stays=True)
    _report(session, json_)


def serve(port: Port = None) -> None:
    """Starts the same as `up` and stays in the foreground; Ctrl-C ends all of it."""
    session = _with_port(open_session(), port)
    run = running(session.home)
    if run is not None and run.state == "up":
        raise MantaError(f"a system is up in {session.home} already ({run.endpoint}): `manta down` ends it")
    _require_endpoint_port(session, run)
    with cluster.attach(session.settings, session.home, ends=True, say=show.say) as attached:
        if attached.run is None:
            raise MantaError("`manta serve` starts a system of its own: type it outside of `ray job submit`")
        launch(attached.settings, attached.run)
        cluster.mark_up(attached.run, stays=False)
        show.say(f"serving at {attached.run.endpoint} until Ctrl-C; Ray's dashboard at {attached.run.dashboard}")
        while cluster.running(session.home) is not None:
            time.sleep(0.5)
        raise MantaError("the system has ended by itself; $MANTA_HOME/logs/ray.log says more")


def launch(settings: Settings, run: Run, *, hint: bool = True) -> None:
    """Everything that runs on Ray: topics, state writers, the endpoint; returns once requests can be sent.

    With `hint` it says what to do where no bundle is live yet.
    """
    _deploy(settings, run.home, hint=hint)
    cluster.wait_for_dashboard(run)


def _deploy(settings: Settings, home: Path, *, hint: bool = True) -> None:
    import deployments.without_pandas  # noqa: F401
    from app.events.topics import ensure_topics
    from deployments.build import deploy

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it is importing Serve that made it talkative
    show.say("starting the state writer and the endpoint")
    ensure_topics(settings.kafka)
    deploy(settings, home)
    live = set(settings.surfaces) <= set(live_bundles(settings, home))
    _wait_for(cluster.endpoint_of(settings) + ("/readyz" if live else "/healthz"))
    if not live and hint:
        show.say("not every surface has a live bundle: `manta sweep FILE.yaml`, then `manta bundles promote ID`")


def down(json_: show.JsonFlag = False) -> None:
    """Ends everything that runs for this home; its data stays."""
    session = open_session()
    ended = cluster.stop(session.home)
    if json_:
        show.as_json({"ended": ended, "home": str(session.home)})
    else:
        show.say("ended" if ended else f"nothing was running in {session.home}")


def status(json_: show.JsonFlag = False) -> None:
    """Says what runs: state, addresses, what is live, how far the state is behind, processes."""
    session = open_session()
    _report(session, json_)


def env(json_: show.JsonFlag = False) -> None:
    """Prints the exports that `ray job submit`, `ray status` and the Jobs API need."""
    session = open_session()
    run = running(session.home)
    if run is None or run.ray is None:
        raise MantaError(f"nothing is running in {session.home}: `manta up` starts it")
    variables = client_environment(session.home, run.ports)
    if json_:
        show.as_json(variables)
    else:
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}")


def openapi() -> None:
    """Prints the endpoint's OpenAPI document (JSON)."""
    from app.api.application import create_application
    from app.api.service import Service

    # The document describes the routes; none of them is called.
    show.as_json(create_application(cast(Service, None)).openapi())


def _with_port(session: Session, port: int | None) -> Session:
    if port is None:
        return session
    http = session.settings.http.model_copy(update={"port": port})
    return session._replace(settings=session.settings.model_copy(update={"http": http}))


def _refuse_other_port(run: Run, port: int | None) -> None:
    if port is not None and not run.endpoint.endswith(f":{port}"):
        raise MantaError(f"the system of {run.home} is up at {run.endpoint}: `manta down` first, or another --home")


def _require_endpoint_port(session: Session, run: Run | None) -> None:
    if run is None:
        require_free(session.settings.http.port, session.settings.http.host, "the endpoint")


def _report(session: Session, json_: bool) -> None:
    document = system_status(session.home, _surfaces(session), session.settings)
    if json_:
        show.as_json(document)
        return
    show.facts({key: document[key] for key in ("state", "endpoint", "dashboard", "kafka", "home", "lag", "disk")})
    print()
    show.table(document["surfaces"], ["surface", "bundle"], "no surfaces")
    print()
    _show_retention(document["retention"])
    rows = [{**row, "rss_mb": round(row["rss_bytes"] / 1e6)} for row in document["processes"]]
    show.table(rows, ["role", "name", "pid", "restarts", "cpu_percent", "rss_mb"], "no processes")


def _show_retention(measured: dict[str, Any]) -> None:
    """What each reader has left before retention reaches it, and which of them is an alarm."""
    readers = measured.get("readers", [])
    if not readers:
        return
    columns = ["reader", "topic", "partition", "unread", "hours_by_time", "hours_by_bytes", "alarm"]
    show.table([{**row, "alarm": "ALARM" if row["alarm"] else ""} for row in readers], columns, "")
    print(f"as of {measured['as_of']}; a running system looks every five minutes")
    print()


def _surfaces(session: Session) -> list[dict[str, Any]]:
    live = live_bundles(session.settings, session.home)
    return [{"surface": name, "bundle": live.get(name)} for name in session.settings.surfaces]


def live_bundles(settings: Settings, home: Path) -> dict[str, str]:
    """Surface to the bundle that is live there."""
    if not settings.registry.url and not (home / "registry.db").exists():
        return {}
    from app.bundles.registry import open_registry

    return open_registry(settings, home).aliases().live


def _wait_for(url: str) -> None:
    """Returns once the endpoint answers 200; MantaError with its last word otherwise."""
    deadline = time.monotonic() + READY_S
    said = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            said = _detail(error.read(2000)) or f"HTTP {error.code}"
        except OSError as error:
            said = str(error)
        time.sleep(0.1)
    raise MantaError(f"{url} is not ready after {READY_S:.0f} s: {said}")


def _detail(body: bytes) -> str:
    try:
        document = json.loads(body)
        return str(document.get("detail") or document)
    except (ValueError, AttributeError):
        return body.decode(errors="replace").strip()
