"""What a chain is made of: one surface over one bundle, the live items and the state."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.chain.sample import Sample
from app.chain.stages import Stages
from app.degrade import Breakers
from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue, Rows
from app.ranking.ranker import Ranker
from app.retrieval.catalogue import LiveCatalogue
from app.retrieval.fill import Fallback
from app.retrieval.filters import Filters
from app.retrieval.sources import Source
from app.state.reader import StateReader
from app.surfaces import SurfaceSettings


class ServableBundle(Protocol):
    """What the chain asks of a loaded bundle (`app.bundles.load.LoadedBundle`).

    Attributes:
        mix: sources and how many candidates from each, chosen on validation.
        items: content arrays of the bundle's rows; each LiveBundle takes a copy.
        popular: int32, rows by popularity, best first.
    """

    @property
    def id(self) -> str: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def models(self) -> Mapping[str, CandidateModel]: ...
    @property
    def sources(self) -> Mapping[str, Source]: ...
    @property
    def mix(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def ranker(self) -> Ranker | None: ...
    @property
    def spec(self) -> FeatureSpec: ...
    @property
    def statistics(self) -> ItemStatistics: ...
    @property
    def items(self) -> ItemFeatures: ...
    @property
    def popular(self) -> Rows: ...


class Lists(Protocol):
    """Precomputed lists of a bundle (`app.cache.ListStore`)."""

    def rows(self, key: str) -> Rows | None:
        """int32 rows, best first, of `u:<user_id>` or `i:<item_id>`; None: no such list."""
        ...


class Answers(Protocol):
    """The answer cache (`app.cache.AnswerCache`)."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes, ttl_s: float) -> None: ...


class LiveBundle:
    """A loaded bundle with the items as they stand now; shared by all surfaces of a replica.

    `live.apply(changes)` is all it takes to bring it up to date: everything beside the catalogue follows.
    """

    def __init__(self, bundle: ServableBundle, lists: Lists | None = None) -> None:
        self.bundle, self.lists = bundle, lists
        self.live = LiveCatalogue(bundle.catalogue)
        self.filters = Filters(self.live)
        self.item_features = bundle.items.copy()
        self.live.follow(self.item_features.put_many)
        self.fallback = Fallback(self.live, bundle.popular, bundle.models)


@dataclass(frozen=True, slots=True)
class Chain:
    """Everything `recommend` needs besides the requests. One a surface and bundle; cheap to make.

    Attributes:
        target: the bundle and its live items.
        refresh: brings state and live items up to the writer's position; called when items have changed meanwhile.
        answers: None: no answer cache.
        seen_of: the answers that keep what the ranker saw of their items.
        clock: seconds, monotonic, the same as `Request.arrived`.
    """

    surface_name: str
    surface: SurfaceSettings
    target: LiveBundle
    state: StateReader
    stages: Stages
    breakers: Breakers = field(default_factory=Breakers)
    answers: Answers | None = None
    refresh: Callable[[], Awaitable[None]] | None = None
    variant: str = "champion"
    seen_of: Sample = field(default_factory=Sample)
    clock: Callable[[], float] = time.monotonic

    @property
    def mix(self) -> tuple[tuple[str, int], ...]:
        """The surface's sources where it names any that the bundle has, else the bundle's."""
        sources = self.target.bundle.sources
        own = tuple((source.family, source.k) for source in self.surface.sources if source.family in sources)
        return own or self.target.bundle.mix
