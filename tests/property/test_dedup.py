"""Lake and state accept the same events, whatever comes twice around the horizon, however the stream is cut."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest.mock import patch

import orjson
import pyarrow as pa
from confluent_kafka import TIMESTAMP_CREATE_TIME
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.events.blocks import ReadBlock, block_hashes
from app.events.columns import RECORDS
from app.events.decode import decode_topic
from app.events.ranges import OffsetRange, TopicBounds
from app.events.schema import EVENTS
from app.lake import identities, ingest
from app.lake.compaction import compact
from app.lake.ingest import IngestJob
from app.lake.snapshot import snapshot
from app.lake.tables import open_lake
from app.settings import Settings
from app.state.arrivals import Arrivals
from app.state.feed import Read
from app.state.history import entries_of
from app.state.messages import to_batch
from app.state.store import StateStore
from tests.property.test_state import stored

HOUR_MS = 3_600_000
START_MS = 400_000 * HOUR_MS  # 2015: behind the clock, which the state does not look beyond
HORIZON_H = 24
SETTINGS = Settings.model_validate(
    {
        "events": {"dedup_days": HORIZON_H / 24},
        "lake": {"partition": "month"},
        "state": {"max_history": 1000},
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},  # nobody is asked
    }
)
# A session that has a user's name has its key, so its partition, and shares its identities
OWNERS = {("user_id", "u"): 0, ("session_id", "u"): 0, ("user_id", "v"): 1}

wishes = st.fixed_dictionaries(
    {
        "owner": st.sampled_from(list(OWNERS)),
        "event_id": st.sampled_from([None, "1", "1", "2", "events/0/1"]),
        # Steps that add up to just under, exactly and just over the horizon; now and then a clock that goes back
        "step_ms": st.sampled_from([0, 1, 8 * HOUR_MS, 12 * HOUR_MS, 24 * HOUR_MS - 1, 24 * HOUR_MS, -6 * HOUR_MS]),
    }
)


@dataclass(frozen=True)
class Fake:
    """A message as confluent-kafka hands it over."""

    place: tuple[int, int]
    arrival: int
    body: bytes

    def topic(self) -> str:
        return EVENTS

    def partition(self) -> int:
        return self.place[0]

    def offset(self) -> int:
        return self.place[1]

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_CREATE_TIME, self.arrival

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return self.body


def log_of(drawn: Sequence[Mapping[str, object]]) -> list[Fake]:
    """Wishes as they would lie in the topic; the item says which place it was."""
    ends, clock, found = [0, 0], START_MS, []
    for wish in drawn:
        clock = max(START_MS, clock + int(str(wish["step_ms"])))
        field, name = cast(tuple[str, str], wish["owner"])
        partition = OWNERS[field, name]
        place = (partition, ends[partition])
        ends[partition] += 1
        event: dict[str, object] = {field: name, "item_id": f"{place[0]}-{place[1]}", "event_type": "click"}
        event |= {"event_id": wish["event_id"]} if wish["event_id"] else {}
        found.append(Fake(place, clock, orjson.dumps(event)))
    return found


def lake_of(log: list[Fake], cuts: Sequence[int], remembered: int, folder: Path) -> set[str]:
    """Items of the events that ingest accepts, in as many runs and chunks as the cuts say."""
    lake = open_lake(SETTINGS, folder)

    def read(_: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
        for cut in chunk:
            some = [m for m in log if m.partition() == cut.partition and cut.start <= m.offset() < cut.end]
            columns = [[m.partition() for m in some], [m.offset() for m in some], [m.arrival for m in some]]
            bodies = [m.body for m in some]
            records = pa.table([*columns, [b"k"] * len(some), bodies], schema=RECORDS)
            decoded = decode_topic(EVENTS, records, SETTINGS.events)
            yield ReadBlock(decoded, block_hashes(EVENTS, decoded.events))

    done = 0
    before: Path | None = None
    for step, size in enumerate([*cuts, len(log)]):
        done = min(len(log), done + size)
        ends = {part: sum(m.partition() == part for m in log[:done]) for part in (0, 1)}
        held = {EVENTS: TopicBounds(EVENTS, "id", {0: 0, 1: 0}, ends)}
        small = SETTINGS.model_copy(update={"ingest": SETTINGS.ingest.model_copy(update={"chunk_rows": max(2, size)})})
        kept = folder / "identities"
        job = IngestJob(small, lake, read, identities=kept)
        with (
            patch.object(ingest, "bounds", lambda *_, held=held: held),
            patch.object(identities, "_REMEMBERED", remembered),
        ):
            job.take(EVENTS)
        job.close()
        if size % 4 == 1:  # lost
            shutil.rmtree(kept, ignore_errors=True)
        elif size % 4 == 2 and before is not None:  # behind, as where it is killed between its commit and its note
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(before, kept)
        if kept.exists():
            before = folder / f"identities-{step}"
            shutil.copytree(kept, before)
        if size % 3 == 0:
            compact(lake, EVENTS, target_bytes=1_000_000)
    return set(snapshot(lake, EVENTS).read(["item_id"])["item_id"].to_pylist())


def state_of(log: list[Fake], cuts: Sequence[int], folder: Path) -> set[str]:
    """Items of the events that the state accepts, in as many batches; it forgets all it may, and starts anew at times.

    Every other time it reads one partition after the other, so that one lags behind by days.
    """
    store, arrivals, done = StateStore(folder, SETTINGS), Arrivals(), 0
    order = sorted(log, key=lambda message: message.partition()) if len(cuts) % 2 else log
    for size in [*cuts, len(log)]:
        some = order[done : done + size]
        done += len(some)
        read = Read(list(some), {(EVENTS, m.partition()): m.offset() + 1 for m in some})
        store.apply(to_batch(read, SETTINGS.events))
        for message in some:
            arrivals.saw((EVENTS, message.partition()), message)
        behind = {(EVENTS, part): sum(m.partition() == part for m in order[done:]) for part in (0, 1)}
        if (reached := arrivals.reached_ms(EVENTS, behind)) is not None:
            store.forget_identities(reached)
        if size % 2:
            store.close()
            store, arrivals = StateStore(folder, SETTINGS), Arrivals()
    store.close()
    return {entry.item_id for record in stored(folder).values() for entry in entries_of(record)}


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    drawn=st.lists(wishes, max_size=16),
    lake_cuts=st.lists(st.integers(1, 6), max_size=4),
    state_cuts=st.lists(st.integers(1, 6), max_size=6),
    remembered=st.sampled_from([0, 3, 4_000_000]),
)
def test_lake_and_state_accept_the_same_events(
    drawn: list[dict[str, object]], lake_cuts: list[int], state_cuts: list[int], remembered: int
) -> None:
    log = log_of(drawn)
    folder = Path(tempfile.mkdtemp(prefix="m-dedup-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        accepted = lake_of(log, lake_cuts, remembered, folder)
        assert accepted == state_of(log, state_cuts, folder / "db")
        assert accepted == expected(log)
    finally:
        shutil.rmtree(folder)


def expected(log: list[Fake]) -> set[str]:
    """The rule, read aloud: an event counts unless one of its name that counts arrived within the horizon."""
    counted: dict[tuple[str, str], list[int]] = {}
    found = set()
    for message in log:
        event = orjson.loads(message.body)
        named = event.get("event_id")
        name = named or f"{EVENTS}/{message.partition()}/{message.offset()}"
        arrivals = counted.setdefault((event.get("user_id") or event["session_id"], name), [])
        near = any(abs(message.arrival - one) < HORIZON_H * HOUR_MS for one in arrivals)
        if near and name != f"{EVENTS}/{message.partition()}/{message.offset()}":
            continue
        arrivals.append(message.arrival)
        found.add(event["item_id"])
    return found
