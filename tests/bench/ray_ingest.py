"""What ingest does, by Ray's own means: `read_kafka`, the same checks and de-duplication, `write_iceberg`.

Less than ingest does: it keeps no offsets, sends no dead letters, looks for repeats in this run alone, and only a topic
without transactions and holes can be read so. The checks and identities are Manta's own code.
"""

import logging
from pathlib import Path

import pyarrow as pa
import ray

from app.events.blocks import block_hashes
from app.events.columns import RECORDS, decode
from app.events.identity import SeenEvents
from app.events.schema import EVENTS
from app.lake.tables import open_lake
from app.settings import EventSettings, Settings

_CPUS = 0.5  # as Manta's read tasks


class FirstOnly:
    """One actor that remembers every identity: what a shuffle would cost is more."""

    def __init__(self, horizon_ms: int) -> None:
        self._seen = SeenEvents(horizon_ms)

    def __call__(self, events: pa.Table) -> pa.Table:
        hashes = block_hashes(EVENTS, events)
        assert hashes is not None
        times = events["record_time"].cast(pa.int64()).to_numpy() // 1000
        doubled = self._seen.duplicates(hashes, times)
        self._seen.add(hashes[~doubled], times[~doubled])
        return events.filter(pa.array(~doubled))


def ingest(settings: Settings, home: Path) -> int:
    """Takes the topic `events` into a lake on the Ray that is joined; the rows that are then there."""
    lake = open_lake(settings, home)
    lake.table(EVENTS)
    events = settings.events
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def check(messages: pa.Table) -> pa.Table:
        return _checked(messages, events)

    read = ray.data.read_kafka(
        EVENTS,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        consumer_config={"isolation.level": "read_committed"},
        num_cpus=_CPUS,
    )
    checked = read.map_batches(check, batch_format="pyarrow", batch_size=None, num_cpus=_CPUS)
    fresh = checked.map_batches(
        FirstOnly,
        fn_constructor_args=(int(events.dedup_days * 86_400_000),),
        batch_format="pyarrow",
        batch_size=None,
        concurrency=1,
        num_cpus=_CPUS,
    )
    catalog = {"name": "manta", "type": "sql", "uri": f"sqlite:///{home}/lake/catalog.db?timeout=60"}
    fresh.write_iceberg(
        f"{settings.lake.namespace}.{EVENTS}", catalog_kwargs={**catalog, "warehouse": f"file://{home}/lake"}
    )
    return int(lake.table(EVENTS).scan().count())


def _checked(messages: pa.Table, settings: EventSettings) -> pa.Table:
    pa.set_cpu_count(1)
    columns = [messages[name] for name in ("partition", "offset", "timestamp", "key", "value")]
    records = pa.Table.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, RECORDS, strict=True)], schema=RECORDS
    )
    return decode(EVENTS, records, settings).events
