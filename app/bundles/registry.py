"""The registry: which bundles there are, which is live on each surface, and what became of each promotion.

Its aliases are the only truth about what is live. Every change is one transaction (`app.database`): of two writers one
wins.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from app.database import Database, database_url
from app.errors import Conflict, NotFound
from app.settings import Settings

State = Literal["loading", "live", "refused", "failed", "rolled_back"]
Kind = Literal["promote", "rollback"]
ENDED = frozenset({"live", "refused", "failed", "rolled_back"})

_METADATA = sa.MetaData()
_BUNDLES = sa.Table(
    "bundles",
    _METADATA,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("manifest", sa.JSON, nullable=False),
)
_ALIASES = sa.Table(
    "aliases",
    _METADATA,
    sa.Column("surface", sa.String(128), primary_key=True),
    sa.Column("bundle", sa.String(128), nullable=False),
    sa.Column("previous", sa.String(128)),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)
_PROMOTIONS = sa.Table(
    "promotions",
    _METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("bundle", sa.String(128), nullable=False),
    sa.Column("surfaces", sa.JSON, nullable=False),
    sa.Column("force", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("loaded", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class BundleRow:
    """A registered bundle. `manifest` is the whole manifest as JSON; `created` in seconds since 1970."""

    id: str
    created: float
    folder: Path
    manifest: dict[str, Any]

    @property
    def files(self) -> dict[str, str] | None:
        """Path to SHA-256 as registered; None: not known."""
        return self.manifest.get("files")


@dataclass(frozen=True, slots=True)
class Alias:
    """What is live on a surface. `version` counts the moves of this alias from 1."""

    surface: str
    bundle: str
    previous: str | None
    version: int
    changed: float


@dataclass(frozen=True, slots=True)
class AliasMap:
    """All aliases at one moment. `version` rises with every move of any alias: 0 when nothing was ever live."""

    version: int
    aliases: dict[str, Alias]

    @property
    def live(self) -> dict[str, str]:
        """Surface to bundle."""
        return {surface: alias.bundle for surface, alias in self.aliases.items()}


@dataclass(frozen=True, slots=True)
class Promotion:
    """A promotion or rollback and what became of it; `figures` are the gate's, `loaded` of `total` the replicas."""

    id: str
    kind: Kind
    bundle: str
    surfaces: tuple[str, ...]
    force: bool
    state: State
    reason: str | None
    figures: dict[str, Any]
    loaded: int
    total: int
    created: float
    changed: float

    def as_json(self) -> dict[str, Any]:
        """The answer of `GET /v1/promotions/{id}`."""
        return {
            "promotion": self.id,
            "kind": self.kind,
            "bundle": self.bundle,
            "surfaces": list(self.surfaces),
            "force": self.force,
            "state": self.state,
            "reason": self.reason,
            "figures": self.figures,
            "replicas": {"loaded": self.loaded, "total": self.total},
            "created": rfc3339(self.created),
            "changed": rfc3339(self.changed),
        }


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as `2026-11-21T10:15:00.123Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bundles_folder(settings: Settings, home: Path) -> Path:
    """Where the bundles of this system lie."""
    return Path(settings.registry.bundles) if settings.registry.bundles else home / "bundles"


def open_registry(settings: Settings, home: Path) -> "Registry":
    """The registry that the settings name, else sqlite under the home."""
    return Registry(database_url(settings, home))


class Registry:
    """One door to the registry's database; safe to share among threads, and one per process.

    Raises (every method):
        RegistryUnavailable: the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = Database(url, _METADATA)

    def close(self) -> None:
        """Gives the connections back."""
        self._database.close()

    # Bundles

    def register(
        self,
        bundle: str,
        folder: Path,
        manifest: Mapping[str, Any],
        created: float | None = None,
        *,
        also: Callable[[sa.Connection], object] | None = None,
    ) -> None:
        """Adds a bundle, not live. Bundles are immutable: an id is given once.

        Args:
            also: what is written in the same transaction, such as up to where published bundles were followed.

        Raises:
            Conflict: the id is taken.
        """
        row: dict[str, Any] = {
            "id": bundle,
            "created": created or time.time(),
            "folder": str(folder),
            "manifest": dict(manifest),
        }
        try:
            with self._database.transaction() as connection:
                connection.execute(sa.insert(_BUNDLES), row)
                if also is not None:
                    also(connection)
        except IntegrityError:
            raise Conflict(f"bundle {bundle} is registered already; a bundle is registered under a new id") from None

    def bundles(self, limit: int | None = None, after: str | None = None) -> list[BundleRow]:
        """Registered bundles, newest first; `after`: those that follow this id in that order."""
        query = sa.select(_BUNDLES).order_by(_BUNDLES.c.created.desc(), _BUNDLES.c.id.desc())
        if after is not None:
            mark = self.bundle(after)
            query = query.where(
                sa.tuple_(_BUNDLES.c.created, _BUNDLES.c.id) < sa.tuple_(sa.literal(mark.created), sa.literal(mark.id))
            )
        return [_bundle(row) for row in self._database.rows(query.limit(limit) if limit is not None else query)]

    def bundle(self, bundle: str) -> BundleRow:
        """One bundle.

        Raises:
            NotFound: no such id.
        """
        rows = self._database.rows(sa.select(_BUNDLES).where(_BUNDLES.c.id == bundle))
        if not rows:
            raise NotFound(f"no bundle {bundle!r} is registered")
        return _bundle(rows[0])

    def retire(self, keep: int) -> list[BundleRow]:
        """Takes all but the `keep` newest bundles out of the list and returns them, for their folders to be removed.

        What is live, was live before, or is being promoted stays besides.
        """
        with self._database.transaction() as connection:
            held = sa.union(
                sa.select(_ALIASES.c.bundle),
                sa.select(_ALIASES.c.previous).where(_ALIASES.c.previous.is_not(None)),
                sa.select(_PROMOTIONS.c.bundle).where(_PROMOTIONS.c.state == "loading"),
                sa.select(_BUNDLES.c.id).order_by(_BUNDLES.c.created.desc()).limit(keep).subquery().select(),
            )
            gone = sa.delete(_BUNDLES).where(_BUNDLES.c.id.not_in(held)).returning(*_BUNDLES.c)
            return [_bundle(row) for row in connection.execute(gone).all()]

    def remove(self, bundle: str, previous: Mapping[str, str | None]) -> None:
        """Takes one bundle out of the list; where it was the way back of a surface, another takes that place.

        Args:
            previous: surface to the bundle that a rollback leads to instead; none: there is no way back.

        Raises:
            Conflict: it is live, or being promoted.
        """
        with self._database.transaction() as connection:
            for surface in self._surfaces(connection, _ALIASES.c.previous == bundle):
                change = sa.update(_ALIASES).where(_ALIASES.c.surface == surface)
                connection.execute(change.values(previous=previous.get(surface)))
            live = self._surfaces(connection, _ALIASES.c.bundle == bundle)
            loading = sa.select(_PROMOTIONS.c.id).where(
                _PROMOTIONS.c.bundle == bundle, _PROMOTIONS.c.state == "loading"
            )
            if live or connection.execute(loading).first() is not None:
                where = f"live on {', '.join(live)}" if live else "being promoted"
                raise Conflict(f"bundle {bundle}: found it {where}, wanted one that nobody needs")
            connection.execute(sa.delete(_BUNDLES).where(_BUNDLES.c.id == bundle))

    def _surfaces(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[str]:
        return [str(row.surface) for row in connection.execute(sa.select(_ALIASES.c.surface).where(condition))]

    # Aliases

    def live(self, surface: str) -> str | None:
        """The bundle that is live on the surface, None: none was ever promoted there."""
        rows = self._database.rows(sa.select(_ALIASES.c.bundle).where(_ALIASES.c.surface == surface))
        return rows[0].bundle if rows else None

    def aliases(self) -> AliasMap:
        """Every alias and the version of the whole map, from one read."""
        found = [Alias(*row) for row in self._database.rows(sa.select(_ALIASES))]
        return AliasMap(sum(alias.version for alias in found), {alias.surface: alias for alias in found})

    def version(self) -> int:
        """The version of the alias map alone: one small read, for polling."""
        return int(self._database.rows(sa.select(sa.func.coalesce(sa.func.sum(_ALIASES.c.version), 0)))[0][0])

    def rollback_target(self, surface: str) -> str:
        """The bundle that was live on the surface before the present one.

        Raises:
            NotFound: nothing was live there before.
        """
        rows = self._database.rows(sa.select(_ALIASES.c.previous).where(_ALIASES.c.surface == surface))
        if not rows or rows[0].previous is None:
            raise NotFound(f"surface {surface!r} has no bundle that was live before")
        return str(rows[0].previous)

    def move(self, bundle: str, expected: Mapping[str, str | None]) -> int:
        """Makes `bundle` live on all surfaces that `expected` names, or on none (compare and swap).

        Args:
            bundle: a registered id.
            expected: surface to the bundle that must be live there now; None: nothing may be live there yet.
                A surface on which `bundle` is live already stays as it is.

        Returns:
            The version of the alias map afterwards.

        Raises:
            Conflict: something else is live on one of the surfaces; says what.
            NotFound: the bundle is not registered.
        """
        self.bundle(bundle)
        # One order of surfaces for everybody: two moves cannot wait for each other.
        try:
            with self._database.transaction() as connection:
                for surface, present in sorted(expected.items()):
                    if present != bundle:
                        self._swap(connection, surface, present, bundle)
                if connection.execute(sa.select(_BUNDLES.c.id).where(_BUNDLES.c.id == bundle)).first() is None:
                    raise NotFound(f"bundle {bundle!r} has been retired meanwhile")
                return int(connection.execute(sa.select(sa.func.sum(_ALIASES.c.version))).scalar_one() or 0)
        except IntegrityError:
            found = self.aliases().live
            clash = next((s for s, p in sorted(expected.items()) if p is None and s in found), min(expected))
            raise _lost(clash, found.get(clash), None) from None

    def _swap(self, connection: sa.Connection, surface: str, present: str | None, bundle: str) -> None:
        if present is None:
            row = {"surface": surface, "bundle": bundle, "previous": None, "version": 1, "changed": time.time()}
            connection.execute(sa.insert(_ALIASES), row)
            return
        change = (
            sa.update(_ALIASES)
            .where(_ALIASES.c.surface == surface, _ALIASES.c.bundle == present)
            .values(bundle=bundle, previous=present, version=_ALIASES.c.version + 1, changed=time.time())
        )
        if connection.execute(change).rowcount != 1:
            found = connection.execute(sa.select(_ALIASES.c.bundle).where(_ALIASES.c.surface == surface)).scalar()
            raise _lost(surface, found, present)

    # Promotions

    def start_promotion(
        self,
        bundle: str,
        surfaces: Sequence[str],
        *,
        kind: Kind = "promote",
        force: bool = False,
        state: State = "loading",
        reason: str | None = None,
        figures: Mapping[str, Any] | None = None,
        total: int = 0,
    ) -> Promotion:
        """Records a promotion under a new id; a refused one is recorded with `state="refused"` and its reason."""
        now = time.time()
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S")
        row = {
            "id": f"p-{stamp}-{secrets.token_hex(4)}",
            "kind": kind,
            "bundle": bundle,
            "surfaces": list(surfaces),
            "force": force,
            "state": _known(state),
            "reason": reason,
            "figures": dict(figures or {}),
            "loaded": total if state == "live" else 0,
            "total": total,
            "created": now,
            "changed": now,
        }
        with self._database.transaction() as connection:
            connection.execute(sa.insert(_PROMOTIONS), row)
        return self.promotion(str(row["id"]))

    def update_promotion(
        self,
        promotion: str,
        *,
        state: State | None = None,
        reason: str | None = None,
        loaded: int | None = None,
        total: int | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> Promotion:
        """Changes what is given. A promotion that has ended stays as it is, but for `live` to `rolled_back`.

        Raises:
            NotFound: no such id.
            Conflict: it has ended otherwise.
        """
        given = {"state": state and _known(state), "reason": reason, "loaded": loaded, "total": total}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        values["changed"] = time.time()
        if figures is not None:
            values["figures"] = dict(figures)
        open_states = ["loading", "live"] if state == "rolled_back" else ["loading", state or "loading"]
        change = (
            sa.update(_PROMOTIONS)
            .where(_PROMOTIONS.c.id == promotion, _PROMOTIONS.c.state.in_(open_states))
            .values(**values)
        )
        with self._database.transaction() as connection:
            changed = connection.execute(change).rowcount
        now = self.promotion(promotion)
        if not changed:
            raise Conflict(f"promotion {promotion}: found state {now.state!r}, wanted one of {open_states}")
        return now

    def promotion(self, promotion: str) -> Promotion:
        """One promotion.

        Raises:
            NotFound: no such id.
        """
        rows = self._database.rows(sa.select(_PROMOTIONS).where(_PROMOTIONS.c.id == promotion))
        if not rows:
            raise NotFound(f"no promotion {promotion!r}")
        return _promotion(rows[0])

    def promotions(self, limit: int = 100, state: State | None = None) -> list[Promotion]:
        """The newest promotions, newest first."""
        query = sa.select(_PROMOTIONS).order_by(_PROMOTIONS.c.created.desc(), _PROMOTIONS.c.id.desc()).limit(limit)
        if state is not None:
            query = query.where(_PROMOTIONS.c.state == state)
        return [_promotion(row) for row in self._database.rows(query)]


def _known(state: str) -> str:
    if state not in get_args(State):
        raise ValueError(f"promotion state: found {state!r}, wanted one of {get_args(State)}")
    return state


def _lost(surface: str, found: str | None, wanted: str | None) -> Conflict:
    present = f"bundle {found}" if found else "nothing"
    return Conflict(f"surface {surface}: found {present} live, wanted {f'bundle {wanted}' if wanted else 'nothing'}")


def _bundle(row: Any) -> BundleRow:
    return BundleRow(row.id, row.created, Path(row.folder), dict(row.manifest))


def _promotion(row: Any) -> Promotion:
    values = row._asdict()
    return Promotion(**{**values, "surfaces": tuple(values["surfaces"]), "figures": dict(values["figures"])})
