"""One JSON line a request (`log.requests`) on stderr, which Ray keeps: users by their salted hash alone."""

import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from app.chain.request import Answer, Request
from app.erasure.erased import Salt

_USER = re.compile(r"/v1/users/(?P<user>.+?)(?P<more>/history|/merge)?|/v1/recommend/(?P<asked>.+)")
_BATCH = "/v1/recommend/batch"


class AccessLog:
    """Lines about answers and about every other request."""

    def __init__(self, salt: Salt, write: Callable[[str], object] | None = None) -> None:
        """`salt`: the ledger's. `write`: takes a line; None: stderr."""
        self._salt = salt
        self._write = write or _to_stderr()

    def answered(self, request: Request, answer: Answer) -> None:
        """A recommendation."""
        shown = {name: value for name, value in answer.body().items() if name != "items"}
        user = {"user": self._salt.shown(request.user_id)} if request.user_id is not None else {}
        self._line({**shown, "items": len(answer.items), **user})

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Any other request; the query is left out."""
        self._line({"method": method, **self._place(path), "status": status, "ms": round(seconds * 1000, 2)})

    def _place(self, path: str) -> dict[str, str]:
        found = _USER.fullmatch(path) if path != _BATCH else None
        if found is None:
            return {"path": path}
        if (asked := found["asked"]) is not None:
            return {"path": "/v1/recommend/*", "user": self._salt.shown(asked)}
        return {"path": f"/v1/users/*{found['more'] or ''}", "user": self._salt.shown(found["user"])}

    def _line(self, what: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        self._write(orjson.dumps({"time": moment.replace("+00:00", "Z"), **what}).decode())


def _to_stderr() -> Callable[[str], object]:
    logger = logging.getLogger("manta.access")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.__stderr__)  # Serve has put a buffer of a thousand lines before the other
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    return logger.info
