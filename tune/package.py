"""The best of a sweep as a bundle: chosen on validation, refitted on everything, written, registered, not live."""

import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.bundles.build import Lineage, write_bundle
from app.bundles.judged import Judged
from app.bundles.manifest import ValidationSplit, read_manifest
from app.bundles.registry import bundles_folder, open_registry
from app.bundles.retention import retire
from app.cache import write_lists_sst
from app.erasure.erased import Erased, load_erased
from app.errors import BundleError
from app.evaluation.splits import TimeSplit
from app.features.statistics import ItemStatistics
from app.features.table import feature_names, make_spec
from app.models.candidate import CandidateModel, StaticModel
from app.models.families import load_model
from app.models.interactions import Catalogue, Histories
from app.retrieval.sources import Source, retrieve, source_of
from app.settings import Settings
from tune.against_live import against_live
from tune.answer_log import AnswerLog
from tune.assemble import Assembled, assemble
from tune.case_segments import case_segments
from tune.chain_cost import Costs
from tune.chains import BATCH, Chain, Slices, plain_query
from tune.dataset import TrainingSet
from tune.fits import Fits, live_models, passes_of
from tune.journal import TrialRecord
from tune.objective import Objective
from tune.ranker_plan import RankerPlan
from tune.space import SweepFile
from tune.trial import cap_threads, refit
from tune.user_columns import user_columns

LISTS = 1000  # users (the most recent) and items (the most popular) with a precomputed list each
LIST_LENGTH = 100
POPULAR = 10_000


@dataclass(frozen=True, slots=True)
class Packaged:
    """`bundle`: the id it was registered under, None: none was asked for. `figures`: mix, ranker, search, ablation."""

    bundle: str | None
    figures: dict[str, Any]


def package(
    settings: Settings,
    home: Path,
    folder: Path,
    sweep: SweepFile,
    data: TrainingSet,
    cases: NDArray[np.int64],
    best: Mapping[str, TrialRecord],
    tell: Callable[[str], None],
) -> Packaged:
    """Builds, writes and registers the bundle of a sweep.

    Args:
        folder: the sweep's, with the fitted models of the best trials.
        cases: the validation cases that the sweep was judged on.
        best: the best trial of each family.
        tell: hears which step begins.
    """
    seed = int(sweep.seed or 0)
    cap_threads(max(1.0, sweep.cpus))
    split = data.split(settings.learn)
    tell("choosing the chain")
    models = {family: _fitted(folder, trial, split, data.catalogue, seed) for family, trial in best.items()}
    live, begun_at = live_models(settings, home) if sweep.begin == "live" else ({}, None)
    fits = Fits(sweep, data, best, seed, live)

    def earlier(families: Sequence[str]) -> dict[str, CandidateModel]:
        fits.ask(families, len(split.fit))
        return fits.get(families, len(split.fit))

    learn, users = settings.learn, user_columns(settings, home, data)
    assembled = assemble(
        models,
        {family: float(trial.value or 0.0) for family, trial in best.items()},
        data.catalogue,
        Slices(
            data.interactions,
            split.ranker_cases,
            cases,
            sweep.history_limit,
            learn.statistics_age_h,
            users,
            learn.objectives,
        ),
        earlier=earlier,
        metric=str(sweep.metric),
        candidates=settings.surfaces[settings.default_surface].candidates,
        seed=seed,
        describe=partial(
            make_spec,
            also=learn.extra_features,
            session_gap_s=learn.session_gap_s,
            user_numbers=learn.user_features,
            context_numbers=learn.context_features,
        ),
        rankers=sweep.ranker,
        logged=None if sweep.ranker.examples == "next" else AnswerLog.read(settings, home).examples,
        mixes=sweep.mix,
        costs=_costs(sweep, best),
        # For the bundle: the cluster goes on while rankers learn.
        likely=lambda families: fits.ask(families, len(data.interactions)),
        tell=lambda step: tell(f"choosing the chain: {step}"),
    )
    tell("fitting the chosen sources on everything")
    chain = _with_final_ranker(assembled, sweep.ranker, seed)
    final = fits.get([family for family, _ in chain.mix], len(data.interactions))
    tell("writing the bundle")
    registry = open_registry(settings, home)
    try:
        evaluation = assembled.evaluation
        segments = case_segments(settings, home, data, cases)
        judged = Judged(evaluation.users, evaluation.per_case, segments)
        validation = ValidationSplit(
            snapshot=data.snapshot,
            from_ms=int(data.interactions.times[split.validation_cases[0]]),
            to_ms=int(data.interactions.end),
            cases=len(cases),
            seed=seed,
        )
        lineage = Lineage(
            surfaces=tuple(settings.surfaces),
            snapshot=data.snapshot,
            sweep=folder.name,
            seed=seed,
            code_version=code_version(),
            data_hash=data.data_hash,
            metrics=_metrics(assembled, best),
            segments=judged.by_segment(),
            comparisons=against_live(
                registry, data, cases, judged, validation, str(sweep.metric), sweep.history_limit, users
            ),
            validation=validation,
            sizes={"events": len(data.interactions), "users": data.interactions.n_users},
        )
        bundle = write_without_erased(
            lambda erased: _write(settings, home, data, final, chain, lineage, judged, erased),
            lambda: load_erased(settings, home),
            bundles_folder(settings, home),
        )
        place = bundles_folder(settings, home) / bundle
        registry.register(bundle, place, read_manifest(place).model_dump(mode="json"))
        retire(registry, bundles_folder(settings, home), settings.registry.keep)
    finally:
        registry.close()
    figures: dict[str, Any] = {
        "mix": [list(entry) for entry in chain.mix],
        "ranker": "" if chain.ranker is None else chain.ranker.kind,
    }
    figures |= {
        "begun_at": begun_at,
        "metric": str(sweep.metric),
        "search": assembled.search,
        "ablation": assembled.ablation,
    }
    return Packaged(bundle, figures)


