"""Bundles that one system publishes and another follows: each imported once, whatever is killed; a wrong one named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from app.bundles import follow
from app.bundles.announce import announce, announcement, without_keys
from app.bundles.follow import Followed, Follower, source_of
from app.bundles.load import load_bundle
from app.bundles.manifest import MANIFEST
from app.bundles.registry import Registry, open_registry
from app.errors import Conflict, MantaError, SettingsError
from app.events.columns import RECORDS
from app.events.producer import EventProducer
from app.events.ranges import OffsetRange, TopicBounds, plan
from app.events.reader import range_consumer, read_range
from app.events.schema import PUBLISHED
from app.events.topics import bounds
from app.lock_file import hold
from app.settings import KafkaSettings, Settings
from tests.unit.tiny_bundle import register_tiny

BROKER = KafkaSettings(bootstrap_servers="elsewhere:9092")


def settings_of(folder: Path, kafka: str = "elsewhere:9092") -> Settings:
    document = {"surfaces": {"home": {}}, "kafka": {"bootstrap_servers": kafka}}
    return Settings.model_validate(document | {"registry": {"published": str(folder / "store")}})


class Shop:
    """A system that publishes: its registry, and the messages of its topic."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.home, self.settings = folder / "shop", settings
        self.registry = open_registry(settings, self.home)
        self.values: list[bytes] = []
        self.first = 0

    def promoted(self, bundle: str) -> str:
        """A bundle that went live; the promotion's id."""
        register_tiny(self.settings, self.home, bundle)
        return self.registry.start_promotion(bundle, ["home"], state="live").id

    def publish(self, bundle: str, **changed: Any) -> dict[str, Any]:
        """The message of a bundle, on the topic."""
        message = announcement(self.settings, self.registry, self.registry.promotion(self.promoted(bundle)))
        document = message.model_dump() | changed
        self.values.append(orjson.dumps(document))
        return document

    def read(self, _: Any, wanted: OffsetRange) -> Iterator[pa.Table]:
        """As `read_range`, two messages at a time."""
        rows = [
            {"partition": 0, "offset": offset, "record_time": 1, "key": b"", "value": self.values[offset]}
            for offset in range(wanted.start, wanted.end)
        ]
        for start in range(0, len(rows), 2):
            yield pa.Table.from_pylist(rows[start : start + 2], RECORDS)


class _Consumer:
    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(tmp_path, settings_of(tmp_path))
    monkeypatch.setattr(
        follow,
        "bounds",
        lambda *_: {PUBLISHED: TopicBounds(PUBLISHED, "t1", {0: shop.first}, {0: len(shop.values)})},
    )
    monkeypatch.setattr(follow, "range_consumer", lambda _: _Consumer())
    monkeypatch.setattr(follow, "read_range", shop.read)
    yield shop
    shop.registry.close()


def taken(home: Path, settings: Settings, source: KafkaSettings = BROKER) -> list[Followed]:
    follower = Follower(settings, home, source)
    try:
        return list(follower.take())
    finally:
        follower.close()


def listed(home: Path, settings: Settings) -> list[str]:
    registry = open_registry(settings, home)
    try:
        assert registry.aliases().live == {}, "nothing of it is live here"
        return sorted(row.id for row in registry.bundles())
    finally:
        registry.close()


def folders(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "bundles").iterdir())


def test_each_is_imported_once(shop: Shop, tmp_path: Path) -> None:
    shop.publish("b1")
    shop.publish("b2")
    shop.values.append(orjson.dumps({"promotion": "p", "bundle": "b0", "state": "live"}))  # the coordinator's own word
    shop.values.append(orjson.dumps({"promotion": "q", "bundle": "b1", "state": "rolled_back", "address": "/x"}))
    other = tmp_path / "other"
    found = taken(other, shop.settings)
    assert [(one.bundle, one.outcome, one.offset) for one in found] == [("b1", "imported", 0), ("b2", "imported", 1)]
    assert listed(other, shop.settings) == folders(other) == ["b1", "b2"]
    assert load_bundle(other / "bundles" / "b1").id == "b1"
    assert taken(other, shop.settings) == []
    shop.publish("b3")
    shop.values.append(shop.values[0])
    assert [(one.bundle, one.outcome) for one in taken(other, shop.settings)] == [("b3", "imported"), ("b1", "known")]
    assert taken(other, shop.settings) == []
    follower = Follower(shop.settings, other, BROKER)
    assert [(one.bundle, one.outcome) for one in follower.history()][:2] == [("b1", "known"), ("b3", "imported")]
    follower.close()
    assert {one.outcome for one in taken(shop.home, shop.settings)} == {"known"}, "its own bundles, on its own topic"


