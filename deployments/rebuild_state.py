"""A rebuild of the state on every node of a running system: each node's writer has it done by a process of its own.

    python -m deployments.rebuild_state HOME < {"settings": {…}, "shares": [{"of", "shard"}]}

prints the report of `app.state.rebuild` as JSON; so the lake's libraries stay in no writer.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from app.errors import MantaError
from app.settings import Settings
from app.state.shares import Share
from deployments.cluster import NAMESPACE
from deployments.node_actors import WRITER_PREFIX

Report = dict[str, Any]


def rebuild_everywhere(say: Callable[[str], None]) -> dict[str, Report] | None:
    """Node → the report of its rebuild; None: there is one node alone. Ray must be joined.

    Raises:
        MantaError: it failed on some node; the others have done it.
    """
    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    if len(nodes) < 2:
        return None
    reports: dict[str, Report] = {}
    failures: list[str] = []
    asked = {_ask(node): node for node in nodes}
    say(f"rebuilding on {len(nodes)} nodes at once")
    while asked:
        (done,), _ = ray.wait(list(asked), num_returns=1)
        name, said = asked.pop(done)[:8], _said(done)
        if isinstance(said, str):
            failures.append(f"node {name}: {said}")
        else:
            reports[name] = said
        say(f"node {name}: {said if isinstance(said, str) else 'done'}")
    if failures:
        raise MantaError(f"state rebuild: done on {len(reports)} of {len(nodes)} nodes; {'; '.join(failures)}")
    return reports


def _ask(node: str) -> "ray.ObjectRef[Report | str]":
    try:
        writer = ray.get_actor(WRITER_PREFIX + node[:8], NAMESPACE)
    except ValueError:
        return ray.put("found no state writer, wanted one to run (`manta up`)")
    found: ray.ObjectRef[Report | str] = writer.rebuild.remote()
    return found


def _said(ref: "ray.ObjectRef[Report | str]") -> Report | str:
    try:
        found: Report | str = ray.get(ref)
        return found
    except RayError as error:
        return f"its state writer does not answer ({type(error).__name__})"


def rebuild_apart(settings: Settings, home: Path, shares: Sequence[Share]) -> Report:
    """Rebuilds databases of a home in another process.

    Args:
        settings: with the broker's address.
        home: MANTA_HOME.
        shares: which databases.

    Raises:
        MantaError: it failed; why.
    """
    wanted = {"settings": settings.model_dump(mode="json"), "shares": [share.saved() for share in shares]}
    command = [sys.executable, "-P", "-m", "deployments.rebuild_state", str(home)]
    try:
        done = subprocess.run(command, input=json.dumps(wanted), text=True, capture_output=True)
    except OSError as error:
        raise MantaError(f"found {error}, wanted a process to begin") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise MantaError(last or f"found exit code {done.returncode}, wanted 0")
    report: Report = json.loads(done.stdout)
    return report


def main() -> None:
    """Exit code 1 and one line on stderr where it failed."""
    from app.lake.tables import open_lake
    from app.state.rebuild import rebuild

    os.nice(5)  # answers and events come first
    wanted, home = json.load(sys.stdin), Path(sys.argv[1])
    settings, shares = Settings.model_validate(wanted["settings"]), list(map(Share.of_saved, wanted["shares"]))
    try:
        report = rebuild(settings, home, open_lake(settings, home), shares=shares)
    except MantaError as error:
        sys.exit(str(error))
    json.dump(dataclasses.asdict(report), sys.stdout)


if __name__ == "__main__":
    main()
