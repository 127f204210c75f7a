"""Erasures in a running system: a thread that carries out what the ledger has, and goes on with what a kill left."""

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import ray
from ray.exceptions import RayError

from app.erase import Eraser, PartlyCleared, alone, request
from app.erasure.ledger import Erasure, ErasureLedger
from app.erasure.places import Known, PlaceReport, Subject, cleared
from app.errors import MantaError, StateUnavailable
from app.settings import Settings
from app.state.erasures import known_together
from app.state.everywhere import Said
from deployments.cluster import NAMESPACE
from deployments.node_actors import SUPERVISOR

_ANSWER_S = 100.0
_FILES_S = 3600.0

log = logging.getLogger("manta.erasure")


class Erasures:
    """Of one home. For the coordinator."""

    def __init__(self, settings: Settings, home: Path) -> None:
        """Begins to carry out what is not done; `settings` name the broker's address."""
        self._settings, self._home = settings, home
        self._ledger = ErasureLedger(settings, home)
        self._eraser = Eraser(settings, self._ledger, NodeStates(), [FilesApart(settings, home)])
        self._wanted = threading.Event()
        threading.Thread(target=self._work, name="erasures", daemon=True).start()

    def request(self, user_id: str) -> Erasure:
        """As `app.erase.request`."""
        erasure = request(self._settings, self._ledger, user_id)
        self._wanted.set()
        return erasure

    def erasure(self, erasure: str) -> Erasure:
        """As `ErasureLedger.erasure`."""
        return self._ledger.erasure(erasure)

    def _work(self) -> None:
        while True:
            self._wanted.clear()
            try:
                with alone(self._home) as mine:
                    for erasure in self._ledger.unfinished() if mine else ():
                        self._eraser.run(erasure.id)
                waiting = bool(self._ledger.unfinished())
            except MantaError as error:
                log.warning("erasures wait: %s", error)
                waiting = True
            except Exception:  # a full disk, for example: nobody would begin this thread anew
                log.exception("erasures wait")
                waiting = True
            self._wanted.wait(self._settings.erasure.retry_s if waiting else None)


class NodeStates:
    """The states of all nodes, by their writers: `app.erase.States`."""

    def known(self, subject: Subject) -> Known:
        """As `States.known`."""
        found = self._ask("known", subject)
        if late := [f"{writer}: {one}" for writer, one in found.items() if isinstance(one, str)]:
            raise StateUnavailable("; ".join(late))
        return known_together([one.known for one in found.values() if isinstance(one, Said)])

    def erase(self, subject: Subject) -> list[PlaceReport]:
        """As `States.erase`."""
        found = self._ask("erase", subject)
        done = [
            cleared(
                f"state: {writer}", "what it waits for, another node of its machine has cleared" if one.held else ""
            )
            for writer, one in found.items()
            if isinstance(one, Said)
        ]
        if late := [f"state: {writer}: {one}" for writer, one in found.items() if isinstance(one, str)]:
            raise PartlyCleared(done, "; ".join(late))
        return done

    @staticmethod
    def _ask(method: str, subject: Subject) -> dict[str, Said | str]:
        try:
            supervisor = ray.get_actor(SUPERVISOR, NAMESPACE)
            found: dict[str, Said | str] = ray.get(supervisor.ask.remote(method, subject), timeout=_ANSWER_S)
        except (ValueError, RayError) as error:
            raise StateUnavailable(f"the state writers do not answer: {type(error).__name__}") from None
        if not found:
            raise StateUnavailable("no state writer runs yet")
        return found


class FilesApart:
    """Lake, bundles and whatever else lies in files, cleared by a process of its own: its libraries stay in none here.

    The process is told which erasure, never who.
    """

    name = "files"

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`."""
        command = [sys.executable, "-P", "-m", "deployments.erase_files", str(self._home), subject.erasure]
        try:
            done = subprocess.run(
                command, input=self._settings.model_dump_json(), text=True, timeout=_FILES_S, capture_output=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MantaError(f"files: found {type(error).__name__}, wanted the process to end well") from None
        if done.returncode:
            raise MantaError(f"files: found exit code {done.returncode}, wanted 0")
        found = json.loads(done.stdout)
        reports = [PlaceReport(**report) for report in found["reports"]]
        if found["failures"]:
            raise PartlyCleared(reports, "; ".join(found["failures"]))
        return reports