def test_a_wrong_one_is_refused_and_named_and_the_others_come(shop: Shop, tmp_path: Path) -> None:
    shop.publish("b1", manifest_sha256="0" * 64)
    damaged = shop.publish("b2")
    file = next(iter(sorted(Path(damaged["address"]).rglob("*.safetensors"))))
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    lost = shop.publish("b3")
    shutil.rmtree(lost["address"])
    holey = shop.publish("b4")
    next(iter(sorted(Path(holey["address"]).rglob("*.parquet")))).unlink()
    shop.publish("b5", address=shop.publish("b6")["address"])
    shop.values.append(b"{no json")
    shop.publish("b7", schema_version=99)
    shop.publish("b8", address="nowhere://x")
    shop.publish("b9")
    found = taken(tmp_path / "other", shop.settings)
    assert [(one.bundle, one.outcome) for one in found] == [
        ("b1", "refused"),
        ("b2", "refused"),
        ("b3", "refused"),
        ("b4", "refused"),
        ("b6", "imported"),
        ("b5", "refused"),
        ("", "refused"),
        ("b7", "refused"),
        ("b8", "refused"),
        ("b9", "imported"),
    ]
    said = {one.bundle: str(one.reason) for one in found}
    assert said["b1"].startswith("bundle b1: ")
    assert f"wanted {'0' * 64} as it was published" in said["b1"]
    assert file.name in said["b2"]
    assert "SHA-256" in said["b2"]
    assert said["b3"] == f"{lost['address']}: found no bundle, wanted b3, which was published there"
    assert "bundle b4: " in said["b4"]
    assert "wanted all its files" in said["b4"]
    assert "SHA-256" in said["b5"]
    assert "wanted JSON" in said[""]
    assert "schema_version: found 99" in said["b7"]
    assert "wanted a path, s3:// or gs://" in said["b8"]
    assert folders(tmp_path / "other") == ["b6", "b9"], "nothing of what was refused is left"
    assert taken(tmp_path / "other", shop.settings) == []


def test_another_folder_under_its_id_stays_and_is_named(shop: Shop, tmp_path: Path) -> None:
    shop.publish("b1")
    there = tmp_path / "other" / "bundles" / "b1"
    there.mkdir(parents=True)
    (there / MANIFEST).write_text("{}")
    (found,) = taken(tmp_path / "other", shop.settings)
    assert (found.outcome, str(found.reason)) == (
        "refused",
        f"{there}: found another bundle of this id, wanted none: bundles never change",
    )
    assert (there / MANIFEST).read_text() == "{}"


