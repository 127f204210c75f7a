"""The yardstick: the same chain, bundle and state in one uvicorn process, as an expert would write it without Ray.

    python -m tests.bench.bare HOME BUNDLE_FOLDER PORT

Raw ASGI on uvloop and httptools; requests that the loop finds together are answered together; the state is the same
RocksDB secondary, caught up in place. No surfaces, no swap, no shedding, no impressions, no metrics.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import torch
import uvicorn
from starlette.types import Receive, Scope, Send
from threadpoolctl import threadpool_limits

from app.api.schemas import RecommendBody
from app.bundles.load import load_bundle
from app.recommend import Answer, Chain, LiveBundle, LocalStages, Request, recommend_now
from app.settings import load_settings
from app.state.replica import StateReplica

MAX_BATCH = 32


class Bare:
    """The application."""

    def __init__(self, home: Path, folder: Path) -> None:
        settings = load_settings(home / "run-settings.yaml")
        bundle = load_bundle(folder)
        self._state = StateReplica.of_home(home, "bare")
        self._state.catch_up()
        self._live = LiveBundle(bundle)
        self._live.live.apply(self._state.item_changes(0))
        name = settings.default_surface
        surface = settings.surfaces[name]
        self._chain = Chain(name, surface, self._live, self._state, LocalStages({bundle.id: bundle}))
        self._waiting: list[tuple[Request, asyncio.Future[Any]]] = []
        self._validate = RecommendBody.__pydantic_validator__.validate_python

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = (await receive()).get("body", b"")
        status, reply = await self._reply(body) if scope["method"] == "POST" else (200, b"{}")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    async def _reply(self, body: bytes) -> tuple[int, bytes]:
        try:
            asked = self._validate(orjson.loads(body))
        except ValueError as error:
            return 422, orjson.dumps({"detail": str(error)})
        request = Request(
            user_id=asked.user_id, k=asked.k, context=asked.context or {}, arrived=time.monotonic(), request_id="bare"
        )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((request, answer))
        if len(self._waiting) == 1:
            loop.call_soon(self._work)
        return 200, orjson.dumps((await answer).body())

    def _work(self) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._work)
        if self._state.behind():
            self._state.catch_up()
            self._live.live.apply(self._state.item_changes(self._live.live.sequence))
        outcomes = recommend_now(self._chain, [request for request, _ in batch])
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Answer):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)


def main() -> None:
    """Serves until it is ended."""
    home, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    threadpool_limits(1)
    uvicorn.run(Bare(home, folder), host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning")


if __name__ == "__main__":
    main()
