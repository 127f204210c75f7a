"""The registry: bundles, aliases moved by compare-and-swap, promotions; also from many threads and processes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.bundles.registry import BundleRow, Registry, bundles_folder, open_registry
from app.errors import BundleError, Conflict, NotFound
from app.settings import Settings

RACER = """
import sys
from app.bundles.registry import Registry
from app.errors import Conflict
url, bundle = sys.argv[1:]
registry = Registry(url)
try:
    registry.register(bundle, '/b', {})
    registry.move(bundle, {'home': 'first', 'related': 'first'})
    print('won')
except Conflict as error:
    print('lost:', error)
"""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for order, bundle in enumerate(["a", "b", "c"]):
        made.register(bundle, tmp_path / bundle, {"id": bundle, "metrics": {}}, created=100.0 + order)
    return made


def test_bundles_are_listed_newest_first_and_by_page(registry: Registry) -> None:
    assert [row.id for row in registry.bundles()] == ["c", "b", "a"]
    assert [row.id for row in registry.bundles(limit=1, after="c")] == ["b"]
    assert registry.bundle("a").manifest == {"id": "a", "metrics": {}}


def test_a_bundle_is_immutable_and_an_unknown_one_is_named(registry: Registry) -> None:
    with pytest.raises(Conflict, match="bundle a is registered already"):
        registry.register("a", Path("/elsewhere"), {})
    with pytest.raises(NotFound, match="'nope'"):
        registry.bundle("nope")
    with pytest.raises(NotFound, match="'nope'"):
        registry.move("nope", {"home": None})


def test_a_move_covers_all_surfaces_or_none(registry: Registry) -> None:
    assert registry.version() == 0
    assert registry.move("a", {"home": None, "related": None}) == 2
    registry.move("b", {"home": "a"})
    with pytest.raises(Conflict, match="surface home: found bundle b live, wanted bundle a"):
        registry.move("c", {"related": "a", "home": "a"})
    with pytest.raises(Conflict, match="surface home: found bundle b live, wanted nothing"):
        registry.move("c", {"home": None, "trending": None})
    assert registry.aliases().live == {"home": "b", "related": "a"}
    assert registry.version() == registry.aliases().version == 3


def test_rollback_goes_to_what_was_live_before(registry: Registry) -> None:
    registry.move("a", {"home": None})
    with pytest.raises(NotFound, match="live before"):
        registry.rollback_target("home")
    registry.move("b", {"home": "a"})
    assert registry.rollback_target("home") == "a"
    registry.move("a", {"home": "b"})
    assert registry.live("home") == "a"
    assert registry.live("unheard-of") is None


def test_moving_to_what_is_live_changes_nothing(registry: Registry) -> None:
    registry.move("a", {"home": None})
    assert registry.move("a", {"home": "a"}) == 1
    assert registry.aliases().aliases["home"].previous is None


def test_a_promotion_ends_once(registry: Registry) -> None:
    begun = registry.start_promotion("a", ["home"], total=2)
    assert (begun.state, begun.surfaces) == ("loading", ("home",))
    registry.update_promotion(begun.id, loaded=1)
    assert registry.update_promotion(begun.id, state="live", loaded=2).as_json()["replicas"] == {
        "loaded": 2,
        "total": 2,
    }
    with pytest.raises(Conflict, match="found state 'live'"):
        registry.update_promotion(begun.id, state="failed", reason="late")
    assert registry.update_promotion(begun.id, state="rolled_back", reason="errors rose").reason == "errors rose"
    refused = registry.start_promotion("b", ["home"], state="refused", reason="worse", figures={"ndcg_at_10": 0.1})
    assert registry.promotion(refused.id).figures == {"ndcg_at_10": 0.1}
    assert [p.id for p in registry.promotions(state="refused")] == [refused.id]
    with pytest.raises(NotFound, match="no promotion"):
        registry.update_promotion("p-0", state="live")


def test_retiring_keeps_live_previous_loading_and_newest(registry: Registry) -> None:
    for order, bundle in enumerate(["d", "e", "f"]):
        registry.register(bundle, Path("/"), {}, created=200.0 + order)
    registry.move("a", {"home": None})
    registry.move("b", {"home": "a"})
    registry.start_promotion("c", ["home"])
    assert [row.id for row in registry.retire(keep=1)] == ["d", "e"]
    assert [row.id for row in registry.bundles()] == ["f", "c", "b", "a"]


def test_of_many_threads_one_wins_each_round(registry: Registry) -> None:
    registry.move("a", {"home": None, "related": None})

    def race(bundle: str) -> bool:
        try:
            registry.move(bundle, {"related": "a", "home": "a"})
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, ["b", "c"] * 8)) == 1
    live = registry.aliases().live
    assert live["home"] == live["related"] != "a"


def test_of_many_processes_one_wins_and_a_new_database_is_made_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'registry.db'}"

    def racer(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RACER, url, name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    opened = [racer(f"early{i}") for i in range(3)]
    told = [p.communicate(timeout=60)[0].strip() for p in opened]
    assert told == ["lost: surface home: found nothing live, wanted bundle first"] * 3
    registry = Registry(url)
    registry.register("first", Path("/b"), {})
    registry.move("first", {"home": None, "related": None})
    racing = [racer(f"racer{i}") for i in range(4)]
    results = sorted(p.communicate(timeout=60)[0].strip() for p in racing)
    (winner,) = set(registry.aliases().live.values())
    assert results == [*[f"lost: surface home: found bundle {winner} live, wanted bundle first"] * 3, "won"]


def test_what_was_retired_meanwhile_does_not_go_live(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the bundle and the move."""
    registry.move("c", {"home": None})
    look = registry.bundle

    def then_retired(bundle: str) -> BundleRow:
        found = look(bundle)
        assert [row.id for row in registry.retire(keep=1)] == ["a", "b"]
        return found

    monkeypatch.setattr(registry, "bundle", then_retired)
    with pytest.raises(NotFound, match="retired meanwhile"):
        registry.move("a", {"home": "c"})
    assert registry.aliases().live == {"home": "c"}


def test_places_come_from_settings_else_home(tmp_path: Path) -> None:
    settings = Settings()
    assert bundles_folder(settings, tmp_path) == tmp_path / "bundles"
    assert open_registry(settings, tmp_path).bundles() == []
    assert (tmp_path / "registry.db").exists()
    named = Settings.model_validate({"registry": {"bundles": "/data/b"}})
    assert bundles_folder(named, tmp_path) == Path("/data/b")


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("this is no database, and long enough to be looked at as one" * 30)
    with pytest.raises(BundleError, match=r"registry sqlite:.*wanted a database that answers"):
        Registry(f"sqlite:///{tmp_path / 'registry.db'}")
