"""Erasure from bundles: lists by user go, what is live is replaced, and no family saves anything by user."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from app.bundles import erase
from app.bundles.build import LISTS, rewrite_bundle
from app.bundles.erase import BundlesPlace
from app.bundles.load import load_bundle
from app.bundles.manifest import Comparison, verify
from app.bundles.registry import Registry, open_registry
from app.cache import ListStore, write_lists_sst
from app.erasure.places import Subject
from app.errors import BundleError, Conflict
from app.features.statistics import ItemStatistics
from app.models.families import FAMILIES, make
from app.models.interactions import Catalogue, Interactions
from app.settings import Settings
from app.surfaces import SurfaceSettings
from tests.search.files import files_with
from tests.unit.tiny_bundle import write_tiny

SETTINGS = Settings(surfaces={"home": SurfaceSettings(), "related": SurfaceSettings()})
USER, OTHERS = "0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f", [f"0d7c5e2f9a8b4c3d{place:016d}" for place in range(40)]
Bundle = Callable[..., None]  # name, people, comparisons
SUBJECT = Subject("e-1", USER, (), 0, {})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(SETTINGS, tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without lists."""
    return write_tiny(tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture
def bundle(plain: Path, registry: Registry, tmp_path: Path) -> Bundle:
    """Registers bundles with a list for each of some people."""

    def make(name: str, people: list[str], comparisons: dict[str, Comparison] | None = None) -> None:
        lists = {f"u:{person}": np.arange(5, dtype=np.int32) for person in people}

        def change(fresh: Path) -> None:
            write_lists_sst(fresh / LISTS, {**lists, "i:i1": np.arange(3, dtype=np.int32)})

        folder = tmp_path / "bundles" / "plain"
        shutil.copytree(plain, folder)
        made = rewrite_bundle(folder, name, change, comparisons or {})
        shutil.rmtree(folder)
        registry.register(name, made, verify(made).model_dump(mode="json"))

    return make


def keys(folder: Path, scratch: Path) -> set[bytes]:
    store = ListStore(scratch / "lists", folder / LISTS)
    try:
        return {key for key, _ in store.items()}
    finally:
        store.close()


def test_a_live_one_is_replaced_what_it_leads_back_to_too_and_the_rest_is_as_it_was(
    bundle: Bundle, registry: Registry, tmp_path: Path
) -> None:
    bundle("first", [USER, *OTHERS])
    against = Comparison(metric="ndcg_at_10", basis="fresh events", cases=9, theirs=0.2, ours=0.3)
    bundle("second", [*OTHERS, USER], {"first": against})
    bundle("other", OTHERS)
    registry.move("first", {"home": None, "related": None})
    registry.move("second", {"home": "first"})
    asked: list[tuple[str, list[str]]] = []

    def promote(new: str, surfaces: list[str]) -> None:
        asked.append((new, list(surfaces)))
        registry.move(new, {surface: registry.live(surface) for surface in surfaces})

    (report,) = BundlesPlace(SETTINGS, tmp_path, promote).clear(SUBJECT)  # type: ignore[arg-type]
    assert report.cleared
    assert files_with(tmp_path, USER) == []
    live = registry.aliases().aliases
    assert {name for name, _ in asked} == {live["home"].bundle, live["related"].bundle}
    assert live["home"].previous == live["related"].bundle, "a rollback leads to what replaced the bundle before"
    assert live["related"].previous is None
    assert {row.id for row in registry.bundles()} == {"other", live["home"].bundle, live["related"].bundle}
    now = registry.bundle(live["home"].bundle)
    assert verify(now.folder).comparisons == {live["related"].bundle: against}
    assert keys(now.folder, tmp_path) == {*(f"u:{person}".encode() for person in OTHERS), b"i:i1"}
    assert load_bundle(now.folder).manifest == verify(now.folder)
    assert BundlesPlace(SETTINGS, tmp_path).clear(SUBJECT)[0].detail.startswith("0 replaced")


class Killed(BaseException):
    pass


def test_killed_anywhere_the_next_run_goes_on(
    bundle: Bundle, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle("only", [USER])  # with no other user's list
    registry.move("only", {"home": None})
    place = BundlesPlace(SETTINGS, tmp_path)
    for point in ("erase:bundle_written", "erase:bundle_registered", "erase:bundle_live"):

        def reach(name: str, point: str = point) -> None:
            if name == point:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(erase, "reach", reach)
            with pytest.raises(Killed):
                place.clear(SUBJECT)
    (tmp_path / "bundles" / ".writing-x").mkdir()
    torn = tmp_path / "bundles" / ".writing-x" / LISTS
    torn.write_bytes(b"\0 torn " + USER.encode())
    (tmp_path / "bundles" / ".reading-x").mkdir()
    with pytest.raises(BundleError, match="a bundle is being written"):
        place.clear(SUBJECT)
    os.utime(torn, (1, 1))
    place.clear(SUBJECT)
    assert files_with(tmp_path, USER) == []
    (row,) = registry.bundles()
    assert registry.aliases().live == {"home": row.id}
    assert [folder.name for folder in (tmp_path / "bundles").iterdir()] == [row.id]


def test_replicas_have_dropped_it_before_it_is_reported(
    bundle: Bundle, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle("live", [USER])
    registry.move("live", {"home": None})
    copy = tmp_path / "cache" / "replica" / "lists" / "live"
    copy.mkdir(parents=True)
    monkeypatch.setattr(erase, "_DROPPED_S", 0.0)
    with pytest.raises(BundleError, match="found them loaded still"):
        BundlesPlace(SETTINGS, tmp_path).clear(SUBJECT)
    copy.rmdir()
    assert BundlesPlace(SETTINGS, tmp_path).clear(SUBJECT)[0].cleared


def test_a_bundle_that_names_the_user_elsewhere_or_cannot_be_replaced_is_no_success(
    bundle: Bundle, registry: Registry, tmp_path: Path
) -> None:
    bundle("odd", OTHERS)
    spec = tmp_path / "bundles" / "odd" / "features" / "spec.json"
    text = spec.read_text()
    spec.write_text(text + f'"{USER}"')
    with pytest.raises(BundleError, match=r"found the user in spec\.json"):
        BundlesPlace(SETTINGS, tmp_path).clear(SUBJECT)
    BundlesPlace(SETTINGS, tmp_path).clear(Subject("e-2", "home", (), 0, {}))  # as a surface is called
    spec.write_text(text)
    bundle("live", [USER])
    registry.move("live", {"home": None})
    with pytest.raises(BundleError, match="still live on home"):
        BundlesPlace(SETTINGS, tmp_path, lambda *_: None).clear(SUBJECT)
    with pytest.raises(Conflict, match="live on home"):
        registry.remove("live", {})


N_USERS, N_ITEMS = 97, 31


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_saves_anything_by_user(family: str, tmp_path: Path) -> None:
    """No array has a place for each of 97 users, however it is laid out: models know items, and histories as asked."""
    random = np.random.default_rng(0)
    n = 1500
    data = Interactions(
        random.integers(0, N_USERS, n).astype(np.int32),
        random.integers(0, N_ITEMS, n).astype(np.int32),
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int64) * 60_000,
        N_USERS,
        N_ITEMS,
    )
    columns = pa.table({"title": [f"item {row}" for row in range(N_ITEMS)], "genres": [["a", "b"]] * N_ITEMS})
    model = make(family).fit(data, Catalogue.of([f"i{row}" for row in range(N_ITEMS)], columns))
    model.save(tmp_path)
    ItemStatistics.of(data, (7.0,)).save(tmp_path / "statistics.safetensors")
    for file in tmp_path.glob("*.safetensors"):
        for name, array in load_file(file).items():
            assert N_USERS not in array.shape, f"{name} of {file.name} has one entry a user"
            assert not array.size or array.size % N_USERS, f"{name} of {file.name} may have an entry a user"
