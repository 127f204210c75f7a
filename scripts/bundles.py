"""`manta bundles`: what there is, what is live, and the ways to change it."""

import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from app.errors import MantaError
from deployments.processes import marked
from deployments.run import Run, running
from scripts import bundle_pages, show
from scripts.endpoint import asked_again, call
from scripts.session import open_session

if TYPE_CHECKING:
    from app.bundles.registry import Registry

BundleId = Annotated[str, typer.Argument(metavar="ID", help="Id of the bundle.")]
Promoted = dict[str, Any]


def add_to(app: typer.Typer) -> typer.Typer:
    """Registers the group; the command line adds what needs the offline side."""
    group = typer.Typer(
        help="Bundles: list, show, history, verify, promote, rollback, export, import.", no_args_is_help=True
    )
    group.command("list", epilog="Example: manta bundles list --json")(list_)
    group.command("show", epilog="Example: manta bundles show b-20261121-1")(show_)
    group.command("history", epilog="Example: manta bundles history --surface home")(history)
    group.command("verify", epilog="Example: manta bundles verify b-20261121-1")(verify)
    group.command("export", epilog="Example: manta bundles export b-20261121-1 s3://shop/bundles")(export)
    group.command("import", epilog="Example: manta bundles import s3://shop/bundles/b-20261121-1")(import_)
    app.add_typer(group, name="bundles")
    return group


def list_(json_: show.JsonFlag = False) -> None:
    """Registered bundles, newest first, and where each is live."""
    from app.bundles.registry import rfc3339

    registry = _registry()
    live = registry.aliases().live
    rows = [
        {
            "bundle": row.id,
            "created": rfc3339(row.created),
            "live": [surface for surface, bundle in live.items() if bundle == row.id],
            "metrics": row.manifest.get("metrics") or {},
            "folder": str(row.folder),
        }
        for row in registry.bundles()
    ]
    if json_:
        show.as_json({"bundles": rows})
    else:
        bundle_pages.overview(rows, open_session().settings.learn.metric)


def show_(bundle: BundleId, json_: show.JsonFlag = False) -> None:
    """Where a bundle came from and how good it is: lake snapshot, code, sweep, seed, data, metrics, segments."""
    registry = _registry()
    row = registry.bundle(bundle)
    live = [surface for surface, name in registry.aliases().live.items() if name == row.id]
    if json_:
        show.as_json({"bundle": row.id, "folder": str(row.folder), "live": live, **row.manifest})
        return
    bundle_pages.lineage(str(row.folder), row.manifest, live, open_session().settings.learn.metric)


