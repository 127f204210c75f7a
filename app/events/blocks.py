"""Decoded messages as a reader brings them, whoever runs it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from app.errors import MantaError
from app.events.columns import Decoded
from app.events.decode import decode_topic
from app.events.identity import Hashes, identity_hashes
from app.events.ranges import OffsetRange
from app.events.reader import range_consumer, read_range
from app.events.schema import EVENTS
from app.settings import Settings


class ReadFailed(Exception):
    """A reader gave up in the middle; offsets that have gone meanwhile show when the ranges are planned anew."""

    def __init__(self, cause: MantaError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """What a reader brings: decoded messages, in offset order within a partition, and the events' identities."""

    decoded: Decoded
    hashes: Hashes | None  # uint64 (n, 2), for `events` alone


# Reads the ranges of one topic in their order. Raises ReadFailed.
Reader = Callable[[Settings, Sequence[OffsetRange]], Iterator[ReadBlock]]


def read_here(settings: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
    """Reads the ranges one after the other in this process.

    Raises:
        ReadFailed: the broker does not answer, or the offsets have gone.
    """
    consumer = range_consumer(settings.kafka)
    try:
        for cut in chunk:
            for records in read_range(consumer, cut):
                decoded = decode_topic(cut.topic, records, settings.events)
                del records  # not held while others work on what became of them
                yield ReadBlock(decoded, block_hashes(cut.topic, decoded.events))
    except MantaError as error:
        raise ReadFailed(error) from None
    finally:
        consumer.close()


def block_hashes(topic: str, accepted: pa.Table) -> Hashes | None:
    """The identities of a block of events; None for other topics."""
    if topic != EVENTS:
        return None
    return identity_hashes(accepted["user_id"], accepted["session_id"], accepted["event_id"])
