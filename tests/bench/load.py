"""Load on a loopback endpoint, bounded in time: a closed loop (wrk) for capacity, an open loop for latency."""

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from app.errors import MantaError

_SCRIPT = Path(__file__).with_name("recommend.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator saw. Latencies in milliseconds; in an open loop they count from the scheduled time."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    offered_per_s: float = 0.0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


def closed_loop(
    port: int, *, seconds: int, connections: int = 16, users: int = 100_000, surface: str = "home", seed: int = 1
) -> Load:
    """wrk with one thread: `connections` requests in flight, each answered one followed by the next."""
    if shutil.which("wrk") is None:
        raise MantaError("wrk was not found: install it (Debian: apt install wrk) and run the benchmark again")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", str(_SCRIPT)]
    command += [f"http://127.0.0.1:{port}", "--", str(users), "0.05", surface, str(seed)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    found = json.loads(next(line for line in text.splitlines() if line.startswith("RESULT")).removeprefix("RESULT "))
    return Load(**found)


def zipf_bodies(count: int, *, users: int = 100_000, surface: str = "home", seed: int = 1) -> list[bytes]:
    """The same kind of bodies as `recommend.lua` makes."""
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(1 / np.arange(1, users + 1))
    ranks = np.searchsorted(cumulative, rng.random(count) * cumulative[-1]) + 1
    new = rng.random(count) < 0.05
    return [
        json.dumps(
            {"surface": surface, "user_id": f"new-{seed}-{n}" if fresh else f"u{rank}", "k": 10, "context": {"n": n}}
        ).encode()
        for n, (rank, fresh) in enumerate(zip(ranks.tolist(), new.tolist(), strict=True))
    ]


def open_loop(
    port: int, bodies: list[bytes], *, per_second: float, connections: int = 64, path: str = "/v1/recommend"
) -> Load:
    """Sends at a fixed rate whatever the server does: a slow answer delays nobody else's start."""
    return asyncio.run(_open_loop(port, bodies, per_second, connections, path))


async def _open_loop(port: int, bodies: list[bytes], per_second: float, connections: int, path: str) -> Load:
    queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    latencies: list[float] = []
    errors = 0

    async def worker() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (work := await queue.get()) is not None:
            due, body = work
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            try:
                writer.write(head.encode() + b"\r\n\r\n" + body)
                status = await asyncio.wait_for(_read_answer(reader), 10)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                status = 0
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            latencies.append((time.perf_counter() - due) * 1000)
            errors += status not in (200, 202)
        writer.close()

    workers = [asyncio.create_task(worker()) for _ in range(connections)]
    began = time.perf_counter()
    for number, body in enumerate(bodies):
        due = began + number / per_second
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        queue.put_nowait((due, body))
    offered = len(bodies) / (time.perf_counter() - began)
    for _ in workers:
        queue.put_nowait(None)
    await asyncio.gather(*workers)
    p50, p99 = np.percentile(latencies, [50, 99])
    return Load(len(bodies), time.perf_counter() - began, float(p50), float(p99), errors, offered)


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
    await reader.readexactly(length)
    return int(lines[0].split()[1])


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system seconds that the processes have used so far; those that have ended count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class Background:
    """Calls `act` at a fixed rate in a thread while the block runs."""

    def __init__(self, act: Callable[[], object], per_second: float) -> None:
        self._act, self._every = act, 1 / per_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._ended.wait(max(0.0, due - time.perf_counter())):
            self._act()
            due += self._every
