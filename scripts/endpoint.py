"""Requests of commands to the endpoint of the system that runs."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from app.errors import MantaError

_ANSWER_S = 70.0
# What runs there is followed to its end; an endpoint that is away for longer is given up.
AWAY_S = 60.0
POLL_S = 0.2


class Away(MantaError):
    """The endpoint does not answer, or only its proxy does."""


def call(endpoint: str, path: str, body: dict[str, Any] | None = None, *, method: str | None = None) -> dict[str, Any]:
    """The answer of one request; POST where there is a body.

    Raises:
        Away: nobody answers, or 503.
        MantaError: any other error, as its problem document says.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310
        endpoint + path, data, {"Content-Type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        raise _problem(endpoint, error) from None
    except OSError as error:
        raise Away(f"the endpoint {endpoint} does not answer: {error}") from None


def asked_again(endpoint: str, path: str) -> Iterator[dict[str, Any]]:
    """One answer after another, with a pause between them, over a gateway's restart too.

    Raises:
        Away: the endpoint has been away for longer than `AWAY_S`.
        MantaError: as `call`.
    """
    answered = time.monotonic()
    while True:
        try:
            found = call(endpoint, path)
        except Away:
            if time.monotonic() - answered > AWAY_S:
                raise
        else:
            answered = time.monotonic()
            yield found
        time.sleep(POLL_S)


def _problem(endpoint: str, error: urllib.error.HTTPError) -> MantaError:
    """Anything but a problem document is Ray's proxy, which has no gateway to ask."""
    try:
        document = json.loads(error.read())
        said = str(document.get("detail") or document.get("title"))
    except (ValueError, AttributeError, OSError):
        return Away(f"the endpoint {endpoint} answered {error.code}")
    return Away(said) if error.code == 503 else MantaError(said)
