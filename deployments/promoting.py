"""A promotion over HTTP, for what runs beside a system and is not joined to its Ray."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from app.errors import MantaError

_ANSWER_S = 70.0
_ENDED_S = 600.0
_AGAIN_S = 0.5


def promote(endpoint: str, bundle: str, surfaces: Sequence[str]) -> None:
    """Makes a bundle live on surfaces, whatever its metrics; returns once every replica has it.

    Raises:
        MantaError: it was refused, failed, or the endpoint does not answer.
    """
    body = {"surfaces": list(surfaces), "force": True}
    promotion, deadline = _call(f"{endpoint}/v1/bundles/{bundle}/promote", body), time.monotonic() + _ENDED_S
    while promotion["state"] == "loading" and time.monotonic() < deadline:
        time.sleep(_AGAIN_S)
        promotion = _call(f"{endpoint}/v1/promotions/{promotion['promotion']}", None)
    if promotion["state"] != "live":
        raise MantaError(f"promotion of {bundle}: found {promotion['state']}, wanted live: {promotion.get('reason')}")


def _call(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
    except (OSError, ValueError) as error:
        raise MantaError(f"{url}: found {error}, wanted an answer") from None
    return found
