"""The in-process door: `load_bundle(path).recommend([...])`, without Ray, Kafka or a network."""

from collections.abc import Sequence
from pathlib import Path

from app.bundles.load import LoadedBundle
from app.bundles.load import load_bundle as load
from app.chain.parts import Chain, LiveBundle
from app.chain.stages import LocalStages
from app.recommend import Outcome, Request, recommend_now
from app.state.memory import MemoryState
from app.surfaces import SurfaceSettings


class Recommender:
    """A bundle that answers in this process. Not thread-safe.

    Attributes:
        bundle: what answers.
        state: events, users and items that arrived since; empty at first. Requests may bring their own `history`.
    """

    def __init__(
        self, bundle: LoadedBundle, surface_name: str = "home", surface: SurfaceSettings | None = None
    ) -> None:
        self.bundle, self.state = bundle, MemoryState()
        settings = surface or SurfaceSettings(timeout_ms=10_000, candidates=bundle.manifest.candidates)
        stages = LocalStages({bundle.id: bundle})
        self._chain = Chain(surface_name, settings, LiveBundle(bundle), self.state, stages)

    def recommend(self, requests: Sequence[Request]) -> list[Outcome]:
        """One outcome a request, in order: an answer, or the error that it alone met."""
        live = self._chain.target.live
        live.apply(self.state.item_changes(live.sequence))
        return recommend_now(self._chain, requests)


def load_bundle(folder: Path, surface_name: str = "home", surface: SurfaceSettings | None = None) -> Recommender:
    """Verifies and loads a bundle, ready to answer.

    Raises:
        BundleError: it is missing, damaged or of an unknown format.
    """
    return Recommender(load(folder), surface_name, surface)
