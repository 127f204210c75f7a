"""Bundles that another cluster has published: each imported once, or refused and named; how far is in the registry.

The offset of a message is written in the transaction that registers its bundle: after a kill at any point nothing is
imported twice, and nothing is passed over.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import orjson
import sqlalchemy as sa
from pydantic import ValidationError

from app.artifacts import Place, StoreError, shown
from app.bundles.manifest import MANIFEST, Manifest, read_manifest, verify
from app.bundles.registry import Registry, bundles_folder, open_registry
from app.bundles.retention import retire
from app.bundles.whole import COMING, appear
from app.database import Database, database_url
from app.errors import BundleError, Conflict, MantaError, NotFound, RegistryUnavailable, SettingsError
from app.events.messages import Published
from app.events.ranges import Gap, OffsetRange, plan
from app.events.reader import range_consumer, read_range
from app.events.schema import PUBLISHED, SCHEMA_VERSION
from app.events.topics import bounds
from app.lock_file import hold
from app.settings import KafkaSettings, Settings

Outcome = Literal["imported", "known", "refused"]

_METADATA = sa.MetaData()
_OFFSETS = sa.Table(
    "followed_offsets",
    _METADATA,
    sa.Column("source", sa.String(256), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)
_FOLLOWED = sa.Table(
    "followed",
    _METADATA,
    sa.Column("source", sa.String(256), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("bundle", sa.String(128), nullable=False),
    sa.Column("promotion", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("time", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of a published bundle. `reason`: why it is refused."""

    partition: int
    offset: int
    bundle: str
    promotion: str
    outcome: Outcome
    reason: str | None
    time: float


class Follower:
    """Takes over what one broker's topic `bundles.published` says; one works at a time for a home.

    Args:
        source: how the other cluster's broker is reached.
    """

    def __init__(self, settings: Settings, home: Path, source: KafkaSettings) -> None:
        self._settings, self._source = settings, source
        self._parent = bundles_folder(settings, home)
        self._lock = home / "follow.lock"
        self._registry: Registry = open_registry(settings, home)
        self._database = Database(database_url(settings, home), _METADATA)
        self.gaps: list[Gap] = []

    def close(self) -> None:
        """Gives the connections back."""
        self._database.close()
        self._registry.close()

    def take(self) -> Iterator[Followed]:
        """What the topic has had since the last time, one by one, each once it is done.

        Raises:
            Conflict: another process follows for this home.
            BrokerUnavailable: the broker cannot be reached.
            MantaError: the store of the artifacts does not answer now; the next time goes on with this bundle.
        """
        with hold(self._lock, "following"):
            held = bounds(self._source, [PUBLISHED])[PUBLISHED]
            source = held.topic_id or self._source.bootstrap_servers
            ranges, self.gaps = plan(held, "", self._offsets(source), accept_gap=True)
            consumer = range_consumer(self._source)
            try:
                for wanted in ranges:
                    yield from self._range(consumer, source, wanted)
            finally:
                consumer.close()

    def history(self, limit: int = 100) -> list[Followed]:
        """The newest that were taken, newest first."""
        columns = [_FOLLOWED.c[name] for name in Followed.__dataclass_fields__]
        rows = self._database.rows(sa.select(*columns).order_by(_FOLLOWED.c.time.desc()).limit(limit))
        return [Followed(**row._asdict()) for row in rows]

    def _range(self, consumer: Any, source: str, wanted: OffsetRange) -> Iterator[Followed]:
        for table in read_range(consumer, wanted):
            for offset, value in zip(table["offset"].to_pylist(), table["value"].to_pylist(), strict=True):
                found = self._one(source, wanted.partition, offset, value)
                if found is not None:
                    yield found
        with self._database.transaction() as connection:  # markers and holes at the end
            _move(connection, source, wanted.partition, wanted.end)

    def _one(self, source: str, partition: int, offset: int, value: bytes | None) -> Followed | None:
        """One message; None: it says nothing that can be taken over (a roll-back, a promotion without an address)."""
        bundle = promotion = ""
        try:
            document = _read(value)
            if document is None:
                return None
            bundle, promotion = str(document.get("bundle")), str(document.get("promotion"))
            message = _message(document)
            if self._is_known(message.bundle):
                return self._noted(source, Followed(partition, offset, bundle, promotion, "known", None, time.time()))
            folder, manifest = self._fetched(message)
        except RegistryUnavailable:
            raise
        except BundleError as error:
            found = Followed(partition, offset, bundle, promotion, "refused", str(error), time.time())
            return self._noted(source, found)
        found = Followed(partition, offset, bundle, promotion, "imported", None, time.time())
        return self._registered(source, found, folder, manifest)

    def _registered(self, source: str, found: Followed, folder: Path, manifest: Manifest) -> Followed:
        try:
            self._registry.register(
                found.bundle,
                folder,
                manifest.model_dump(mode="json"),
                also=lambda connection: _note(connection, source, found),
            )
        except Conflict:  # by hand, meanwhile
            return self._noted(source, Followed(**(asdict(found) | {"outcome": "known"})))
        retire(self._registry, self._parent, self._settings.registry.keep)
        return found

    def _noted(self, source: str, found: Followed) -> Followed:
        with self._database.transaction() as connection:
            _note(connection, source, found)
        return found

    def _fetched(self, message: Published) -> tuple[Path, Manifest]:
        """The bundle's folder here: what was published, file by file.

        Raises:
            BundleError: it is not there, or not what was published.
            MantaError: the store does not answer.
        """
        address = str(message.address)
        where = shown(address)
        try:
            place = Place.of(address)
        except MantaError as error:
            raise BundleError(str(error)) from None
        fresh = self._parent / f"{COMING}{secrets.token_hex(4)}"
        try:
            if not place.has(MANIFEST):
                raise BundleError(f"{where}: found no bundle, wanted {message.bundle}, which was published there")
            place.get(MANIFEST, fresh / MANIFEST)
            digest = sha256((fresh / MANIFEST).read_bytes()).hexdigest()
            if digest != message.manifest_sha256:
                said = f"SHA-256 {digest}, wanted {message.manifest_sha256} as it was published"
                raise BundleError(f"bundle {message.bundle}: {where}/{MANIFEST}: found {said}")
            manifest = read_manifest(fresh)
            if manifest.id != message.bundle:
                raise BundleError(f"{where}: found bundle {manifest.id}, wanted {message.bundle}")
            target = self._parent / manifest.id
            if target.exists():  # of a kill before it was registered
                if (target / MANIFEST).read_bytes() != (fresh / MANIFEST).read_bytes():
                    raise BundleError(f"{target}: found another bundle of this id, wanted none: bundles never change")
                verify(target)
                return target, manifest
            for name in manifest.files:
                place.get(name, fresh / name)
            verify(fresh)
            appear(fresh, target)
        except FileNotFoundError as error:
            raise BundleError(f"bundle {message.bundle}: {where}: found {error}, wanted all its files") from None
        except StoreError as error:
            raise MantaError(f"{where}: found {error}, wanted a store that answers") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target, manifest

    def _is_known(self, bundle: str) -> bool:
        try:
            self._registry.bundle(bundle)
        except NotFound:
            return False
        return True

    def _offsets(self, source: str) -> dict[int, int]:
        query = sa.select(_OFFSETS.c.partition, _OFFSETS.c.next_offset).where(_OFFSETS.c.source == source)
        return {row.partition: row.next_offset for row in self._database.rows(query)}


