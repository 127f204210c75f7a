"""The best configurations of a sweep fitted for its bundle, beside each other on the cluster, from nothing or warm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from app.bundles.load import load_bundle
from app.bundles.registry import open_registry
from app.errors import BundleError, NotFound
from app.models.candidate import CandidateModel
from app.models.families import family_of
from app.models.interactions import Catalogue
from app.models.warm import WarmModel
from app.settings import Settings
from tune.dataset import TrainingSet
from tune.journal import TrialRecord
from tune.space import SweepFile
from tune.together import fit_together_task
from tune.worker import refit_task

Before = tuple[WarmModel, Catalogue]


class Fits:
    """The best configurations fitted on some of the oldest events."""

    def __init__(
        self,
        sweep: SweepFile,
        data: TrainingSet,
        best: Mapping[str, TrialRecord],
        seed: int,
        live: Mapping[str, Before],
    ) -> None:
        """`live`: where fits on all events begin, by family; fits on fewer must not: it has seen what comes after."""
        self._sweep, self._best, self._seed, self._live = sweep, best, seed, live
        self._events = len(data.interactions)
        self._shared = ray.put((data.interactions, data.catalogue))
        self._asked: dict[tuple[str, int], Any] = {}

    def ask(self, families: Sequence[str], events: int) -> None:
        """Begins fits on the oldest `events` events, the dearest first."""
        for family in sorted(families, key=lambda name: -family_of(name).fit_cost):
            trial, plan = self._best[family], self._sweep.families[family]
            cpus = plan.cpus or self._sweep.cpus
            before = self._live.get(family) if events == self._events else None
            asked = (events, family, trial.params, self._seed, passes_of(trial), before)
            if plan.workers > 1:
                gpus = plan.gpus if ray.cluster_resources().get("GPU") else 0.0
                several = ray.remote(num_cpus=0, max_retries=1)(fit_together_task)
                self._asked[family, events] = several.options(name=f"refit {family} by {plan.workers}").remote(
                    [self._shared], *asked, workers=plan.workers, cpus=cpus, gpus=gpus
                )
            else:
                task = ray.remote(num_cpus=cpus, max_retries=1)(refit_task).options(name=f"refit {family}")
                self._asked[family, events] = task.remote(self._shared, *asked, cpus)

    def get(self, families: Sequence[str], events: int) -> dict[str, CandidateModel]:
        """The fitted models; waits for them."""
        return {family: ray.get(self._asked[family, events]) for family in families}


def passes_of(trial: TrialRecord) -> int:
    """Where a stopped trial ended; one that ran to its end does so again."""
    return max((done for done, _ in trial.passes), default=0) if trial.state == "stopped" else 0


def live_models(settings: Settings, home: Path) -> tuple[dict[str, Before], str | None]:
    """The models of the bundle that is live on the default surface which a fit can begin at, by family; its id.

    Nothing, and None, where no bundle is live there, or it cannot be read: fits begin from nothing then.
    """
    registry = open_registry(settings, home)
    try:
        live = registry.aliases().live.get(settings.default_surface)
        if live is None:
            return {}, None
        bundle = load_bundle(registry.bundle(live).folder)
    except (BundleError, NotFound):
        return {}, None
    finally:
        registry.close()
    families = {entry.name: entry.family for entry in bundle.manifest.families}
    found = {
        families[name]: (model, bundle.catalogue)
        for name, model in bundle.models.items()
        if isinstance(model, WarmModel)
    }
    return found, live if found else None
