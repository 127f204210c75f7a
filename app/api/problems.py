"""Every error over HTTP is one `application/problem+json` (RFC 9457): what, found, wanted; never a stack trace."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic_core import ErrorDetails

from app.errors import (
    BrokerUnavailable,
    BundleError,
    Conflict,
    GateRefused,
    MantaError,
    NotFound,
    RegistryUnavailable,
    RequestInvalid,
    StateUnavailable,
)

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
TITLES = {
    400: "The body cannot be read",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "Wrong values",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
}
_LONGEST = 200


class FieldError(NamedTuple):
    """One wrong value: where, what was found, what was wanted."""

    field: str
    found: Any
    wanted: str

    def as_json(self) -> dict[str, Any]:
        return {"field": self.field, "found": shown(self.found), "wanted": self.wanted}


class Problem(MantaError):
    """An error that becomes an HTTP answer.

    Attributes:
        status: HTTP status.
        errors: the wrong values, where the error is about values.
        retry_after_s: seconds for `Retry-After` (429 and 503).
        more: further members of the document.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, tuple(errors)
        self.retry_after_s = retry_after_s
        self.more = dict(more or {})

    def as_json(self) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            "errors": [error.as_json() for error in self.errors],
            **self.more,
        }

    def encode(self) -> bytes:
        return encode(self.as_json())

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def encode(value: Any) -> bytes:
    """JSON; what JSON cannot say becomes text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def wrong(field: str, found: Any, wanted: str) -> Problem:
    """422 for one value."""
    return Problem(422, f"{field}: {wanted}", [FieldError(field, found, wanted)])


def wanted_in(message: str) -> str:
    """What was wanted, out of `FIELD: found X, wanted Y`; all of a message of another form."""
    return message.rpartition(", wanted ")[2]


def shown_problem(error: BaseException) -> Problem:
    """What a client is told of any error; one that is not known is logged, and its words stay here."""
    known = problem_of(error)
    if known is None:
        logger.error("a request failed", exc_info=error)
    return known or internal()


def problem_of(error: BaseException) -> Problem | None:
    """The HTTP form of a named error; None: it is nobody's fault but ours (500)."""
    match error:
        case Problem():
            return error
        case RequestInvalid():
            return Problem(422, str(error), [FieldError(error.field, error.found, error.wanted)])
        case NotFound():
            return Problem(404, str(error))
        case GateRefused():
            return Problem(409, str(error), more={"figures": error.figures})
        case Conflict():
            return Problem(409, str(error))
        case BrokerUnavailable() | StateUnavailable() | RegistryUnavailable():
            return Problem(503, str(error), retry_after_s=1)
        case BundleError():
            return Problem(409, str(error))
    return None


def internal() -> Problem:
    """500: the log has the trace, the answer has not."""
    return Problem(500, "the server failed on this request; its log says why")


def invalid(errors: Sequence[ErrorDetails | dict[str, Any]], skip: int = 0) -> Problem:
    """The problem for pydantic's errors: 400 where the text was no JSON, else 422. `skip`: leading parts of each place
    that the client did not write ("body", "query").
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return unreadable(str(first.get("ctx", {}).get("error", first["msg"])))
    fields = [_field_error(error, skip) for error in errors[:20]]
    return Problem(422, f"{fields[0].field}: {fields[0].wanted}", fields)


def unreadable(reason: str) -> Problem:
    """400."""
    return Problem(400, f"the body is not JSON in UTF-8: {reason}", [FieldError("body", None, "JSON in UTF-8")])


def _field_error(error: ErrorDetails | dict[str, Any], skip: int) -> FieldError:
    named = [str(part) for part in error["loc"][skip:] if "[" not in str(part)]  # which type of several it is not
    place = ".".join(named) or "body"
    kind = error["type"]
    if kind == "missing":
        return FieldError(place, None, "a value: it is required")
    if kind == "extra_forbidden":
        return FieldError(place, error.get("input"), "no such key")
    return FieldError(place, error.get("input"), str(error["msg"]).removeprefix("Value error, "))


def shown(value: Any) -> Any:
    """A found value as it may stand in an answer: long ones are cut."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}… ({len(value)} characters)"
    try:
        text = encode(value).decode()
    except TypeError:  # nested deeper than can be written
        return f"{type(value).__name__}, deeply nested"
    return value if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
