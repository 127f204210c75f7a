"""A small world for tests of the chain: 60 items in four genres, a bundle of real families, a state in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import feature_names, make_spec
from app.models.candidate import CandidateModel
from app.models.families import make
from app.models.interactions import Catalogue, Interactions, Rows
from app.ranking.network import NetworkRanker
from app.ranking.ranker import Ranker
from app.recommend import Answer, Chain, LiveBundle, LocalStages, Outcome, Request, recommend_now
from app.retrieval.sources import Source, source_of
from app.state.memory import MemoryState
from app.surfaces import SurfaceSettings

GENRES = ("Drama", "Comedy", "Horror", "War")
N_ITEMS = 60
DAY_MS = 86_400_000


def columns_of(row: int) -> dict[str, Any]:
    genres = [GENRES[row % 4]] + (["Indie"] if row % 5 == 0 else [])
    return {"title": f"Film {row} {GENRES[row % 4]}", "genres": genres, "year": 1960 + row}


def catalogue() -> Catalogue:
    rows = [columns_of(row) for row in range(N_ITEMS)]
    columns = pa.table({name: [row[name] for row in rows] for name in ("title", "genres", "year")})
    return Catalogue.of([f"i{row}" for row in range(N_ITEMS)], columns)


def picture_of(group: int, turn: float = 0.0) -> list[float]:
    """A vector of one of three groups; `turn`, below 1, tells items of a group apart."""
    return [float(group == 0) + turn, float(group == 1), float(group == 2), turn]


def with_pictures(items: Catalogue) -> Catalogue:
    """The catalogue with a column `picture` of vectors, in groups that have nothing to do with the genres."""
    rows = [picture_of(row // 4 % 3, row / 200) for row in range(len(items))]
    return Catalogue.of(items.item_ids, items.columns.append_column("picture", pa.array(rows, pa.list_(pa.float32()))))


def interactions(seed: int = 0) -> Interactions:
    """60 users, each mostly of one genre; the last ten items have no event."""
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(60), 8).astype(np.int32)
    near = random.integers(0, 12, len(users)) * 4 + users % 4
    anywhere = random.integers(0, N_ITEMS - 10, len(users))
    items = np.where(random.random(len(users)) < 0.8, near, anywhere).astype(np.int32)
    order = random.permutation(len(users))
    times = np.arange(len(users), dtype=np.int64) * 3_600_000 + DAY_MS
    return Interactions(users[order], items[order], np.ones(len(users), np.float32), times, 60, N_ITEMS)


@dataclass
class TinyBundle:
    """What a loaded bundle offers the chain, without a folder."""

    id: str
    catalogue: Catalogue
    models: Mapping[str, CandidateModel]
    mix: tuple[tuple[str, int], ...]
    spec: FeatureSpec
    statistics: ItemStatistics
    items: ItemFeatures
    popular: Rows
    ranker: Ranker | None
    sources: Mapping[str, Source] = field(default_factory=dict)


def bundle(
    bundle_id: str = "b1",
    mix: tuple[tuple[str, int], ...] | None = None,
    ranked: bool = True,
    items: Catalogue | None = None,
) -> TinyBundle:
    items, data = items or catalogue(), interactions()
    torch.manual_seed(0)
    mix = mix or (("item_knn", 20), ("ials", 20), ("popularity", 10), ("content", 10))
    names = dict.fromkeys(("item_knn", "ials", "popularity", "content", *(name for name, _ in mix)))
    models = {name: make(name).fit(data, items) for name in names}
    spec = make_spec(items, [name for name, _ in mix])
    popularity = source_of(models["popularity"])
    popular = np.argsort(-models["popularity"].score(data.histories().slice(0, 1))[0], kind="stable").astype(np.int32)
    return TinyBundle(
        id=bundle_id,
        catalogue=items,
        models=models,
        mix=mix,
        spec=spec,
        statistics=ItemStatistics.of(data, spec.half_lives_days),
        items=ItemFeatures.of(spec, items),
        popular=popular,
        ranker=NetworkRanker(feature_names(spec)) if ranked else None,
        sources={name: source_of(model) for name, model in models.items()} | {"popularity": popularity},
    )


class World:
    """A chain over a bundle and a state in memory."""

    def __init__(self, made: TinyBundle | None = None, surface: SurfaceSettings | None = None, **more: Any) -> None:
        self.bundle = made or bundle()
        self.state = MemoryState()
        self.target = LiveBundle(self.bundle, more.pop("lists", None))
        more.setdefault("stages", LocalStages({self.bundle.id: self.bundle}))
        self.surface = surface or SurfaceSettings(timeout_ms=10_000, candidates=50)
        self.chain = Chain("home", self.surface, self.target, self.state, **more)

    def click(self, user: str, *items: str, start_ms: int = 100 * DAY_MS) -> None:
        for place, item in enumerate(items):
            self.state.add(user, item, time_ms=start_ms + place * 1000)

    def put(self, item_id: str, columns: Mapping[str, Any] | None) -> None:
        """Puts or withdraws an item and brings the live items up to date, as the gateway does."""
        self.state.put_item(item_id, columns)
        self.target.live.apply(self.state.item_changes(self.target.live.sequence))

    def outcomes(self, *requests: Request) -> list[Outcome]:
        return recommend_now(self.chain, requests)

    @staticmethod
    def outcomes_of(chain: Chain, requests: Sequence[Request]) -> list[Answer]:
        return [answered(outcome) for outcome in recommend_now(chain, requests)]

    def answer(self, **fields: Any) -> Answer:
        outcome = self.outcomes(Request(**fields))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def ids(self, **fields: Any) -> list[str]:
        return ids_of(self.answer(**fields))


def answered(outcome: Outcome) -> Answer:
    assert isinstance(outcome, Answer), outcome
    return outcome


def ids_of(outcome: Outcome) -> list[str]:
    return [item.item_id for item in answered(outcome).items]