def history(
    surface: Annotated[str | None, typer.Option(help="Of this surface alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    json_: show.JsonFlag = False,
) -> None:
    """Promotions and rollbacks, newest first: what became of each, and why it was refused or taken back."""
    found = _registry().promotions(limit if surface is None else 10_000)
    rows = [one.as_json() for one in found if surface is None or surface in one.surfaces][:limit]
    if json_:
        show.as_json({"promotions": rows})
    else:
        bundle_pages.history(rows)


def verify(
    bundle: Annotated[str, typer.Argument(metavar="ID|FOLDER", help="A registered bundle, or any bundle's folder.")],
    json_: show.JsonFlag = False,
) -> None:
    """Checks every file of a bundle against its manifest, and that against the registry. Exit code 1: one differs."""
    from app.bundles.manifest import verify as verify_folder

    folder, registered = Path(bundle), None
    if not folder.is_dir():
        row = _registry().bundle(bundle)
        folder, registered = row.folder, row.files
    manifest = verify_folder(folder, registered)
    result = {"bundle": manifest.id, "folder": str(folder), "files": len(manifest.files), "sound": True}
    if json_:
        show.as_json(result)
    else:
        print(f"{manifest.id}: {len(manifest.files)} files are as they were written")


def export(
    bundle: BundleId,
    to: Annotated[str, typer.Argument(metavar="DIR|ADDRESS", help="It becomes DIR/ID; also s3://…, gs://….")],
    json_: show.JsonFlag = False,
) -> None:
    """Copies a bundle out, for another system to import; verified first."""
    from app.artifacts import shown
    from app.bundles.transfer import export_bundle

    sent = asdict(export_bundle(_registry().bundle(bundle).folder, to))
    _say(sent | {"place": shown(sent["place"])}, json_)


def import_(
    place: Annotated[str, typer.Argument(metavar="FOLDER|ADDRESS", help="The bundle's own folder.")],
    json_: show.JsonFlag = False,
) -> None:
    """Takes a bundle in that another system has exported: verified, registered, not live."""
    from app.bundles.registry import bundles_folder
    from app.bundles.retention import retire
    from app.bundles.transfer import import_bundle

    session, registry = open_session(), _registry()
    parent = bundles_folder(session.settings, session.home)
    found, manifest = import_bundle(place, parent, lambda bundle: any(row.id == bundle for row in registry.bundles()))
    registry.register(found.bundle, Path(found.place), manifest.model_dump(mode="json"))
    retire(registry, parent, session.settings.registry.keep)
    _say(asdict(found), json_)


def _say(result: dict[str, Any], json_: bool) -> None:
    if json_:
        show.as_json(result)
    else:
        show.facts(result)


def serving(home: Path) -> Run | None:
    """The system through whose endpoint a home's bundles are promoted. None: offline, the registry's alias is moved.

    A system that is up has one. One that is starting (`manta up` under way, or what a command like `manta ingest`
    needs for itself) may get one or never will: what counts is whether its endpoint answers now. If not, nobody is
    answered from a bundle yet: replicas read the alias when they start, and the coordinator of an endpoint that comes
    meanwhile follows it within a second.
    """
    run = running(home)
    if run is None or run.state == "up" or _answers(run):
        return run
    return None


def _answers(run: Run) -> bool:
    """Whether the endpoint is this system's (another home's may have the port) and has a gateway."""
    port = int(run.endpoint.rsplit(":", 1)[1])
    if not any(_listens(process.pid, port) for process in marked(run.session)):
        return False
    try:
        with urllib.request.urlopen(run.endpoint + "/healthz", timeout=2):  # noqa: S310
            return True
    except OSError:
        return False


def _listens(pid: int, port: int) -> bool:
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)


def promote_live(run: Run, bundle: str, surfaces: list[str] | None, force: bool, expected: str | None) -> Promoted:
    """Through the endpoint: every replica loads it, then all change at once. Waits for the end."""
    body: dict[str, Any] = {"force": force}
    if surfaces:
        body["surfaces"] = surfaces
    if expected:
        body["expected"] = expected
    return _follow(run, call(run.endpoint, f"/v1/bundles/{bundle}/promote", body))


def rollback_live(run: Run, surface: str) -> Promoted:
    """Through the endpoint, as `promote_live`."""
    return _follow(run, call(run.endpoint, f"/v1/surfaces/{surface}/rollback", {}))


def report(promotion: Promoted, as_json: bool) -> None:
    """Prints what became of a promotion; MantaError unless it is live."""
    if as_json:
        show.as_json(promotion)
    elif promotion["state"] == "live":
        print(f"{promotion['bundle']} is live on {', '.join(promotion['surfaces'])}")
    if promotion["state"] != "live":
        raise MantaError(f"promotion {promotion['promotion']}: {promotion['state']}: {promotion.get('reason') or '-'}")


def _registry() -> "Registry":
    from app.bundles.registry import open_registry

    session = open_session()
    return open_registry(session.settings, session.home)


def _follow(run: Run, begun: Promoted) -> Promoted:
    """Waits for the end of a promotion; every step of it has its own time limit."""
    promotion, told = begun, ""
    answers = asked_again(run.endpoint, f"/v1/promotions/{begun['promotion']}")
    while promotion["state"] == "loading":
        if (line := _progress(promotion)) != told:
            show.say(line)
            told = line
        promotion = next(answers)
    return promotion


def _progress(promotion: Promoted) -> str:
    if not promotion.get("figures", {}).get("sound"):
        return "checking its files: hashes and a request"
    replicas = promotion.get("replicas", {})
    return f"loading: {replicas.get('loaded', 0)} of {replicas.get('total', 0)} replicas"