class Killed(BaseException):
    """The follower's process is gone."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["verify", "register", "_note", "rename"])
def test_killed_anywhere_it_goes_on_and_imports_once(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    shop.publish("b1")
    shop.publish("b2")
    other = tmp_path / "other"
    owner: Any = {"register": Registry, "rename": Path}.get(method, follow)
    real = getattr(owner, method)

    def killed(*words: Any, **named: Any) -> Any:
        if method == "rename" and not str(words[0].name).startswith(".coming-"):
            return real(*words, **named)
        if when == "after":
            real(*words, **named)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, killed)
        with pytest.raises(Killed):
            taken(other, shop.settings)
    registered = method == "register" and when == "after"
    assert listed(other, shop.settings) == (["b1"] if registered else [])
    found = taken(other, shop.settings)
    assert [(one.bundle, one.outcome) for one in found] == [("b1", "imported"), ("b2", "imported")][registered:]
    assert listed(other, shop.settings) == folders(other) == ["b1", "b2"]
    follower = Follower(shop.settings, other, BROKER)
    assert sorted((one.offset, one.outcome) for one in follower.history()) == [(0, "imported"), (1, "imported")]
    follower.close()


def test_a_store_that_does_not_answer_is_tried_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish("b1")

    def away(*_: object) -> None:
        raise OSError("connection refused")

    with monkeypatch.context() as patched:
        patched.setattr("app.artifacts.Place.get", away)
        with pytest.raises(MantaError, match="connection refused, wanted a store that answers"):
            taken(tmp_path / "other", shop.settings)
    assert [one.outcome for one in taken(tmp_path / "other", shop.settings)] == ["imported"]


def test_what_is_published_carries_no_keys() -> None:
    assert without_keys("s3://key:secret@shop/b1?region=x") == "s3://shop/b1?region=x"
    assert without_keys("s3://shop/b@1") == "s3://shop/b@1"
    assert without_keys("/data/a@b/b1") == "/data/a@b/b1"


def test_one_follows_at_a_time_and_a_known_broker(shop: Shop, tmp_path: Path) -> None:
    shop.publish("b1")
    with hold(tmp_path / "other" / "follow.lock", "following"), pytest.raises(Conflict, match="found it held by"):
        taken(tmp_path / "other", shop.settings)
    nobody = Settings.model_validate({})
    assert source_of(nobody, None, "a:1").bootstrap_servers == "a:1"
    assert source_of(shop.settings, "b:2", "a:1").bootstrap_servers == "b:2"
    with pytest.raises(SettingsError, match="--from: found None, wanted HOST:PORT"):
        source_of(nobody, None, None)


def test_what_retention_has_deleted_is_said(shop: Shop, tmp_path: Path) -> None:
    shop.publish("b1")
    assert len(taken(tmp_path / "other", shop.settings)) == 1
    shop.publish("b2")
    shop.publish("b3")
    shop.first = 2
    follower = Follower(shop.settings, tmp_path / "other", BROKER)
    assert [one.bundle for one in follower.take()] == ["b3"]
    assert [(gap.start, gap.end) for gap in follower.gaps] == [(1, 2)]
    follower.close()


def messages(settings: Settings, promotion: str) -> list[dict[str, Any]]:
    """What the topic has of a promotion (other tests write there, too)."""
    consumer = range_consumer(settings.kafka)
    ranges, _ = plan(bounds(settings.kafka, [PUBLISHED])[PUBLISHED], "", {})
    tables = [table for wanted in ranges for table in read_range(consumer, wanted)]
    consumer.close()
    values = [orjson.loads(value) for table in tables for value in table["value"].to_pylist()]
    return [value for value in values if value["promotion"] == promotion]


@pytest.mark.kafka
def test_over_a_real_broker_once_however_often_it_is_published(kafka: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, kafka)
    shop = Shop(tmp_path, settings)
    promotion = shop.promoted("k1")
    sent = announce(settings, shop.registry, promotion)
    assert sent == {"bundle": "k1", "promotion": promotion, "address": str(tmp_path / "store" / "k1"), "sent": True}
    assert announce(settings, shop.registry, promotion) == {**sent, "sent": False}
    refused = shop.registry.start_promotion("k1", ["home"], state="refused", reason="worse").id
    with pytest.raises(MantaError, match="found refused, wanted live: worse"):
        announce(settings, shop.registry, refused)
    manifest = json.loads((shop.home / "bundles" / "k1" / MANIFEST).read_text())
    (value,) = messages(settings, promotion)
    assert value["lineage"]["created"] == manifest["created"]
    assert (value["bundle"], value["surfaces"], value["schema_version"]) == ("k1", ["home"], 1)
    mine = [one for one in taken(tmp_path / "other", settings, settings.kafka) if one.promotion == promotion]
    assert [one.outcome for one in mine] == ["imported"]
    again = EventProducer(settings.kafka)
    again.send_blocking(PUBLISHED, [(b"k1", orjson.dumps(value))])
    again.close()
    assert [one.outcome for one in taken(tmp_path / "other", settings, settings.kafka)] == ["known"]
    assert taken(tmp_path / "other", settings, settings.kafka) == []
    shop.registry.close()
