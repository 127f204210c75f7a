"""Erasing a user: what comes first, then place by place, and what came of each.

1. Requested: the ledger has the id and where the topics end (`request`).
2. Prepared: the state has read up to there, so that the sessions merged into the user are known; his columns are
   withdrawn; then it is settled, and everybody leaves out what came before.
3. Each place is cleared. Done, no file holds the id any more; failed, it is tried again from there.
"""

import asyncio
import fcntl
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from app.erasure.erased import TopicEnd
from app.erasure.ledger import Erasure, ErasureLedger
from app.erasure.places import Known, Place, PlaceReport, Subject, cleared
from app.errors import MantaError, StateUnavailable
from app.events.producer import EventProducer
from app.events.schema import EVENTS, IMPRESSIONS, USERS
from app.events.topics import bounds
from app.faults import reach
from app.settings import Settings

_TOPICS = (EVENTS, IMPRESSIONS, USERS)
_DELIVERY_S = 30.0
_PATIENCE_S = 60.0  # for the state to read up to the request
_AGAIN_S = 0.2
# Answers given before the request are on their way to `impressions` for a moment (`deployments.impressions`).
_ON_THEIR_WAY_S = 1.0
_WITHDRAWING = PlaceReport(f"kafka: {USERS}", detail="the columns are being withdrawn")

log = logging.getLogger("manta.erasure")
Say = Callable[[str], None]


