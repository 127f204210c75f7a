"""Places that an erasure clears: whose data, how far, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.erasure.erased import Boundary, Mask, TopicEnd, owners_of, record_ms_of


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is erased, and how far.

    Attributes:
        erasure: id of the erasure.
        user_id: who.
        sessions: sessions merged into the user: what belongs to one of them alone goes too.
        requested_ms: when it was asked for, milliseconds since 1970.
        ends: topic → where it ended then; what lies behind belongs to a new history.
    """

    erasure: str
    user_id: str
    sessions: tuple[str, ...]
    requested_ms: int
    ends: Mapping[str, TopicEnd]

    @property
    def boundary(self) -> Boundary:
        return Boundary(self.requested_ms, self.ends)

    def owns(self, rows: pa.Table) -> Mask:
        """bool (n,): rows (`user_id`, `session_id` where there is one) that are about the user, of whatever time."""
        users, sessions = owners_of(rows)
        mine = pc.fill_null(pc.equal(users, self.user_id), False)
        theirs = pc.and_(
            pc.is_null(users), pc.fill_null(pc.is_in(sessions, pa.array(self.sessions, pa.string())), False)
        )
        return np.asarray(pc.or_(mine, theirs))

    def rows(self, topic: str, rows: pa.Table) -> Mask:
        """bool (n,): rows of a table of the lake (also `partition`, `offset`, `record_time`) that must go."""
        if not len(rows):
            return np.zeros(0, np.bool_)
        places = (rows["partition"].to_numpy(), rows["offset"].to_numpy(), record_ms_of(rows))
        return self.owns(rows) & self.boundary.holds_stored(topic, *places)


class Known(NamedTuple):
    """What the state says of a user who is to be erased: the sessions merged into him, and whether he has columns."""

    sessions: tuple[str, ...]
    columns: bool


@dataclass(frozen=True, slots=True)
class PlaceReport:
    """What came of one place: it is clear (since when), or it will be by itself (until when something may be there).

    Attributes:
        place: its name, plain English.
        cleared: RFC 3339; None: not yet.
        retention_until: RFC 3339, or `unknown` with the reason in `detail`; None: it is clear.
        detail: what was done, or why it is not clear. Never an id.
    """

    place: str
    cleared: str | None = None
    retention_until: str | None = None
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `GET /v1/erasures/{id}` shows it."""
        when = {"cleared": self.cleared} if self.cleared is not None else {"retention_until": self.retention_until}
        return {"place": self.place, **when, **({"detail": self.detail} if self.detail else {})}


def cleared(place: str, detail: str = "") -> PlaceReport:
    """The place is clear as of now."""
    return PlaceReport(place, cleared=now_text(), detail=detail)


def now_text() -> str:
    """Now, RFC 3339 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Place(Protocol):
    """Somewhere that a user's data may be."""

    name: str

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """Removes what is there of the subject, so that no file holds it; safe to repeat, also after kill -9.

        Raises:
            MantaError: it could not; the erasure is tried again later. The message holds no id.
        """
        ...
