"""Where ingest puts what it refuses: one dead letter a source position, however often a killed ingest reads it again.

Memory is bounded whatever comes: the caller hands refused messages over as they gather, and of the letters that stand
in the topic already only the places are kept, eight bytes each.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from app.events.dead_letters import dead_letter_messages, dlq_messages, position_of, topic_id_of
from app.events.producer import EventProducer
from app.events.schema import DLQ
from app.events.topics import bounds
from app.faults import reach
from app.settings import KafkaSettings

_DELIVERY_S = 60.0
_BUFFER_BYTES = 16_000_000


class DeadLetterBox:
    """Writes the dead letters of one commit after the other.

    Args:
        settings: `settings.kafka`; the topic `events.dlq` exists.
        held_bytes: of refused messages that may gather before they are sent.
    """

    def __init__(self, settings: KafkaSettings, *, held_bytes: int = 8_000_000) -> None:
        self.reasons: Counter[str] = Counter()
        self._settings = settings
        self._most = held_bytes
        self._producer: EventProducer | None = None
        self._after: tuple[str, Mapping[int, int]] = ("", {})
        self._source_id = ""
        self._gathered: list[pa.Table] = []
        self._there: dict[tuple[str, int], array[int]] | None = None
        self._began: tuple[str, dict[int, int]] = ("", {})

    def begin(self, topic_id: str, after: Mapping[int, int], source_id: str) -> None:
        """Another commit begins: its letters may stand in the topic already, left by an ingest that was killed.

        Args:
            topic_id: id of `events.dlq` when `after` was found.
            after: partition to the offset of `events.dlq` before which none of its letters can be.
            source_id: id of the topic that is read; where it was made anew, letters of the one before are no repeats.
        """
        self._source_id = source_id
        self._after, self._there, self._gathered, self.reasons = (topic_id, after), None, [], Counter()

    def add(self, rejected: pa.Table) -> None:
        """Takes `columns.REJECTED` of this commit, counted by reason; sends once enough has gathered.

        Raises:
            BrokerUnavailable: the broker cannot be reached or does not acknowledge.
        """
        if not len(rejected):
            return
        self.reasons.update(rejected["reason"].to_pylist())
        self._gathered.append(rejected)
        if sum(table.nbytes for table in self._gathered) >= self._most:
            self._send()

    def finish(self) -> tuple[str, dict[int, int]] | None:
        """Every letter of this commit is acknowledged.

        Returns:
            (topic id, offsets of `events.dlq` before which no letter of the next commit can be), for its `begin`; None:
            there was no letter.

        Raises:
            BrokerUnavailable: the broker cannot be reached or does not acknowledge.
        """
        if self._gathered:
            self._send()
        return self._began if self._there is not None else None

    def _send(self) -> None:
        """Sends what was not in the topic when the first letters of this commit were sent."""
        if self._there is None:
            self._there = self._look()
        if self._producer is None:
            self._producer = EventProducer(
                self._settings, delivery_timeout_s=_DELIVERY_S, linger_ms=20, buffer_bytes=_BUFFER_BYTES
            )
        rejected, self._gathered = pa.concat_tables(self._gathered), []
        for part in _by_place(rejected):
            known = self._there.get((part["topic"][0].as_py(), part["partition"][0].as_py()))
            if known is not None:
                part = part.filter(pa.array(~np.isin(part["offset"].to_numpy(), np.frombuffer(known, np.int64))))
            self._producer.send_blocking(DLQ, dead_letter_messages(part, self._source_id))
        reach("ingest:dead_letters")

    def close(self) -> None:
        """Ends the producer."""
        if self._producer is not None:
            self._producer.close()

    def _look(self) -> dict[tuple[str, int], "array[int]"]:
        held = bounds(self._settings, [DLQ])[DLQ]
        topic_id, after = self._after
        self._began = (held.topic_id, dict(held.end))
        there: dict[tuple[str, int], array[int]] = {}
        for key, value in dlq_messages(self._settings, held, after if held.topic_id == topic_id else {}):
            if value and (found := position_of(key)) is not None and self._may_be_ours(value):
                there.setdefault((found.topic, found.partition), array("q")).append(found.offset)
        return there

    def _may_be_ours(self, letter: bytes) -> bool:
        """Whether a letter stood in the topic that is read, as far as both ids are known."""
        known = topic_id_of(orjson.loads(letter)) if self._source_id else ""
        return not known or known == self._source_id


def _by_place(rejected: pa.Table) -> Iterator[pa.Table]:
    """The rows of one topic and partition together."""
    for topic in rejected["topic"].unique():
        rows = rejected.filter(pc.equal(rejected["topic"], topic))
        for partition in rows["partition"].unique():
            yield rows.filter(pc.equal(rows["partition"], partition))
