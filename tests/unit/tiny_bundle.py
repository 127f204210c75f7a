"""Tiny bundles on disk, registered: real families over a few items, so that a whole system can serve them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from app.bundles.build import Lineage, write_bundle
from app.bundles.load import load_bundle
from app.bundles.manifest import ValidationSplit
from app.bundles.registry import open_registry
from app.features.statistics import ItemStatistics
from app.features.table import feature_names, make_spec
from app.models.families import make
from app.models.interactions import Catalogue
from app.ranking.network import NetworkRanker
from app.ranking.ranker import Ranker
from app.settings import Settings
from tests.unit.chain_world import N_ITEMS, columns_of, interactions

MIX = (("item_knn", 20), ("popularity", 20), ("content", 10))


def write_tiny(
    parent: Path,
    bundle_id: str,
    *,
    prefix: str = "i",
    ndcg: float = 0.1,
    sick: bool = False,
    ranker: Ranker | None = None,
    lineage: Lineage | None = None,
    events: int | None = None,
    mix: tuple[tuple[str, int], ...] = MIX,
) -> Path:
    """A bundle of 60 items `{prefix}0` to `{prefix}59`; another prefix makes a disjoint catalogue.

    Args:
        sick: its ranker's scores are no numbers.
        ranker: None: a network that has not learned.
        lineage: None: a metric, of no split.
        events: how many of the oldest it has learned from; None: all.
        mix: its sources; popularity among them.
    """
    rows = [columns_of(row) for row in range(N_ITEMS)]
    columns = pa.table({name: [row[name] for row in rows] for name in ("title", "genres", "year")})
    items, data = Catalogue.of([f"{prefix}{row}" for row in range(N_ITEMS)], columns), interactions()
    data = data if events is None else data.first(events)
    models = {name: make(name).fit(data, items) for name, _ in mix}
    spec = make_spec(items, [name for name, _ in mix])
    network = NetworkRanker(feature_names(spec))
    if sick:
        torch.nn.init.constant_(network.module.out.weight, float("nan"))
    scores = models["popularity"].score(data.histories().slice(0, 1))[0]
    return write_bundle(
        parent,
        bundle_id=bundle_id,
        catalogue=items,
        models=models,
        mix=mix,
        candidates=40,
        ranker=ranker or network,
        spec=spec,
        statistics=ItemStatistics.of(data, spec.half_lives_days),
        popular=np.argsort(-scores, kind="stable").astype(np.int32),
        lineage=lineage or Lineage(metrics={"ndcg_at_10": ndcg}, validation=ValidationSplit()),
    )


def register_tiny(
    settings: Settings, home: Path, bundle_id: str, *, prefix: str = "i", ndcg: float = 0.1, sick: bool = False
) -> None:
    """Writes the bundle into the home's folder and registers it, not live."""
    folder = write_tiny(home / "bundles", bundle_id, prefix=prefix, ndcg=ndcg, sick=sick)
    manifest = load_bundle(folder).manifest
    registry = open_registry(settings, home)
    registry.register(bundle_id, folder, manifest.model_dump(mode="json"))
    registry.close()
