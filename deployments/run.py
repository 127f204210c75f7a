"""`$MANTA_HOME/run.json`: what runs for a home, so that every command finds it, joins it and can end it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import MantaError
from app.settings import Settings
from deployments.ports import Ports
from deployments.processes import Process


class Run(BaseModel):
    """One system: its ports, its processes and who uses it.

    A temporary system ends with its last user; one that `manta up` started stays until `manta down`.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    home: Path
    session: Path
    started: float
    state: Literal["starting", "up"] = "starting"
    temporary: bool = True
    endpoint: str
    kafka: str
    embedded_broker: bool
    ports: Ports
    ray: Process | None = None
    broker: Process | None = None
    broker_restarts: int = 0
    keeper: Process | None = None
    users: tuple[Process, ...] = ()
    owner: Process | None = None  # the command that this system ends with, whoever else uses it

    @property
    def address(self) -> str:
        """Where drivers join Ray."""
        return f"127.0.0.1:{self.ports.gcs}"

    @property
    def dashboard(self) -> str:
        """Address of Ray's dashboard and Jobs API."""
        return f"http://127.0.0.1:{self.ports.dashboard}"

    @property
    def settings_file(self) -> Path:
        """The settings that this system runs with, everything merged."""
        return self.home / "run-settings.yaml"

    def living_users(self) -> tuple[Process, ...]:
        """Commands that use the system now."""
        return tuple(user for user in self.users if user.alive())

    def wanted(self) -> bool:
        """Whether a command still needs a temporary system: its owner, or where it has none, any that uses it."""
        return self.owner.alive() if self.owner is not None else bool(self.living_users())

    def alive(self) -> bool:
        """Whether it still is a system: someone needs it, and what was started for it runs."""
        if self.temporary and not self.wanted():
            return False
        if self.ray is not None:
            return self.ray.alive()
        return self.broker.alive() if self.broker is not None else bool(self.living_users())

    def settings(self, given: Settings) -> Settings:
        """`given` with the address of this system's broker, and how that one answers."""
        broker = {"bootstrap_servers": self.kafka, "long_polls": given.kafka.long_polls and not self.embedded_broker}
        return given.model_copy(update={"kafka": given.kafka.model_copy(update=broker)})


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Holds the home's lock; starting and ending are done under it. Waits for whoever holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise MantaError(f"MANTA_HOME {home}: {error.strerror}: name a folder that can be written") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read(home: Path) -> Run | None:
    """What run.json says, whether or not it still lives; None where there is none or it cannot be read."""
    try:
        return Run.model_validate_json((home / "run.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write(run: Run) -> Run:
    """Puts run.json in place in one step."""
    fresh = run.home / f"run.json.{os.getpid()}"
    fresh.write_text(json.dumps(run.model_dump(mode="json"), indent=2) + "\n")
    fresh.replace(run.home / "run.json")
    return run


def update(home: Path, session: Path, **changes: object) -> Run | None:
    """Changes run.json under the lock, where it still is of that session."""
    with locked(home):
        run = read(home)
        if run is None or run.session != session:
            return None
        return write(run.model_copy(update=changes))


def running(home: Path) -> Run | None:
    """The living system of a home, or None. Takes no lock and changes nothing."""
    run = read(home)
    return run if run is not None and run.alive() else None
