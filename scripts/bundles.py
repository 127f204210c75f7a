"""`manta bundles`: what there is, what is live, and the ways to change it."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import MantaError
from deployments.run import Run
from scripts import show
from scripts.session import open_session

if TYPE_CHECKING:
    from app.bundles.registry import Registry

BundleId = Annotated[str, typer.Argument(metavar="ID", help="Id of the bundle.")]
WAIT_S = 300.0
Promoted = dict[str, Any]


def add_to(app: typer.Typer) -> typer.Typer:
    """Registers the group; the command line adds what needs the offline side."""
    group = typer.Typer(help="Bundles: list, show, verify, promote, rollback.", no_args_is_help=True)
    group.command("list", epilog="Example: manta bundles list --json")(list_)
    group.command("show", epilog="Example: manta bundles show b-20261121-1")(show_)
    group.command("verify", epilog="Example: manta bundles verify b-20261121-1")(verify)
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
        show.table(rows, ["bundle", "created", "live", "metrics"], "no bundles yet: `manta sweep FILE.yaml` makes one")


def show_(bundle: BundleId, json_: show.JsonFlag = False) -> None:
    """The manifest of a bundle: lineage, families, metrics, files."""
    row = _registry().bundle(bundle)
    if json_:
        show.as_json({"bundle": row.id, "folder": str(row.folder), **row.manifest})
        return
    shown = {key: value for key, value in row.manifest.items() if key != "files"}
    show.facts({"folder": row.folder, **shown, "files": len(row.manifest.get("files", {}))})


def verify(
    bundle: Annotated[str, typer.Argument(metavar="ID|FOLDER", help="A registered bundle, or any bundle's folder.")],
    json_: show.JsonFlag = False,
) -> None:
    """Checks every file of a bundle against its manifest. Exit code 1 where one differs."""
    from app.bundles.manifest import verify as verify_folder

    folder = Path(bundle)
    if not folder.is_dir():
        folder = _registry().bundle(bundle).folder
    manifest = verify_folder(folder)
    result = {"bundle": manifest.id, "folder": str(folder), "files": len(manifest.files), "sound": True}
    if json_:
        show.as_json(result)
    else:
        print(f"{manifest.id}: {len(manifest.files)} files are as they were written")


def promote_live(run: Run, bundle: str, surfaces: list[str] | None, force: bool, expected: str | None) -> Promoted:
    """Through the endpoint: every replica loads it, then all change at once. Waits for the end."""
    body: dict[str, Any] = {"force": force}
    if surfaces:
        body["surfaces"] = surfaces
    if expected:
        body["expected"] = expected
    return _follow(run, _call(run, f"/v1/bundles/{bundle}/promote", body))


def rollback_live(run: Run, surface: str) -> Promoted:
    """Through the endpoint, as `promote_live`."""
    return _follow(run, _call(run, f"/v1/surfaces/{surface}/rollback", {}))


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
    """Waits for the end of a promotion."""
    deadline = time.monotonic() + WAIT_S
    promotion = begun
    told = ""
    while time.monotonic() < deadline:
        promotion = _call(run, f"/v1/promotions/{begun['promotion']}", None)
        if promotion["state"] != "loading":
            break
        replicas = promotion.get("replicas", {})
        line = f"loading: {replicas.get('loaded', 0)} of {replicas.get('total', 0)} replicas"
        if line != told:
            show.say(line)
            told = line
        time.sleep(0.2)
    return promotion


def _call(run: Run, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(run.endpoint + path, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise MantaError(_problem(error)) from None
    except OSError as error:
        raise MantaError(f"the endpoint {run.endpoint} does not answer: {error}") from None


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        document = json.loads(error.read())
        return str(document.get("detail") or document.get("title"))
    except (ValueError, AttributeError):
        return f"the endpoint answered {error.code}"
