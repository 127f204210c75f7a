"""Plays held-back events through the endpoint as live traffic: ask, then tell, each user's events in their order."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np


@dataclass(slots=True)
class Replayed:
    """What the clients saw. `places[i]`: the place from 1 at which event i's item stood in the answer, 0: not in it."""

    places: np.ndarray[Any, np.dtype[np.int32]]
    latencies_ms: list[float] = field(default_factory=list)
    requests: int = 0
    errors: int = 0
    degraded: int = 0
    accepted: int = 0
    not_applied: int = 0

    def percentile_ms(self, q: float) -> float:
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else float("nan")


class Client:
    """One keep-alive connection to the endpoint."""

    def __init__(self, host: str, port: int, timeout_s: float = 30.0) -> None:
        self._address, self._timeout_s = (host, port), timeout_s
        self._connection: HTTPConnection | None = None

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """(status, decoded JSON or text). A connection that the server has closed is opened again once for reads."""
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if payload is not None else {}
        if self._connection is None:
            self._connection = HTTPConnection(*self._address, timeout=self._timeout_s)
        try:
            self._connection.request(method, path, payload, headers)
            answer = self._connection.getresponse()
            raw = answer.read()
        except (OSError, HTTPException):
            self._connection.close()
            self._connection = None
            raise
        try:
            return answer.status, json.loads(raw) if raw else None
        except ValueError:
            return answer.status, raw.decode(errors="replace")


class _Feed:
    """Hands out events in time order, never two of one user at once."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._waiting: dict[str, deque[int]] = {}
        self._ready: deque[int] = deque()
        self._busy: set[str] = set()
        self._events = events
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int | None:
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            while self._next < len(self._events):
                index, self._next = self._next, self._next + 1
                user = self._events[index]["user_id"]
                if user not in self._busy:
                    self._busy.add(user)
                    return index
                self._waiting.setdefault(user, deque()).append(index)
            return None

    @property
    def idle(self) -> bool:
        """Whether nobody is being answered."""
        return not self._busy

    def done(self, index: int) -> None:
        user = self._events[index]["user_id"]
        with self._lock:
            if waiting := self._waiting.get(user):
                self._ready.append(waiting.popleft())
            else:
                self._busy.discard(user)


def replay(
    host: str,
    port: int,
    events: list[dict[str, Any]],
    *,
    surface: str,
    clients: int = 4,
    on_step: Callable[[int], None] = lambda _done: None,
) -> Replayed:
    """For each event: a request of its user, then the event itself (`wait=applied`), `clients` at a time."""
    seen = Replayed(np.zeros(len(events), np.int32))
    feed, lock, steps = _Feed(events), threading.Lock(), iter(range(1, len(events) + 1))
    ended = threading.Event()

    def client() -> None:
        connection = Client(host, port)
        while not ended.is_set():
            index = feed.take()
            if index is None:
                if feed.idle:
                    return
                time.sleep(0.001)  # every event that is left belongs to a user who is being answered
                continue
            try:
                _ask_and_tell(connection, events[index], index, surface, seen, lock)
            finally:
                feed.done(index)
            on_step(next(steps))

    threads = [threading.Thread(target=client, name=f"replay-{n}", daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        ended.set()  # Ctrl-C: nobody asks on
    return seen


def _ask_and_tell(
    connection: Client, event: dict[str, Any], index: int, surface: str, seen: Replayed, lock: threading.Lock
) -> None:
    began = time.perf_counter()
    try:
        status, answer = connection.call(
            "POST", "/v1/recommend", {"surface": surface, "user_id": event["user_id"], "k": 10}
        )
    except (OSError, HTTPException):
        status, answer = 0, None
    took_ms = (time.perf_counter() - began) * 1000
    place = 0
    if status == 200:
        ids = [item["item_id"] for item in answer["items"]]
        place = ids.index(event["item_id"]) + 1 if event["item_id"] in ids else 0
    told = _tell(connection, event)
    with lock:
        seen.requests += 1
        seen.latencies_ms.append(took_ms)
        seen.places[index] = place
        seen.errors += status != 200
        seen.degraded += status == 200 and answer["degraded"] is not None
        seen.accepted += told is not None
        seen.not_applied += told is False


def _tell(connection: Client, event: dict[str, Any], tries: int = 5) -> bool | None:
    """Whether the event is applied; None: it was never accepted. A retry is safe: events count once by event_id."""
    for attempt in range(tries):
        try:
            status, answer = connection.call("POST", "/v1/events?wait=applied", event)
        except (OSError, HTTPException):
            status, answer = 0, None
        if status == 202:
            return bool(answer["applied"])
        time.sleep(0.2 * (attempt + 1))
    return None
