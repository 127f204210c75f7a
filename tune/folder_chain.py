"""A whole chain on a folder of data: families, mix and ranker chosen on a part of what may be fitted on, then judged.

What is chosen on events set apart is fitted again on everything, and looks at the test once: every family alone, the
sources in their own order, and the chain.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import MantaError
from app.evaluation.evaluate import Protocol, Watch
from app.evaluation.folder import Folder, read_folder
from app.evaluation.protocols import next_event
from app.features.table import feature_names
from app.models.blend import BY_KIND, OF_KIND
from app.models.candidate import CandidateModel
from app.models.families import make
from app.models.interactions import Interactions
from app.models.kinds import kind_of
from tune.ablation import ablation, best_alone, holds
from tune.assemble import assemble
from tune.chains import Chain
from tune.folder_judging import BATCH, FolderJudge
from tune.held_out_events import HISTORY_LIMIT, only_some_users, set_apart
from tune.mixes import DEFAULT_MIX, MixPlan
from tune.ranker_plan import RankerPlan

CANDIDATES = 200  # that reach the ranker, as a surface's default
MOST_CASES = 5000  # users set apart for the ranker, and as many for validation
DEFAULT_PLAN = RankerPlan()


def evaluate_chain(
    folder: Path,
    protocol: Protocol,
    *,
    families: Sequence[str] = (),
    mask_history: bool = False,
    on_valid: bool = False,
    users: int | None = None,
    seed: int = 0,
    rankers: RankerPlan = DEFAULT_PLAN,
    mixes: MixPlan = DEFAULT_MIX,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Chooses a chain of families with their defaults, and judges it beside each of them.

    Args:
        folder: as `docs/evaluation.md` describes it.
        protocol: `top-n` or `next-item`.
        families: those that sources are chosen from; none: those of `blend` for this kind of data, popularity, and
            content where the items have columns.
        mask_history: `next-item` without the items of the history.
        on_valid: fit on train alone, judge on valid.
        users: fit on at most so many users' rows; None: all.
        rankers, mixes: what is tried.
        watch: told how far it is.

    Returns:
        `validation` and `test`: rows of `tune.ablation.ablation`; `holds`: whether on the test the chain is not below
        the best single family by more than the 95 % interval of the difference; mix, ranker, seconds.

    Raises:
        MantaError: the data; or `sampled`, which asks no source.
        SettingsError: unknown family.
    """
    if protocol == "sampled":
        raise MantaError("a chain retrieves its candidates: found --protocol sampled, wanted top-n or next-item")
    began, seconds = time.perf_counter(), dict[str, float]()

    def tell(step: str) -> None:
        if watch is not None:
            watch(step, 0, None)

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 2), now

    read = read_folder(folder, on_valid=on_valid)
    data = Folder(only_some_users(read.fitted, users, seed), read.catalogue, read.held)
    kind = kind_of(data.fitted)
    asked = tuple(families) or (
        *BY_KIND[kind],
        "popularity",
        *(["content"] if data.catalogue.columns.num_columns else []),
    )
    models = {name: make(name, OF_KIND[kind].get(name)) for name in asked}
    again = protocol == "next-item" and not mask_history
    metric = "ndcg_at_20" if protocol == "top-n" else "ndcg_at_10"
    rest, slices = set_apart(data.fitted, MOST_CASES, seed, again=again)
    if not len(slices.validation):
        raise MantaError(f"{folder}: found {len(data.fitted)} rows, wanted two users with two rows at least")

    def fit(on: Interactions, step: str) -> dict[str, CandidateModel]:
        fitted = {}
        for name in models:
            tell(f"{step}: {name}")
            fitted[name] = make(name, OF_KIND[kind].get(name)).fit(on, data.catalogue, seed=seed)
        return fitted

    early = fit(rest, "fit without what was set apart")
    lap("fit")
    values = {
        name: next_event(
            model,
            slices.interactions,
            slices.validation,
            mask_history=not again,
            history_limit=HISTORY_LIMIT,
            batch=BATCH,
            seed=seed,
        ).metrics[metric]
        for name, model in early.items()
    }
    found = assemble(
        early,
        values,
        data.catalogue,
        slices,
        earlier=lambda names: {name: early[name] for name in names},
        metric=metric,
        candidates=CANDIDATES,
        seed=seed,
        rankers=rankers,
        mixes=mixes,
        tell=tell,
    )
    chain = found.chain
    if chain.ranker is not None and found.examples is not None:
        ranker = rankers.fitted(chain.ranker.kind, feature_names(chain.spec), found.examples, seed) or chain.ranker
        chain = Chain(chain.mix, chain.candidates, ranker, chain.spec)
    lap("choose")
    final = fit(data.fitted, "fit on everything")
    lap("refit")
    test = FolderJudge(data, chain, final, again)
    stages = test.stages(lambda done: watch("judge", done, len(data.held)) if watch is not None else None)
    lap("judge")
    rows = ablation(stages, data.held.groups, metric, seed=seed)
    return {
        "data": str(folder),
        "protocol": protocol,
        "on": "valid" if on_valid else "test",
        "seed": seed,
        "mask_history": not again,
        "families": list(asked),
        "users": users,
        "metric": metric,
        "mix": [list(part) for part in chain.mix],
        "ranker": "" if chain.ranker is None else chain.ranker.kind,
        "search": found.search,
        "best_single": best_alone(stages, metric).name.removesuffix(" alone"),
        "holds": holds(rows, metric),
        "n_cases": len(data.held),
        "validation": found.ablation,
        "test": rows,
        "seconds": seconds,
    }
