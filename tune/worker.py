"""What runs in Ray's workers. Each imports it, so it stays light: neither plots, searchers nor bundles."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from app.errors import MantaError
from app.models.candidate import CandidateModel
from app.models.interactions import Catalogue, Interactions
from tune.journal import trial_name
from tune.trial import Rungs, SharedData, cap_threads, fit_and_judge, refit


def manta_trial(
    config: dict[str, Any], *, shared: SharedData, metric: str, seed: int, rungs: Rungs | None, models: str
) -> None:
    """One trial inside a Tune worker. What goes wrong in a fit is a result too: the worker lives on for the next."""
    _give_way()
    cap_threads(tune.get_context().get_trial_resources().head_cpus)
    try:
        fit_and_judge(
            config["family"],
            config["params"],
            shared,
            metric=metric,
            seed=seed,
            report=tune.report,
            rungs=rungs,
            save_to=Path(models) / trial_name(config["family"], config["number"]),
        )
    except Exception as error:
        said = str(error) if isinstance(error, MantaError) else f"{type(error).__name__}: {error}"
        tune.report({"error": said.splitlines()[0] if said else type(error).__name__, "pass": 0, "value": -math.inf})


def refit_task(
    shared: tuple[Interactions, Catalogue],
    events: int,
    family: str,
    params: Mapping[str, Any],
    seed: int,
    passes: int,
    cpus: float,
) -> CandidateModel:
    """One configuration fitted on the oldest `events` events, as a Ray task."""
    _give_way()
    cap_threads(cpus)
    interactions, catalogue = shared
    return refit(family, params, interactions.first(events), catalogue, seed=seed, passes=passes)


def _give_way() -> None:
    """Learning takes what answering leaves: a trial's priority is below that of the replicas on its node."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
