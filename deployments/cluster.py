"""One system on one machine: its broker and its Ray, started, joined and ended by process id alone."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from app.errors import MantaError
from app.settings import Settings
from app.state.layout import StatePaths
from app.stats.store import StatsPaths
from deployments import broker, ports
from deployments.environment import (
    DROPPED,
    child_environment,
    client_environment,
    environment,
    serve_environment,
    token_path,
)
from deployments.processes import ENDING, MARKER, Process, end, ignore_signals, marked, unwinding
from deployments.run import Run, locked, read, running, update, write

__all__ = ["Attached", "Run", "attach", "join", "leave", "mark_up", "running", "stop", "wait_for_dashboard"]

NAMESPACE = "manta"
CHECKOUT = Path(__file__).resolve().parent.parent
Say = Callable[[str], None]


class Attached(NamedTuple):
    """What a command works with: the settings with the broker's address, and the system, if it is a local one."""

    settings: Settings
    run: Run | None


@contextlib.contextmanager
def attach(
    settings: Settings,
    home: Path,
    *,
    ray: bool = True,
    driver: bool = True,
    needs_broker: bool = True,
    ends: bool = False,
    say: Say,
) -> Iterator[Attached]:
    """The living system of `home`, or a temporary one that ends with its last user; joined to Ray where `ray`.

    Args:
        settings: Settings of this command.
        home: The home.
        ray: The command needs Ray.
        driver: It joins Ray; else it only speaks to its Jobs API.
        needs_broker: The command needs Kafka.
        ends: The system ends with this command, whoever else uses it (the demo).
        say: Takes a line about what is being started.

    Raises:
        MantaError: what is needed cannot be started or reached.
    """
    if ray and inside_job() and running(home) is None:  # a node of a cluster that another machine's home started
        if driver:
            join_ray()
        yield Attached(settings, None)
        return
    with unwinding():
        run = join(settings, home, ray=ray, needs_broker=needs_broker, owns=ends, say=say)
        try:
            os.environ.update(client_environment(home, run.ports) | serve_environment(settings))
            if ray and driver:
                import ray as _  # noqa: F401  # takes a second, like what it is to join

                _wait_for_ray(run)
                join_ray(run.address)
            elif ray:
                _wait_for_ray(run)
                wait_for_dashboard(run)
            yield Attached(run.settings(settings), run)
        finally:
            ignore_signals()
            if ray and driver:
                _leave_ray()
            if ends:
                stop(home)
            else:
                leave(run)


def inside_job() -> bool:
    """Whether `ray job submit` runs this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def join(settings: Settings, home: Path, *, ray: bool, needs_broker: bool, owns: bool = False, say: Say) -> Run:
    """Starts what is needed and not there, and makes this process a user of it; with `owns` it ends with this one."""
    with locked(home):
        run = read(home)
        if run is None or not run.alive():
            _end(home, run)
            run = _reserve(settings, home)
        try:
            me = Process.of()
            owner = me if owns else run.owner
            users = (*(user for user in run.living_users() if user != me), me)
            run = write(run.model_copy(update={"users": users, "owner": owner}))
            variables = child_environment(environment(settings, home, run.ports, run.session))
            if needs_broker:
                run = _with_broker(run, settings, variables, say)
            if ray and run.ray is None:
                say("starting Ray")
                run = write(run.model_copy(update={"ray": _start_ray(settings, run, variables)}))
            if run.keeper is None or not run.keeper.alive():
                run = write(run.model_copy(update={"keeper": _start_keeper(run, variables)}))
        except BaseException:
            if len(run.living_users()) <= 1 and run.temporary:
                _end(home, run)
            raise
    return run


def leave(run: Run) -> None:
    """This process uses the system no more; a temporary one without users ends."""
    me = Process.of()
    with locked(run.home):
        now = read(run.home)
        if now is None or now.session != run.session:
            return
        now = write(now.model_copy(update={"users": tuple(user for user in now.living_users() if user != me)}))
        if not now.alive():
            _end(run.home, now)


def mark_up(run: Run, *, stays: bool) -> None:
    """Nothing of the start is running any more. With `stays` the system outlives this command."""
    changes: dict[str, object] = {"state": "up"}
    if stays:
        changes["temporary"] = False
    update(run.home, run.session, **changes)


def stop(home: Path) -> bool:
    """Ends the system of `home`, and what a dead one has left; False where there was nothing."""
    with locked(home):
        run = read(home)
        return _end(home, run)


def endpoint_of(settings: Settings) -> str:
    """Where a client on this machine finds the endpoint."""
    host = settings.http.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{settings.http.port}"


def wait_for_dashboard(run: Run, seconds: float = 60.0) -> None:
    """Returns once the dashboard takes connections (jobs can be submitted then)."""
    _wait(run.ports.dashboard, run.ray, seconds, f"Ray's dashboard at {run.dashboard}")


def join_ray(address: str = "auto") -> None:
    """Joins Ray as a driver of namespace `manta`; quiet. The environment must be set (see `attach`)."""
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    if address != "auto" and ray_constants.ENABLE_RAY_CLUSTER:
        raise MantaError("Ray was imported before its environment was set: import it after attach()")
    if not ray.is_initialized():
        handlers = {number: signal.getsignal(number) for number in ENDING}
        AuthenticationTokenLoader.instance().reset_cache()  # it may hold the token of another home
        _messages_to_stderr()
        try:
            ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        except (ConnectionError, RuntimeError) as error:
            raise MantaError(f"Ray at {address} cannot be joined: {str(error).splitlines()[0]}") from error
        finally:
            _keep(handlers)


def _messages_to_stderr() -> None:
    """Ray prints the raylet's messages ("8 worker processes have been started") on stdout: there results stand."""
    from ray._private import worker

    printing = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, ignore_prefix: printing({**data, "is_err": True}, ignore_prefix)