def _fitted(folder: Path, trial: TrialRecord, split: TimeSplit, catalogue: Catalogue, seed: int) -> CandidateModel:
    """The model that the trial saved; fitted again where it lies on another machine, or an older version saved it."""
    saved = folder / "models" / trial.name
    if saved.is_dir():
        try:
            return load_model(trial.family, saved)
        except BundleError:
            shutil.rmtree(saved, ignore_errors=True)
    return refit(trial.family, trial.params, split.before_validation, catalogue, seed=seed, passes=passes_of(trial))


def _costs(sweep: SweepFile, best: Mapping[str, TrialRecord]) -> Costs:
    """What the families that were tried cost, as the trials measured it."""
    return Costs(
        Objective(sweep.objective.latency_ms, sweep.objective.megabyte),
        {family: trial.latency_ms or 0.0 for family, trial in best.items()},
        {family: trial.bytes or 0 for family, trial in best.items()},
    )


def _with_final_ranker(assembled: Assembled, rankers: RankerPlan, seed: int) -> Chain:
    """The chosen chain; its ranker, if it has one, trained again on all examples."""
    chain = assembled.chain
    if chain.ranker is None:
        return chain
    kind, names = chain.ranker.kind, feature_names(chain.spec)
    examples = assembled.examples
    ranker = (None if examples is None else rankers.fitted(kind, names, examples, seed)) or chain.ranker
    return Chain(chain.mix, chain.candidates, ranker, chain.spec)


def _metrics(assembled: Assembled, best: Mapping[str, TrialRecord]) -> dict[str, float]:
    """Flat: the chain's by name, each family's as `FAMILY.NAME`."""
    metrics = dict(assembled.evaluation.metrics)
    for family, trial in best.items():
        metrics |= {f"{family}.{name}": value for name, value in trial.metrics.items()}
    return metrics


def write_without_erased(write: Callable[[Erased], str], load: Callable[[], Erased], parent: Path) -> str:
    """Writes a bundle as long as it takes until nobody was erased meanwhile; its id.

    Args:
        write: writes it without lists for the erased.
        load: who is erased by now.
        parent: where the bundles are.

    Raises:
        BundleError, OSError: as `write`, where no erasure was at work.
    """
    while True:
        erased = load()
        try:
            bundle = write(erased)
        except (BundleError, OSError):  # an erasure removes what it finds with the user in it, finished or not
            if load().version == erased.version:
                raise
            continue
        if load().version == erased.version:
            return bundle
        shutil.rmtree(parent / bundle, ignore_errors=True)


