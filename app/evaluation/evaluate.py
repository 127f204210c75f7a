"""One family on one folder of data by one protocol: fit, judge, and everything that a report says of it."""

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.errors import MantaError
from app.evaluation.beyond import beyond_accuracy
from app.evaluation.folder import read_folder
from app.evaluation.judging import histories_of, judge, judge_samples
from app.evaluation.metrics import bootstrap_intervals, per_case
from app.evaluation.row_weights import RowWeights
from app.models.families import make

Protocol = Literal["top-n", "next-item", "sampled"]
PROTOCOLS: tuple[Protocol, ...] = ("top-n", "next-item", "sampled")
KS = (5, 10, 20, 50)
BEYOND_K = 10

# Told what is being done, how much of it is done, and how much there is (None: not known).
Watch = Callable[[str, int, int | None], None]


def evaluate(
    folder: Path,
    family: str,
    protocol: Protocol,
    *,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_valid: bool = False,
    mask_history: bool = False,
    weigh: RowWeights | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Fits the family on the folder's train (and valid), and judges it on its test; `on_valid`: on train, and valid.

    Args:
        folder: as `docs/evaluation.md` describes it.
        family: one of `app.models.families.FAMILIES`.
        protocol: `top-n` ranks the whole catalogue without the user's fitted items, `next-item` ranks all of it,
            `sampled` ranks the target among the negatives that the test names.
        params: of the family; what is not named has its default.
        seed: of the fit, and of the order among equal scores.
        on_valid: fit on train alone, judge on valid.
        mask_history: `next-item` without the items of the history.
        weigh: what the fitted rows weigh; None: every row 1.
        watch: told how far it is.

    Returns:
        As `manta evaluate --json` writes it.

    Raises:
        MantaError: the data, or a score that is no number.
        SettingsError: unknown family or parameter.
    """
    model = make(family, params)
    data = read_folder(folder, on_valid=on_valid, weigh=weigh)
    held, fitted = data.held, data.fitted
    if (protocol == "sampled") != (held.negatives is not None):
        found = "negatives" if held.negatives is not None else "none"
        raise MantaError(
            f"{folder}: found {found} in the test, wanted {'some' if found == 'none' else 'none'} ({protocol})"
        )

    def say(step: str) -> Callable[[int, int], None]:
        return lambda done, whole: watch(step, done, whole) if watch is not None else None

    if watch is not None:
        watch("fit", 0, None)
    began = time.perf_counter()
    model.fit(
        fitted, data.catalogue, seed=seed, progress=lambda n, _: watch("fit", n, None) if watch is not None else None
    )
    fit_seconds = time.perf_counter() - began
    began = time.perf_counter()
    histories, told = histories_of(held, fitted), say("predict")
    if protocol == "sampled":
        judged = judge_samples(model.score, held, histories, fitted.n_items, top=max(KS), seed=seed, progress=told)
    else:
        mask = protocol == "top-n" or mask_history
        judged = judge(model.score, held, histories, fitted.n_items, mask=mask, top=max(KS), seed=seed, progress=told)
    predict_seconds = time.perf_counter() - began
    cases = per_case(judged.ranks, judged.offsets, KS)
    return {
        "data": str(folder),
        "family": family,
        "protocol": protocol,
        "on": "valid" if on_valid else "test",
        "seed": seed,
        "mask_history": protocol == "top-n" or mask_history,
        **({} if weigh is None else {"weigh": {name: one.model_dump() for name, one in weigh.weights.items()}}),
        "params": model.params.model_dump(mode="json"),
        "metrics": {
            **{name: float(values.mean()) for name, values in cases.items()},
            **beyond_accuracy(judged.shown, fitted, BEYOND_K),
        },
        "ci95": bootstrap_intervals(cases, held.groups, seed=seed),
        "n_users": len(np.unique(held.groups)),
        "n_cases": len(held),
        "n_cold_targets": int((held.targets < 0).sum()),
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
