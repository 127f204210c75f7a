"""The environment of every Ray process, and that of clients: variables must stand before Ray is imported or started."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from app.settings import NOT_SETTINGS, PREFIX, Settings
from deployments.ports import Ports
from deployments.processes import MARKER

# Needed alike by nodes, drivers, jobs and clients of a system on one machine.
EVERYWHERE = {
    "RAY_AUTH_MODE": "token",
    # Ray replaces 127.0.0.1 by the machine's address, and then listens on all interfaces, unless it believes that
    # no other machine can join: this is its switch for that (on by default outside Linux).
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray runs every worker at niceness 15, the replicas that answer requests among them; trials are made nice instead.
    "RAY_worker_niceness": "0",
    "MALLOC_ARENA_MAX": "2",  # every thread of each process of Ray keeps what it has freed otherwise
    # A node that was killed is given up after five looks at it that fail at once: 5 s instead of 15. One that is slow
    # has 10 s for each look, as ever.
    "RAY_health_check_period_ms": "1000",
}
# Serve's variables that are the same in every system, on one machine and in cluster.yaml.
SERVE = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy machine starts processes slowly
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    # A line of text per request, parsed in Python by the proxy's manager, for figures that `/metrics` has anyway.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # Our limits and the hot path stand before Serve's own routing (deployments/ingress.py).
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress:middlewares",
}
# What each of Ray's workers does first.
WORKERS = {"RAY_preload_python_modules": "deployments.without_pandas,deployments.proxy_page"}
# Ray's own logs: 5 files of 20 MB each process at most.
LOGS = {"RAY_ROTATION_MAX_BYTES": "20000000", "RAY_ROTATION_BACKUP_COUNT": "5"}
# What must not reach a node from the shell that starts it.
DROPPED = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR"}


def token_path(home: Path) -> Path:
    """Where the token of a home is."""
    return home / "ray" / "token"


def environment(settings: Settings, home: Path, ports: Ports, session: Path) -> dict[str, str]:
    """What every Ray process of a system must have in its environment before it starts."""
    proxy = session / "h"
    return {
        **EVERYWHERE,
        **serve_environment(settings),
        **LOGS,
        **WORKERS,
        "TMPDIR": str(session / "tmp"),  # what Ray's processes leave there goes with the session
        MARKER: str(session),
        "MANTA_HOME": str(home),
        "MANTA_SETTINGS": str(home / "run-settings.yaml"),
        "PATH": _path(os.environ),
        "RAY_AUTH_TOKEN_PATH": str(token_path(home)),
        # `down` ends what does not end by itself: no node has to be drained for half a minute.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas_http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas_http[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replicas_grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replicas_grpc[1]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "c"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "state"),
    }


def serve_environment(settings: Settings) -> dict[str, str]:
    """Serve's variables: with HAProxy, or (`serve.haproxy: false`) with its Python proxy."""
    if settings.serve.haproxy:
        return SERVE
    return SERVE | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}


def client_environment(home: Path, ports: Ports) -> dict[str, str]:
    """What `ray job submit`, `ray status`, the Jobs API and drivers need to speak to a running system."""
    return {
        **EVERYWHERE,
        "RAY_ADDRESS": f"127.0.0.1:{ports.gcs}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports.dashboard}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{ports.dashboard}",  # the same, as `serve deploy` calls it
        "RAY_AUTH_TOKEN_PATH": str(token_path(home)),
        "MANTA_HOME": str(home),
        "PATH": _path(os.environ),
    }


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child of the system: settings are in the settings file it is given."""

    def stays(name: str) -> bool:
        setting = name.startswith(PREFIX) and name not in NOT_SETTINGS
        return not setting and name not in DROPPED

    return {name: value for name, value in os.environ.items() if stays(name)} | dict(added)


def _path(environ: Mapping[str, str]) -> str:
    """PATH with this Python's folder first: Ray jobs run whatever `python` and `manta` stand first on the node's."""
    own = str(Path(sys.executable).parent)
    rest = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder != own]
    return os.pathsep.join([own, *rest])