def _write(
    settings: Settings,
    home: Path,
    data: TrainingSet,
    final: Mapping[str, CandidateModel],
    chain: Chain,
    lineage: Lineage,
    judged: Judged,
    erased: Erased,
) -> str:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    bundle = f"b-{stamp}-{secrets.token_hex(3)}"
    popular = _popular(data, final)
    sources = {name: source_of(model) for name, model in final.items()}
    write_bundle(
        bundles_folder(settings, home),
        bundle_id=bundle,
        catalogue=data.catalogue,
        models=final,
        mix=chain.mix,
        candidates=chain.candidates,
        ranker=chain.ranker,
        spec=chain.spec,
        statistics=ItemStatistics.of(data.interactions, chain.spec.half_lives_days),
        popular=popular,
        lineage=lineage,
        judged=judged,
        write_lists=lambda file: write_lists_sst(file, _lists(data, sources, chain, popular, erased)),
    )
    return bundle


def _popular(data: TrainingSet, final: Mapping[str, CandidateModel]) -> NDArray[np.int32]:
    """int32 rows of available items, most popular first."""
    model = final.get("popularity")
    counted = np.bincount(data.interactions.items, data.interactions.weights, minlength=len(data.catalogue))
    scores = model.item_scores() if isinstance(model, StaticModel) else counted
    order = np.argsort(-scores, kind="stable")
    return order[data.available[order]][:POPULAR].astype(np.int32)


def _lists(
    data: TrainingSet, sources: Mapping[str, Source], chain: Chain, popular: NDArray[np.int32], erased: Erased
) -> dict[str, NDArray[np.int32]]:
    """Retrieval order for the most recent users (`u:ID`) and behind the most popular items (`i:ID`)."""
    whole = data.interactions
    users = list(islice(recent_users(data, erased), LISTS))
    keys = [f"u:{data.user_ids[user]}" for user in users] + [
        f"i:{data.catalogue.item_ids[row]}" for row in popular[:LISTS]
    ]
    behind = [[int(row)] for row in popular[:LISTS]]
    found: list[NDArray[np.int32]] = []
    by_user = whole.histories()
    for start in range(0, len(users), BATCH):
        found += _answers(_gathered(by_user, users[start : start + BATCH]), sources, chain, data)
    for start in range(0, len(behind), BATCH):
        found += _answers(Histories.of_lists(behind[start : start + BATCH], whole.end), sources, chain, data)
    return {key: rows for key, rows in zip(keys, found, strict=True) if len(rows)}


def recent_users(data: TrainingSet, erased: Erased) -> Iterator[int]:
    """Numbers of the users, the one with the newest event first; no sessions, and nobody who was ever erased.

    What was read of them may be from before that.
    """
    whole = data.interactions
    last = np.full(whole.n_users, -1, np.int64)
    last[whole.users] = np.arange(len(whole))
    for user in np.argsort(-last, kind="stable").tolist():
        if not data.sessions[user] and not erased.boundaries("user", data.user_ids[user]):
            yield user


def _gathered(histories: Histories, users: list[int]) -> Histories:
    starts, ends = histories.offsets[:-1][users], histories.offsets[1:][users]
    index = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return Histories(
        histories.items[index], histories.weights[index], histories.times[index], offsets, histories.as_of[users]
    )


def _answers(
    whole: Histories, sources: Mapping[str, Source], chain: Chain, data: TrainingSet
) -> list[NDArray[np.int32]]:
    query = plain_query(whole, 200, len(data.catalogue), chain.mix, LIST_LENGTH)
    found = retrieve(sources, query)
    lists = np.split(found.rows, found.offsets[1:-1])
    return [rows[data.available[rows]].astype(np.int32) for rows in lists]


def code_version() -> str:
    """The installed version, and the commit where the code is a checkout."""
    try:
        installed = version("manta")
    except PackageNotFoundError:
        installed = "0"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return installed
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return installed
    return f"{installed}+{found.stdout.strip()}" if found.returncode == 0 else installed
