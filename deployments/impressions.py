"""Answers go to the topic `impressions`, all or a sample: behind the answer, bounded, what is dropped is counted."""

import asyncio
import logging
import time
from collections import deque
from dataclasses import replace
from typing import Protocol

import orjson

from app.chain.request import Answer, Request
from app.chain.sample import Sample
from app.events.schema import IMPRESSIONS, SCHEMA_VERSION, format_time

logger = logging.getLogger(__name__)

FEATURES_UP_TO = 500_000  # bytes of a message: a larger one goes without them, brokers take a million at most
FLUSH_S = 0.1  # many messages at once are few requests to the broker
AT_ONCE = 256


class Optional(Protocol):
    """What sends without waiting, and counts what it does not take (`app.events.producer.EventProducer`)."""

    def try_send(self, topic: str, key: bytes, value: bytes | None) -> bool: ...


class Impressions:
    """Answers that wait for their message. Belongs to one event loop.

    Attributes:
        logged: handed over to the producer.
        dropped: never handed over.
    """

    def __init__(self, producer: Optional, limit: int, share: float = 1.0) -> None:
        """`limit`: answers that may wait here; beyond, they are dropped. `share` (0 to 1): of answers to log."""
        self._producer = producer
        self._sample = Sample(share)
        self._limit = limit
        self._waiting: deque[tuple[Request, Answer, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.logged = 0
        self.dropped = 0

    def log(self, request: Request, answer: Answer, now_us: int) -> None:
        """Notes an answer of the sample; its message is made and sent later. `now_us`: microseconds since 1970."""
        if not self._sample.takes(answer.request_id):
            return
        if len(self._waiting) >= self._limit:
            self.dropped += 1
            return
        self._waiting.append((request, answer, now_us))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def close(self, within_s: float) -> None:
        """Hands over what waits, as much as goes in that time, and counts the rest as dropped. Takes no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._limit = 0
        deadline = time.monotonic() + within_s
        while self._waiting and time.monotonic() < deadline:
            self._hand_over()
        self.dropped += len(self._waiting)
        self._waiting.clear()

    def _flush(self) -> None:
        self._timer = None
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._hand_over()
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S / 10, self._flush)

    def _hand_over(self) -> None:
        try:
            key, value = message(*self._waiting.popleft())
        except Exception:  # a context that JSON cannot say
            logger.exception("an impression could not be written")
            self.dropped += 1
            return
        self.logged += self._producer.try_send(IMPRESSIONS, key, value)


def message(request: Request, answer: Answer, now_us: int) -> tuple[bytes, bytes]:
    """(key, value) as `app.events.schema.Impression` has it; propensity 1: the order is not random."""
    optional: dict[str, object] = {
        "user_id": request.user_id,
        "session_id": request.session_id,
        "degraded": answer.degraded,
        "context": dict(request.context) or None,
    }
    if answer.seen is not None:
        optional |= {"feature_names": answer.seen.names, "features": answer.seen.values}
    body = {
        "schema_version": SCHEMA_VERSION,
        "request_id": answer.request_id,
        "surface": answer.surface,
        "variant": answer.variant,
        "bundle": answer.bundle,
        "time": format_time(now_us),
        "items": [
            {
                "item_id": item.item_id,
                "position": place,
                "score": item.score,
                "propensity": 1.0,
                **({"sources": item.sources} if item.sources else {}),
            }
            for place, item in enumerate(answer.items, 1)
        ],
        **{name: value for name, value in optional.items() if value is not None},
    }
    key = request.user_id or request.session_id or answer.request_id
    value = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    if answer.seen is not None and len(value) > FEATURES_UP_TO:
        return message(request, replace(answer, seen=None), now_us)
    return key.encode(), value
