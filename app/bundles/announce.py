"""What went live, on the topic `bundles.published`, with the place from which another cluster takes it."""

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from app.artifacts import Place, StoreError, below, shown
from app.bundles.manifest import MANIFEST
from app.bundles.registry import Promotion, Registry
from app.bundles.transfer import export_bundle
from app.errors import Conflict, MantaError
from app.events.messages import Published, PublishedLineage
from app.events.producer import EventProducer
from app.events.ranges import plan
from app.events.reader import range_consumer, read_range
from app.events.schema import PUBLISHED
from app.events.topics import bounds, ensure_topics
from app.settings import Settings


def announce(settings: Settings, registry: Registry, promotion: str) -> dict[str, Any]:
    """Puts the promoted bundle where others find it, and says so on the topic, once: what stands there stays alone.

    Args:
        settings: with the broker's address.

    Raises:
        NotFound: no such promotion, or its bundle is gone.
        MantaError: it is not live, or its place cannot be written.
        BrokerUnavailable: the topic cannot be read or written.
    """
    found = registry.promotion(promotion)
    if found.state != "live":
        raise MantaError(f"promotion {promotion}: found {found.state}, wanted live: {found.reason or '-'}")
    message = announcement(settings, registry, found)
    ensure_topics(settings.kafka, [PUBLISHED])
    said = {"bundle": found.bundle, "promotion": promotion, "address": message.address}
    if _stands(settings, promotion):
        return said | {"sent": False}
    producer = EventProducer(settings.kafka)
    try:
        producer.send_blocking(PUBLISHED, [(found.bundle.encode(), orjson.dumps(message.model_dump()))])
    finally:
        producer.close()
    return said | {"sent": True}


def announcement(settings: Settings, registry: Registry, promotion: Promotion) -> Published:
    """The message of a promotion, its bundle exported where the settings want it."""
    row = registry.bundle(promotion.bundle)
    digest = sha256((row.folder / MANIFEST).read_bytes()).hexdigest()
    manifest = row.manifest
    lineage = PublishedLineage.model_validate(
        {name: manifest[name] for name in PublishedLineage.model_fields if name in manifest}
    )
    return Published.model_validate(
        promotion.as_json()
        | {
            "address": exported(row.folder, settings.registry.published, digest),
            "manifest_sha256": digest,
            "lineage": lineage,
        }
    )


def exported(folder: Path, address: str, digest: str) -> str:
    """Where others find the bundle: copied to `ADDRESS/ID`, unless it is there; without an address where it is.

    Raises:
        MantaError: another bundle of its id is there, or the place cannot be written.
    """
    if not address:
        return str(folder.absolute())
    there = without_keys(below(address, folder.name))
    try:
        export_bundle(folder, address)
    except Conflict:
        place = Place.of(address) / folder.name
        try:
            found = sha256(place.read(MANIFEST)).hexdigest()
        except StoreError as error:
            raise MantaError(f"{shown(address)}: found {error}, wanted a place that can be read") from None
        if found != digest:
            raise
    return there


def without_keys(address: str) -> str:
    """The address without the access keys that it may carry: who follows has its own."""
    return re.sub(r"://[^/@]*@", "://", address, count=1)


def _stands(settings: Settings, promotion: str) -> bool:
    """Whether the topic says already where the bundle of a promotion is."""
    ranges, _ = plan(bounds(settings.kafka, [PUBLISHED])[PUBLISHED], "", {})
    consumer = range_consumer(settings.kafka)
    try:
        for wanted in ranges:
            for table in read_range(consumer, wanted):
                for value in table["value"].to_pylist():
                    if promotion.encode() in (value or b"") and _is_of(value, promotion):
                        return True
    finally:
        consumer.close()
    return False


def _is_of(value: bytes, promotion: str) -> bool:
    try:
        found = orjson.loads(value)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("promotion") == promotion and bool(found.get("address"))
