"""Retriever and ranker as deployments of their own (topology `distributed`), asked by bundle id."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.bundles.manifest import verify
from app.degrade import StageOverloaded, StageStarting
from app.ranking.ranker import Ranker, Weights, weighted_score
from app.recommend import warm_up
from app.retrieval.query import Candidates, Query
from app.retrieval.sources import Source, retrieve
from app.settings import Settings
from deployments.bundles import BundleStore
from deployments.coordinator import Coordinator
from deployments.loopback import keep_to_node
from deployments.threads import cap_threads

Loaded = TypeVar("Loaded")
# How long a call waits for a bundle that is on its way (to a replica that has just started).
LOADING_S = 1.0
WARM_ROWS = 200


class _Stage(Generic[Loaded]):
    """What a stage's replica has loaded, and its part in the swap."""

    def __init__(self, settings: Settings, home: str, cpus: float, store: BundleStore[Loaded]) -> None:
        keep_to_node()
        cap_threads(cpus)
        self._store = store
        self._following = asyncio.create_task(store.follow(Coordinator(settings, Path(home)).exchange))

    async def ready(self) -> None:
        """As `BundleStore.ready`."""
        await self._store.ready()

    async def of(self, bundle_id: str) -> Loaded:
        """What was loaded of a bundle. Raises StageStarting."""
        loaded = self._store.loaded
        if bundle_id not in loaded:
            try:
                async with asyncio.timeout(LOADING_S):
                    await self._store.settled()
            except TimeoutError:
                raise StageStarting(f"bundle {bundle_id} is being loaded") from None
        if bundle_id not in loaded:
            raise StageStarting(f"bundle {bundle_id} is not loaded here, wanted one of {sorted(loaded)}")
        return loaded[bundle_id]


def _sources(_: str, folder: Path) -> Mapping[str, Source]:
    from app.bundles.load import load_bundle  # torch and all: only a replica takes it in, not who deploys it

    bundle = load_bundle(folder)
    warm_up(bundle)
    return bundle.sources


def _ranker(_: str, folder: Path) -> Ranker | None:
    from app.bundles.load import load_ranker

    ranker = load_ranker(folder, verify(folder))
    if ranker is not None:  # the first scores take longer
        ranker.score(np.zeros((WARM_ROWS, len(ranker.feature_names)), np.float32))
    return ranker


class Retriever:
    """A replica of the deployment `retriever`: the sources of each bundle."""

    async def __init__(self, settings: Settings, home: str, cpus: float) -> None:  # type: ignore[misc]
        self._stage: _Stage[Mapping[str, Source]] = _Stage(settings, home, cpus, BundleStore("retriever", _sources))
        await self._stage.ready()

    async def retrieve(self, bundle_id: str, query: Query) -> Candidates:
        """As `app.chain.stages.Stages.retrieve`."""
        return retrieve(await self._stage.of(bundle_id), query)


class Scorer:
    """A replica of the deployment `ranker`: the ranker of each bundle (None where it has none)."""

    async def __init__(self, settings: Settings, home: str, cpus: float) -> None:  # type: ignore[misc]
        self._stage: _Stage[Ranker | None] = _Stage(settings, home, cpus, BundleStore("ranker", _ranker))
        await self._stage.ready()

    async def score(self, bundle_id: str, features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        """As `app.chain.stages.Stages.score`."""
        ranker = await self._stage.of(bundle_id)
        if ranker is None:
            raise LookupError(f"bundle {bundle_id}: found no ranker, wanted one")
        return weighted_score(ranker, features, weights)


class RemoteStages:
    """The stages as the chain asks them, over Serve's handles."""

    def __init__(self, retriever: DeploymentHandle, ranker: DeploymentHandle) -> None:
        self.immediate = False
        self._retrieve, self._score = retriever.retrieve, ranker.score

    async def retrieve(self, bundle_id: str, query: Query) -> Candidates:
        found: Candidates = await _answer(self._retrieve.remote(bundle_id, query))
        return found

    async def score(self, bundle_id: str, features: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = await _answer(self._score.remote(bundle_id, features, weights))
        return scores


async def _answer(response: Any) -> Any:
    """Serve's errors as the ladder's causes; those of the stage itself come with their class."""
    try:
        return await response
    except BackPressureError as error:
        raise StageOverloaded(str(error)) from None
    except DeploymentUnavailableError as error:
        raise StageStarting(str(error)) from None