class States(Protocol):
    """The state of every node."""

    def known(self, subject: Subject) -> Known:
        """What is known of the user everywhere.

        Raises:
            StateUnavailable: a node has not read up to the subject's ends yet.
        """
        ...

    def erase(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place.clear`."""
        ...


class PartlyCleared(MantaError):
    """What a place that is several has cleared, and why it failed for the rest."""

    def __init__(self, reports: Sequence[PlaceReport], reason: str) -> None:
        super().__init__(reason)
        self.reports = tuple(reports)


@contextmanager
def alone(home: Path, what: str = "erasing") -> Iterator[bool]:
    """Whether no other process carries out erasures of this home, or a part of them, meanwhile."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{what}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def request(settings: Settings, ledger: ErasureLedger, user_id: str) -> Erasure:
    """Records that a user is to be erased, with all that came up to now; the one that is not done yet, where there is.

    Raises:
        BrokerUnavailable: where the topics end cannot be asked.
        RegistryUnavailable: the ledger does not answer.
    """
    latest = ledger.latest(user_id)
    if latest is not None and latest.state != "done":
        return latest
    requested_ms = time.time_ns() // 1_000_000
    return ledger.begin(user_id, _ends(settings, _TOPICS), requested_ms)


class Eraser:
    """Carries out what the ledger has; one at a time in a home (`alone`).

    Args:
        settings: with the broker's address.
        ledger: where it stands.
        states: of all nodes.
        places: to be cleared, in this order, after the states.
    """

    def __init__(self, settings: Settings, ledger: ErasureLedger, states: States, places: Sequence[Place]) -> None:
        self._settings, self._ledger, self._states, self._places = settings, ledger, states, places

    def run(self, erasure_id: str, say: Say = lambda _: None) -> Erasure:
        """Does what is left to be done of one erasure; safe to repeat, also after kill -9.

        Returns:
            It, `done` or `failed` with the places and why.
        """
        erasure = self._ledger.erasure(erasure_id)
        if erasure.state == "done":
            return erasure
        try:
            if not erasure.settled:
                say("reading on to the request")
                erasure = self._prepare(erasure)
            reach("erasure:settled")
        except MantaError as error:
            log.warning("erasure %s could not be prepared: %s", erasure_id, error)
            return self._ledger.note_places(erasure_id, erasure.places, "failed", f"state: {error}")
        return self._clear(erasure, say)

    def _clear(self, erasure: Erasure, say: Say) -> Erasure:
        def note(reports: Sequence[PlaceReport]) -> None:
            self._ledger.note_places(erasure.id, reports)
            reach("erasure:place")

        reports, failures = clear_each(erasure, (_StatePlace(self._states), *self._places), say, note)
        if failures:
            log.warning("erasure %s failed, it is tried again: %s", erasure.id, "; ".join(failures))
            return self._ledger.note_places(erasure.id, reports, "failed", "; ".join(failures))
        return self._ledger.finish(erasure.id, reports)

    # --- what comes first

    def _prepare(self, erasure: Erasure) -> Erasure:
        """Finds the sessions, withdraws the columns, settles."""
        subject, deadline = erasure.subject, time.monotonic() + _PATIENCE_S
        while True:
            try:
                known = self._states.known(subject)
                break
            except StateUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_S)
        if known.columns or _WITHDRAWING in erasure.places:  # the latter: killed in the middle of it
            self._ledger.note_places(erasure.id, [_WITHDRAWING])
            self._withdraw(subject)
            reach("erasure:withdrawn")
            self._ledger.note_end(erasure.id, USERS, _ends(self._settings, [USERS])[USERS])
        on_their_way = subject.requested_ms / 1000 + _ON_THEIR_WAY_S - time.time()
        time.sleep(min(max(0.0, on_their_way), _ON_THEIR_WAY_S))
        if IMPRESSIONS in (found := _ends(self._settings, [IMPRESSIONS])):
            self._ledger.note_end(erasure.id, IMPRESSIONS, found[IMPRESSIONS])
        return self._ledger.settle(erasure.id, known.sessions)

    def _withdraw(self, subject: Subject) -> None:
        """The columns, from the compacted topic: a message without a value."""
        producer = EventProducer(self._settings.kafka, delivery_timeout_s=_DELIVERY_S)
        try:
            asyncio.run(producer.send(USERS, [(subject.user_id.encode(), None)]))
        finally:
            producer.close()


def clear_each(
    erasure: Erasure,
    places: Sequence[Place],
    say: Say = lambda _: None,
    note: Callable[[Sequence[PlaceReport]], None] = lambda _: None,
) -> tuple[list[PlaceReport], list[str]]:
    """Clears one place after the other: what is clear, and what failed and why. `note` hears of each."""
    reports: list[PlaceReport] = []
    failures: list[str] = []
    for place in places:
        say(place.name)
        try:
            reports += place.clear(erasure.subject)
        except PartlyCleared as error:
            reports += error.reports
            failures.append(str(error))
        except Exception as error:  # one place must not keep the others from being cleared
            failures.append(f"{place.name}: {_without_ids(str(error), erasure)}")
            if not isinstance(error, MantaError):  # where it happened, without what it says: that may be an id
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("erasure %s: %s: %s\n%s", erasure.id, place.name, type(error).__name__, where)
        note(reports)
    return reports, failures


class _StatePlace:
    name = "state"

    def __init__(self, states: States) -> None:
        self._states = states

    def clear(self, subject: Subject) -> list[PlaceReport]:
        return self._states.erase(subject)


class StaysClear:
    """Places that hold no id of anybody, and why: the report names them all the same."""

    name = "figures and answers"

    def clear(self, _: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`."""
        return [
            cleared("answer caches", "kept under digests, without an id; none is found by what the user is now"),
            cleared("live figures", "sums, without ids; they stay"),
        ]


def _ends(settings: Settings, topics: Iterable[str]) -> dict[str, TopicEnd]:
    """Where topics end now; without those that are not there."""
    held = bounds(settings.kafka, list(topics))
    return {topic: TopicEnd(found.topic_id, dict(found.end)) for topic, found in held.items() if found.exists}


def _without_ids(text: str, erasure: Erasure) -> str:
    """A reason stays in the ledger: whatever an error quotes, not the ids."""
    for name in filter(None, (erasure.user_id, *erasure.sessions)):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(the user)", text)
    return text