def _keep(handlers: dict[signal.Signals, Any]) -> None:
    """Ray's core takes SIGTERM for its crash report and dies of it: the handlers from before get it back."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None:
        ray.shutdown()


def _reserve(settings: Settings, home: Path) -> Run:
    session, block = ports.reserve(home, settings.ray.session_dir)
    own = settings.kafka.bootstrap_servers
    kafka = own or f"127.0.0.1:{block.kafka}"
    run = Run(
        home=home,
        session=session,
        started=time.time(),
        endpoint=endpoint_of(settings),
        kafka=kafka,
        embedded_broker=not own,
        ports=block,
    )
    _make_token(home)
    (session / "tmp").mkdir(exist_ok=True)
    _write_private(run.settings_file, yaml.safe_dump(run.settings(settings).model_dump(mode="json"), sort_keys=False))
    return write(run)


def _make_token(home: Path) -> None:
    path = token_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
        path.chmod(0o600)
        return
    _write_private(path, secrets.token_hex(32))


def _write_private(path: Path, text: str) -> None:
    """For this user's eyes alone, also where the file was there before: settings may hold the broker's password."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, 0o600)
        file.write(text)


def _with_broker(run: Run, settings: Settings, variables: dict[str, str], say: Say) -> Run:
    if not run.embedded_broker:
        broker.require(run.settings(settings).kafka)
        return run
    if run.broker is not None and run.broker.alive():
        return run
    say("starting the embedded broker")
    return write(run.model_copy(update={"broker": broker.start(run.home, run.ports.kafka, variables)}))


def _start_ray(settings: Settings, run: Run, variables: dict[str, str]) -> Process:
    """Starts Ray's head; `_wait_for_ray` waits until drivers can join."""
    block = run.ports
    options: dict[str, object] = {
        "node-ip-address": "127.0.0.1",
        "port": block.gcs,
        "node-manager-port": block.node_manager,
        "object-manager-port": block.object_manager,
        "include-dashboard": "true",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": block.dashboard,
        "dashboard-agent-listen-port": block.agent_http,
        "dashboard-agent-grpc-port": block.agent_grpc,
        "runtime-env-agent-port": block.runtime_env_agent,
        "metrics-export-port": block.metrics_export,
        "include-log-monitor": "false",  # it would print the workers' logs into drivers, which want none
        "min-worker-port": 0,
        "max-worker-port": 0,
        "object-store-memory": settings.ray.object_store_bytes,
        "temp-dir": run.session,
    }
    if settings.ray.num_cpus is not None:
        options["num-cpus"] = settings.ray.num_cpus
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-P", "-m", "deployments.head", "start", "--head", "--block", "--disable-usage-stats"]
    return _spawn([*command, *words], variables, run.home / "logs" / "ray.log")


def _wait_for_ray(run: Run) -> None:
    try:
        _wait(run.ports.node_manager, run.ray, 120.0, "Ray")
    except MantaError as error:
        raise MantaError(f"{error}; {run.home / 'logs' / 'ray.log'} says: {_last_words(run.home)}") from None


def _start_keeper(run: Run, variables: dict[str, str]) -> Process:
    command = [sys.executable, "-P", "-m", "deployments.keeper", str(run.home), str(run.session)]
    return _spawn(command, variables, run.home / "logs" / "keeper.log")


def _spawn(command: list[str], variables: dict[str, str], log_path: Path) -> Process:
    """A child in a session of its own, so that Ctrl-C in the terminal reaches only the command that was typed."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in variables.items() if name not in DROPPED},
            cwd=CHECKOUT,
            start_new_session=True,
        )
    return Process.of(child.pid)


def _wait(port: int, process: Process | None, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while process is None or process.alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise MantaError(f"{what} did not answer within {seconds:.0f} s")
        time.sleep(0.05)
    raise MantaError(f"{what} ended while it was starting")


def _last_words(home: Path) -> str:
    lines = (home / "logs" / "ray.log").read_text(errors="replace").split("\n")
    telling = [line.strip() for line in lines if "rror" in line or "annot" in line] or [line for line in lines if line]
    return telling[-1] if telling else "nothing"


def _end(home: Path, run: Run | None) -> bool:
    """Ends every process of a session and removes its folder. Under the lock."""
    if run is None:
        (home / "run.json").unlink(missing_ok=True)
        return False
    if os.environ.get(MARKER) == str(run.session) and inside_job():
        raise MantaError("a job cannot end the system that it runs on: type it outside of `ray job submit`")
    if run.owner is not None and not run.owner.alive():  # what it had started for itself, such as a sweep
        end([user for user in run.living_users() if user.pid != os.getpid()], 3.0)
    # The head first: it takes the raylet and the rest of Ray's own processes with it, so that none starts another.
    if run.ray is not None:
        end([run.ray], 0.0)
    recorded = [process for process in (run.broker, run.keeper) if process is not None and process.pid != os.getpid()]
    end({process.pid: process for process in [*recorded, *marked(run.session)]}.values(), 3.0)
    left = marked(run.session)
    end(left, 0.0)
    if left := [process for process in marked(run.session) if process.alive()]:
        raise MantaError(f"processes {', '.join(str(process.pid) for process in left)} of {run.session} do not end")
    state = StatePaths.of(home)
    replicas = (state.replicas, *state.shards.glob("*/replicas"), StatsPaths(home).replicas)
    for folder in (run.session, home / "cache", home / "metrics", *replicas):  # of processes
        shutil.rmtree(folder, ignore_errors=True)
    run.settings_file.unlink(missing_ok=True)
    (home / "run.json").unlink(missing_ok=True)
    return True
