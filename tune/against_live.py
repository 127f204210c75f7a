"""What is live now on the validation cases of a bundle that is being built, for the promotion gate."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from app.bundles.judged import Judged, paired
from app.bundles.load import LoadedBundle, load_bundle
from app.bundles.manifest import Comparison, ValidationSplit
from app.bundles.registry import Registry
from app.errors import BundleError, NotFound
from app.evaluation.protocols import Evaluation
from tune.chains import Chain, judge_chain
from tune.dataset import TrainingSet
from tune.user_columns import UserColumns

FRESH_CASES = 100  # fewer events after those that the champion learned from say nothing
SAME_SLICE = 0.8  # share of our validation cases that lie in the champion's validation slice, to call it the same


def against_live(
    registry: Registry,
    data: TrainingSet,
    cases: NDArray[np.int64],
    judged: Judged,
    validation: ValidationSplit,
    metric: str,
    history_limit: int,
    users: UserColumns | None,
) -> Mapping[str, Comparison]:
    """How the bundles that are live now do on our validation cases, by their ids.

    Only events after those that a live bundle has learned from tell both apart fairly: on these it is asked case by
    case. Where there are hardly any, but its own validation slice was nearly ours, its recorded figure is taken. Else
    nothing: the gate pairs the files of both where the cases are the very same, or refuses.

    Args:
        judged: ours on each of the cases.
        validation: what names these.
    """
    found: dict[str, Comparison] = {}
    times = data.interactions.times[cases]
    for live in sorted(set(registry.aliases().live.values())):
        try:
            bundle = load_bundle(registry.bundle(live).folder)
        except (BundleError, NotFound):
            continue
        theirs, split = bundle.manifest.metrics, bundle.manifest.validation
        fresh = np.flatnonzero(times >= split.to_ms)
        if len(fresh) >= FRESH_CASES:
            other = judge_bundle(bundle, data, cases[fresh], history_limit, users).per_case
            found[live] = paired(judged.some(fresh), other, metric, "events that neither has learned from")
        elif split == validation and bundle.manifest.data_hash == data.data_hash:
            continue
        elif np.mean((times >= split.from_ms) & (times < split.to_ms)) >= SAME_SLICE and metric in theirs:
            ours = float(judged.values[metric].mean())
            basis = "nearly the same validation slice"
            found[live] = Comparison(cases=len(cases), theirs=theirs[metric], ours=ours, metric=metric, basis=basis)
    return found


def judge_bundle(
    bundle: LoadedBundle,
    data: TrainingSet,
    cases: NDArray[np.int64],
    history_limit: int,
    users: UserColumns | None,
) -> Evaluation:
    """A bundle on events whose rows are another catalogue's: items that it does not know are rows beyond its own."""
    known = bundle.catalogue.row_of
    places = np.array([known.get(item, len(known)) for item in data.catalogue.item_ids], np.int32)
    translated = data.interactions.translated(places, len(known) + 1)
    chain = Chain(bundle.mix, bundle.manifest.candidates, bundle.ranker, bundle.spec)
    items = bundle.items.copy()
    items.put(len(known), {})
    return judge_chain(chain, bundle.sources, bundle.statistics, items, translated, cases, history_limit, users)
