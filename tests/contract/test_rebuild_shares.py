"""A rebuild of some of the state's databases, and an erasure that comes at the worst moment."""

from pathlib import Path

import pyarrow as pa
import pytest

from app.errors import StateUnavailable
from app.events.ranges import TopicBounds
from app.events.schema import EVENTS, ITEMS, USERS
from app.lake.commit import Progress, TopicOffsets, append
from app.lake.tables import TABLES, Lake, open_lake
from app.settings import Settings
from app.state import rebuild
from app.state.batch import user_key
from app.state.erasures import remove_halves
from app.state.layout import StatePaths, choose_generation, current_generation, database
from app.state.shares import beside, shard, shard_of
from app.state.store import StateStore

SETTINGS = Settings.model_validate(
    {"kafka": {"bootstrap_servers": "127.0.0.1:1"}, "state": {"placement": "sharded", "shards": 2}}
)
USERS_OF = {shard_of(f"u{number}", 2): f"u{number}" for number in range(9)}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Clicks of a user of either shard; Kafka holds nothing more."""
    lake, empty = open_lake(SETTINGS, tmp_path), dict.fromkeys(TABLES[EVENTS].names)
    rows = [
        {**empty, "event_id": user, "user_id": user, "item_id": "i", "event_type": "click", "topic": EVENTS}
        | {"event_time": 1, "record_time": 1, "partition": number, "offset": 0}
        for number, user in USERS_OF.items()
    ]
    read = Progress({EVENTS: TopicOffsets("id", {0: 1, 1: 1})})
    append(lake.table(EVENTS), pa.Table.from_pylist(rows, TABLES[EVENTS]), read, max_open_partitions=2)
    ends = {EVENTS: {0: 1, 1: 1}, ITEMS: {0: 0}, USERS: {0: 0}}
    held = {name: TopicBounds(name, "id", dict.fromkeys(end, 0), end) for name, end in ends.items()}
    monkeypatch.setattr(rebuild, "bounds", lambda *_: held)
    return lake


def test_a_node_makes_those_anew_that_it_has(lake: Lake, tmp_path: Path) -> None:
    """As where the others are on other nodes: they are neither made nor removed."""
    paths = StatePaths.of(tmp_path)
    report = rebuild.rebuild(SETTINGS, tmp_path, lake, shares=[shard(1, 2)])
    assert (report.generation, report.events) == (1, 2)
    assert not paths.databases.exists()
    assert not paths.shard(0).root.exists()
    store = StateStore(database(paths.shard(1).databases, 1), SETTINGS, generation=1, share=shard(1, 2))
    assert [one.record is not None for one in store.look([user_key(USERS_OF[n]) for n in (0, 1)])] == [False, True]
    assert store.offsets() == {EVENTS: {1: 1}}
    store.close()
    assert rebuild.rebuild(SETTINGS, tmp_path, lake, shares=[beside(2)]).events == 0
    assert paths.shard(1).databases.exists()


def test_an_erasure_never_takes_a_finished_rebuild_for_half_of_one(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until everybody is pointed to it, it is held."""

    def chosen(databases: Path, generation: int) -> None:
        with pytest.raises(StateUnavailable, match="rebuild running"):
            remove_halves(databases)
        choose_generation(databases, generation)

    monkeypatch.setattr(rebuild, "choose_generation", chosen)
    rebuild.rebuild(SETTINGS, tmp_path, lake)
    for number in (-1, 0, 1):
        databases = StatePaths.of(tmp_path).shard(number).databases
        remove_halves(databases)
        assert (current_generation(databases), database(databases, 1).exists()) == (1, True)


def test_shards_that_there_are_no_more_go_once_nobody_writes_them(lake: Lake, tmp_path: Path) -> None:
    paths = StatePaths.of(tmp_path)
    rebuild.rebuild(SETTINGS, tmp_path, lake)
    fewer = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"shards": 1})})
    written = StateStore(database(paths.shard(1).databases, 1), SETTINGS, generation=1, share=shard(1, 2))
    rebuild.rebuild(fewer, tmp_path, lake)
    assert sorted(folder.name for folder in paths.shards.iterdir()) == ["0", "1"]
    written.close()
    rebuild.rebuild(fewer, tmp_path, lake)
    assert [folder.name for folder in paths.shards.iterdir()] == ["0"]
    one = StateStore(database(paths.shard(0).databases, 3), fewer, generation=3, share=shard(0, 1))
    assert all(found.record for found in one.look([user_key(user) for user in USERS_OF.values()]))
    one.close()
