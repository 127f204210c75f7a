"""The jobs of a pipeline on Ray's Jobs API: one a step, under a name of its own, found again by it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from app.errors import MantaError

JobState = Literal["pending", "running", "succeeded", "failed", "stopped"]
LAST_LINES = 3


class JobsAway(MantaError):
    """The Jobs API does not answer."""


class Jobs(Protocol):
    """Where jobs run.

    Raises (every method):
        JobsAway: it does not answer now.
    """

    def state(self, job: str) -> JobState | None:
        """How it stands; None: there is no such job."""
        ...

    def submit(self, job: str, words: Sequence[str], about: Mapping[str, str]) -> None:
        """Starts a command line as a job of that name; the name was never given before."""
        ...

    def stop(self, job: str) -> None:
        """Ends it."""
        ...

    def last_words(self, job: str) -> str:
        """The end of its log, on one line."""
        ...


class RayJobs:
    """`Jobs` of a Ray cluster, whose token is in the file that RAY_AUTH_TOKEN_PATH names, if it wants any."""

    def __init__(self, address: str | None) -> None:
        """`address`: of the dashboard; None: what the environment says."""
        self._address = address
        self._client: Any = None

    def state(self, job: str) -> JobState | None:
        found = self._ask("get_job_info", job)
        return None if found is None else found.status.value.lower()

    def submit(self, job: str, words: Sequence[str], about: Mapping[str, str]) -> None:
        self._ask("submit_job", entrypoint=shlex.join(words), submission_id=job, metadata=dict(about))

    def stop(self, job: str) -> None:
        self._ask("stop_job", job)

    def last_words(self, job: str) -> str:
        lines = [line.strip() for line in (self._ask("get_job_logs", job) or "").splitlines() if line.strip()]
        return " / ".join(lines[-LAST_LINES:]) or "nothing in its log"

    def _ask(self, method: str, *words: Any, **options: Any) -> Any:
        """What the API answers; None: it knows no such job."""
        try:
            if self._client is None:
                from ray.job_submission import JobSubmissionClient

                self._client = JobSubmissionClient(self._address, headers=_token())
            return getattr(self._client, method)(*words, **options)
        except (OSError, RuntimeError) as error:  # of `requests`, all are OSErrors
            if "status code 404" in str(error):
                return None
            raise JobsAway(f"Ray's Jobs API: {str(error).splitlines()[0] if str(error) else error!r}") from None


def _token() -> dict[str, str]:
    """Ray's own look for it is made once, when Ray is imported, and finds that of another system after this one."""
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return {"Authorization": f"Bearer {Path(file).read_text().strip()}"} if file else {}
