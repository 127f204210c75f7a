"""The ledger of erasures: who was erased as salted hashes, how far, and what came of it.

The plain ids stand in it only while an erasure runs: a killed one goes on from here. When it is done they are
overwritten.
"""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from app.database import Database, database_url
from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.erasure.places import PlaceReport, Subject
from app.errors import NotFound, RegistryUnavailable
from app.settings import Settings

State = Literal["running", "done", "failed"]
_SALT_BYTES = 32
_LOG_TRIES = 50
_LOG_PAUSE_S = 0.1

_METADATA = sa.MetaData()
_SALTS = sa.Table(
    "erasure_salt",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("salt", sa.LargeBinary(64), nullable=False),
)
_ERASURES = sa.Table(
    "erasures",
    _METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("user_key", sa.LargeBinary(16), nullable=False),
    sa.Column("keys", sa.JSON, nullable=False),  # hexadecimal, the user's and the sessions'; none until it is settled
    sa.Column("plain", sa.JSON),  # {"user_id", "sessions"} until it is done
    sa.Column("requested", sa.BigInteger, nullable=False),  # milliseconds since 1970
    sa.Column("ends", sa.JSON, nullable=False),  # topic → {"id", "next": {partition: offset}}
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("places", sa.JSON, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),  # counts the changes
    # Of one user one erasure runs: the running one has its key here, which is unique.
    sa.Column("running_key", sa.LargeBinary(16), unique=True),
)


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure as the ledger has it.

    Attributes:
        id: the erasure's.
        state: `failed` ones are tried again and run on.
        reason: why it failed, the places named; None: it did not.
        requested_ms, changed_ms: milliseconds since 1970.
        ends: topic → where it ended when it was asked for.
        places: what has been reported so far.
        user_id, sessions: in plain only until it is done, then None and empty.
        settled: whether the sessions are known, and everybody leaves out what was theirs and the user's.
    """

    id: str
    state: State
    reason: str | None
    requested_ms: int
    changed_ms: int
    ends: dict[str, TopicEnd]
    places: tuple[PlaceReport, ...]
    user_id: str | None
    sessions: tuple[str, ...]
    settled: bool

    @property
    def subject(self) -> Subject:
        """Who must be cleared; only of one that is not done."""
        assert self.user_id is not None
        return Subject(self.id, self.user_id, self.sessions, self.requested_ms, self.ends)

    def as_json(self) -> dict[str, Any]:
        """The answer of `GET /v1/erasures/{id}`; no id of a user is in it."""
        return {
            "erasure": self.id,
            "state": self.state,
            "reason": self.reason,
            "requested": _text(self.requested_ms),
            "changed": _text(self.changed_ms),
            "places": [report.as_json() for report in self.places],
        }


class ErasureLedger:
    """The ledger in the registry's database; safe to share among threads.

    Raises (every method):
        RegistryUnavailable: the database does not answer.
    """

    def __init__(self, settings: Settings, home: Path) -> None:
        self._database = Database(database_url(settings, home), _METADATA)
        self.salt = self._salt()

    def close(self) -> None:
        """Gives the connections back."""
        self._database.close()

    def salted(self, user_id: str) -> str:
        """A user's hash as logs carry it."""
        return self.salt.shown(user_id)

    # --- the running of one

    def begin(self, user_id: str, ends: Mapping[str, TopicEnd], requested_ms: int) -> Erasure:
        """Records an erasure; where one of this user runs already, or failed and is to be tried again, that one.

        Args:
            user_id: who.
            ends: topic → where it ends, asked for after `requested_ms` was read.
            requested_ms: milliseconds since 1970.
        """
        key = self.salt.key("user", user_id)
        stamp = datetime.fromtimestamp(requested_ms / 1000, UTC).strftime("%Y%m%d-%H%M%S")
        row = {
            "id": f"e-{stamp}-{secrets.token_hex(4)}",
            "user_key": key,
            "keys": [],
            "plain": {"user_id": user_id, "sessions": []},
            "requested": requested_ms,
            "ends": _ends_json(ends),
            "state": "running",
            "places": [],
            "changed": _now_ms(),
            "revision": 1,
            "running_key": key,
        }
        try:
            with self._database.transaction() as connection:
                connection.execute(sa.insert(_ERASURES), row)
        except IntegrityError:
            found = self._where(_ERASURES.c.running_key == key)
            return found[0] if found else self.begin(user_id, ends, requested_ms)
        return self.erasure(str(row["id"]))

    def erasure(self, erasure: str) -> Erasure:
        """One erasure.

        Raises:
            NotFound: no such id.
        """
        found = self._where(_ERASURES.c.id == erasure)
        if not found:
            raise NotFound(f"no erasure {erasure!r}")
        return found[0]

    def unfinished(self) -> list[Erasure]:
        """Those that run or have failed, oldest first: what is still to be done."""
        return self._where(_ERASURES.c.state != "done")

    def latest(self, user_id: str) -> Erasure | None:
        """The user's last erasure; None: there was none."""
        found = self._where(_ERASURES.c.user_key == self.salt.key("user", user_id))
        return found[-1] if found else None

    def settle(self, erasure: str, sessions: Iterable[str]) -> Erasure:
        """Says which sessions were merged into the user: from now on everybody leaves out what is theirs and his.

        Not before: whoever left out the merges first would leave the sessions' own events where they are.
        """
        now = self.erasure(erasure)
        assert now.user_id is not None
        every = sorted({*now.sessions, *sessions})
        keys = [self.salt.key("user", now.user_id), *(self.salt.key("session", name) for name in every)]
        plain = {"user_id": now.user_id, "sessions": every}
        return self._change(erasure, keys=[key.hex() for key in keys], plain=plain)

    def note_end(self, erasure: str, topic: str, end: TopicEnd) -> Erasure:
        """Moves where a topic ended for this erasure: it was written to on the erasure's behalf."""
        ends = {**self.erasure(erasure).ends, topic: end}
        return self._change(erasure, ends=_ends_json(ends))

    def note_places(
        self, erasure: str, places: Sequence[PlaceReport], state: State = "running", reason: str | None = None
    ) -> Erasure:
        """Keeps what is known of the places; `failed` ones keep the plain ids, since they are tried again."""
        return self._change(erasure, places=[_report_json(report) for report in places], state=state, reason=reason)

    def finish(self, erasure: str, places: Sequence[PlaceReport]) -> Erasure:
        """It is done: the plain ids are overwritten, and gone from the database's files.

        Raises:
            RegistryUnavailable: others have been reading sqlite's log for too long.
        """
        # The state comes last: whoever reads `done` finds no id in any file.
        self._change(erasure, plain=None, running_key=None)
        for _ in range(_LOG_TRIES):
            if self._database.truncate_log():
                return self._change(
                    erasure, places=[_report_json(report) for report in places], state="done", reason=None
                )
            time.sleep(_LOG_PAUSE_S)
        raise RegistryUnavailable(f"registry {self._database.url}: found others reading its log, wanted to empty it")

    # --- what everyone may know

    def erased(self) -> Erased:
        """Every settled erasure, to leave out what is about the erased."""
        columns = (_ERASURES.c["keys"], _ERASURES.c.requested, _ERASURES.c.ends)
        entries = [
            Entry(frozenset(bytes.fromhex(key) for key in row[0]), Boundary(row[1], _ends(row[2])))
            for row in self._database.rows(sa.select(*columns).order_by(_ERASURES.c.sequence))
            if row[0]
        ]
        return Erased(self.salt, entries)

    def mark(self) -> tuple[int, int]:
        """Differs whenever anything has changed; one small read, for polling."""
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_ERASURES.c.revision), 0))
        count, revisions = self._database.rows(query)[0]
        return int(count), int(revisions)

    # --- the database

    def _salt(self) -> Salt:
        held = self._database.rows(sa.select(_SALTS.c.salt))
        if not held:
            try:
                with self._database.transaction() as connection:
                    connection.execute(sa.insert(_SALTS), {"id": 1, "salt": secrets.token_bytes(_SALT_BYTES)})
            except IntegrityError:
                pass  # another process was first
            held = self._database.rows(sa.select(_SALTS.c.salt))
        return Salt(bytes(held[0].salt))

    def _change(self, erasure: str, **values: Any) -> Erasure:
        values |= {"changed": _now_ms(), "revision": _ERASURES.c.revision + 1}
        for name, value in values.items():
            if value is None and name == "plain":
                values[name] = sa.null()  # not JSON's null
        with self._database.transaction() as connection:
            connection.execute(sa.update(_ERASURES).where(_ERASURES.c.id == erasure).values(**values))
        return self.erasure(erasure)

    def _where(self, condition: sa.ColumnElement[bool]) -> list[Erasure]:
        query = sa.select(_ERASURES).where(condition).order_by(_ERASURES.c.sequence)
        return [_erasure(row) for row in self._database.rows(query)]


def _erasure(row: Any) -> Erasure:
    plain = row.plain or {"user_id": None, "sessions": []}
    return Erasure(
        row.id,
        row.state,
        row.reason,
        row.requested,
        row.changed,
        _ends(row.ends),
        tuple(PlaceReport(**report) for report in row.places),
        plain["user_id"],
        tuple(plain["sessions"]),
        bool(row._mapping["keys"]),
    )


def _ends(found: Mapping[str, Any]) -> dict[str, TopicEnd]:
    return {
        topic: TopicEnd(end["id"], {int(partition): offset for partition, offset in end["next"].items()})
        for topic, end in found.items()
    }


def _ends_json(ends: Mapping[str, TopicEnd]) -> dict[str, Any]:
    return {
        topic: {"id": end.topic_id, "next": {str(partition): offset for partition, offset in end.next.items()}}
        for topic, end in ends.items()
    }


def _report_json(report: PlaceReport) -> dict[str, Any]:
    return {
        "place": report.place,
        "cleared": report.cleared,
        "retention_until": report.retention_until,
        "detail": report.detail,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
