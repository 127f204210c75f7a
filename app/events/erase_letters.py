"""Erasure from `events.dlq`: the letters of one user, whose bytes hold his id."""

import logging
import time

import orjson

from app.erasure.places import PlaceReport, Subject, cleared
from app.events.dead_letters import dlq_messages, position_of
from app.events.erase_log import delete_before, until_deleted
from app.events.gathering import Record
from app.events.letter_owners import is_of
from app.events.producer import EventProducer
from app.events.schema import DLQ
from app.events.topics import bounds
from app.faults import reach
from app.settings import Settings

_DELIVERY_S = 60.0

log = logging.getLogger(__name__)


class LettersPlace:
    """The dead letters on the broker. Manta keeps none elsewhere.

    With `erasure.delete_records` the letters of others are written once more, behind, and everything before that is
    deleted; killed in between they stand there twice, and count once by their key. Without it lists and replays leave
    the user's letters out until retention has deleted them.

    Args:
        settings: with the broker's address.
    """

    name = "dead letters"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`.

        Raises:
            BrokerUnavailable: the broker cannot be reached or does not acknowledge.
        """
        kafka = self._settings.kafka
        held = bounds(kafka, [DLQ])[DLQ]
        if not any(_is_his(record, subject) for record in dlq_messages(kafka, held)):
            return [cleared(self.name, "none was his")]
        if not self._settings.erasure.delete_records:
            until, why = until_deleted(kafka, DLQ, int(time.time() * 1000))
            detail = f"left out of lists and replays; {why}; erasure.delete_records is off"
            return [PlaceReport(self.name, retention_until=until, detail=detail)]
        producer = EventProducer(kafka, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
        try:
            others = (one for one in dlq_messages(kafka, held) if one[1] and not _is_his(one, subject))
            producer.send_blocking(DLQ, others)
        finally:
            producer.close()
        reach("erase:letters")
        delete_before(kafka, held, held.end)
        until, why = until_deleted(kafka, DLQ, int(time.time() * 1000))
        log.info("erasure: dead letters of others were written again")
        return [cleared(self.name, f"deleted; the broker's files may hold them: {why} ({until})")]


def _is_his(record: Record, subject: Subject) -> bool:
    key, value = record
    return bool(value) and position_of(key) is not None and is_of(orjson.loads(value or b""), subject)
