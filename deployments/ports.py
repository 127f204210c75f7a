"""Ports and the session folder of one system: a block of ports that no other system on the machine uses."""

import shutil
import socket
import tempfile
import time
import zlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.errors import MantaError, SettingsError
from deployments.processes import marked

# Below the kernel's ephemeral ports (32768 and up), so that no outgoing connection can take one in between.
FIRST, LAST, BLOCK = 20_000, 32_000, 200
# HAProxy binds `SESSION/h/<56 digits>/s` and refuses paths over 97 bytes; Ray's own sockets need less.
LONGEST_SESSION = 35
# A folder as young as this is of a system whose first process may not run yet.
STARTING_S = 60.0


class Ports(BaseModel):
    """Every port of one system but the endpoint's, which the settings name."""

    model_config = ConfigDict(frozen=True)

    gcs: int
    node_manager: int
    object_manager: int
    dashboard: int
    agent_http: int
    agent_grpc: int
    runtime_env_agent: int
    metrics_export: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int
    dashboard_metrics: int
    autoscaler_metrics: int
    kafka: int
    kafka_hidden: int
    replicas_http: tuple[int, int]
    replicas_grpc: tuple[int, int]

    @classmethod
    def of(cls, base: int) -> "Ports":
        """The block of BLOCK ports from `base` on."""
        single = [name for name in cls.model_fields if not name.startswith("replicas_")]
        ranges = {"replicas_http": (base + 40, base + 119), "replicas_grpc": (base + 120, base + 199)}
        return cls.model_validate({name: base + at for at, name in enumerate(single)} | ranges)


def reserve(home: Path, parent: str) -> tuple[Path, Ports]:
    """A new session folder and its ports; making the folder is what reserves the block.

    Args:
        home: Where to look first depends on it, so that a home tends to keep its ports.
        parent: Folder for the session folder; empty: the temp folder, or /tmp where that path is too long.

    Raises:
        MantaError: every block is taken.
    """
    folder = _parent(parent)
    blocks = (LAST - FIRST) // BLOCK
    start = zlib.crc32(str(home).encode()) % blocks
    for step in range(blocks):
        base = FIRST + (start + step) % blocks * BLOCK
        session = folder / f"manta-{base}"
        if _take(session):
            if _all_free(base):
                return session, Ports.of(base)
            session.rmdir()
    raise MantaError(f"no free block of ports between {FIRST} and {LAST}: end a system that runs on this machine")


def require_free(port: int, host: str, what: str) -> None:
    """Raises MantaError, with what to do, where `host:port` cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MantaError(
                f"{what}: {host}:{port} cannot be listened on ({error.strerror}): "
                "end what uses it or choose another port (--port, or MANTA_HTTP__PORT)"
            ) from None


def _parent(named: str) -> Path:
    folder = Path(named) if named else Path(tempfile.gettempdir())
    longest = LONGEST_SESSION - len(f"/manta-{LAST}")
    if len(str(folder)) > longest:
        if named:
            raise SettingsError("settings", "ray.session_dir", named, f"a path of at most {longest} bytes (sockets)")
        folder = Path("/tmp")
    return folder


def _take(session: Path) -> bool:
    try:
        session.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not session.is_dir() or time.time() - session.stat().st_mtime < STARTING_S or marked(session):
            return False
        try:  # what a killed system of another home has left behind
            shutil.rmtree(session)
            session.mkdir(mode=0o700)
        except OSError:
            return False
    except OSError as error:
        raise MantaError(f"{session}: {error.strerror}: Ray needs a folder there (setting ray.session_dir)") from None
    return True


def _all_free(base: int) -> bool:
    for port in range(base, base + BLOCK):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