def source_of(settings: Settings, address: str | None, running: str | None) -> KafkaSettings:
    """The broker to follow: the address given, else that of the settings, else that of the running system.

    Raises:
        SettingsError: there is none.
    """
    found = address or settings.kafka.bootstrap_servers or running
    if not found:
        raise SettingsError("manta bundles follow", "--from", None, "HOST:PORT of the other cluster's broker")
    return settings.kafka.model_copy(update={"bootstrap_servers": found})


def _read(value: bytes | None) -> dict[str, Any] | None:
    """The document of a message that offers a bundle.

    Raises:
        BundleError: it is none.
    """
    if value is None:
        return None
    try:
        document = orjson.loads(value)
    except ValueError as error:
        raise BundleError(f"{PUBLISHED}: found {error}, wanted JSON") from None
    if not isinstance(document, dict):
        raise BundleError(f"{PUBLISHED}: found {type(document).__name__}, wanted an object")
    return document if document.get("state") == "live" and document.get("address") else None


def _message(document: dict[str, Any]) -> Published:
    try:
        message = Published.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{PUBLISHED}: {key}: found {first.get('input')!r}, wanted: {first['msg']}") from None
    if message.schema_version > SCHEMA_VERSION:
        raise BundleError(f"{PUBLISHED}: schema_version: found {message.schema_version}, wanted {SCHEMA_VERSION}")
    return message


def _note(connection: sa.Connection, source: str, found: Followed) -> None:
    """What became of a message, and that the next one is to be read: in one transaction."""
    connection.execute(sa.insert(_FOLLOWED), {"source": source, **asdict(found)})
    _move(connection, source, found.partition, found.offset + 1)


def _move(connection: sa.Connection, source: str, partition: int, offset: int) -> None:
    mine = (_OFFSETS.c.source == source) & (_OFFSETS.c.partition == partition)
    if not connection.execute(sa.update(_OFFSETS).where(mine).values(next_offset=offset)).rowcount:
        connection.execute(sa.insert(_OFFSETS), {"source": source, "partition": partition, "next_offset": offset})
