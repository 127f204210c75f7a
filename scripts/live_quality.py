"""What the live replay says of quality: the chain's answers against each of its families, on the same cases.

A case is one held-back event: the next event of its user, asked for with the user's history up to it, consumed items
masked, the whole catalogue (`next_event` in app/evaluation). Looked at once, after everything has been chosen.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from app.evaluation.metrics import bootstrap_interval
from app.evaluation.protocols import Evaluation, evaluated, next_event
from app.models.interactions import Catalogue, Histories, Interactions, Weights
from scripts.replay import Replayed

METRIC = "ndcg_at_10"


def live_quality(
    folder: Path,
    past: list[dict[str, Any]],
    live: list[dict[str, Any]],
    seen: Replayed,
    *,
    history_limit: int,
) -> dict[str, float | str]:
    """Metrics of the chain as the clients saw it, of all-time popularity and of the best single family.

    Args:
        folder: the live bundle's.
        past, live: the events before the replay and those of it, in time order.
        seen: what the clients saw: the places of `live`'s items in the answers.
        history_limit: newest events that the surface's models look at.
    """
    from app.bundles.load import load_bundle  # the models are large: only the process that judges takes them in

    bundle = load_bundle(folder)
    catalogue = bundle.catalogue
    events = interactions_of(past + live, catalogue)
    cases = np.arange(len(past), len(past) + len(live))
    ranks = np.where(seen.places > 0, seen.places, np.inf).astype(np.float64)
    chain = evaluated(ranks, events.users[cases], (10,))
    counts = np.bincount(events.items[: len(past)], minlength=len(catalogue)).astype(np.float32)

    def popularity(histories: Histories) -> Weights:
        return np.repeat(counts[None, :], len(histories), axis=0)

    all_time = next_event(popularity, events, cases, history_limit=history_limit, ks=(10,))
    single = {
        name: next_event(model, events, cases, history_limit=history_limit, ks=(10,))
        for name, model in bundle.models.items()
    }
    best = max(single, key=lambda name: single[name].metrics[METRIC])
    return _figures(chain, all_time, single[best], best)


def _figures(chain: Evaluation, popularity: Evaluation, single: Evaluation, best: str) -> dict[str, float | str]:
    difference = chain.per_case[METRIC] - single.per_case[METRIC]
    low, high = bootstrap_interval(difference, chain.users)
    return {
        METRIC: chain.metrics[METRIC],
        "hit_rate_at_10": chain.metrics["hit_rate_at_10"],
        "popularity_ndcg_at_10": popularity.metrics[METRIC],
        "times_popularity": chain.metrics[METRIC] / max(popularity.metrics[METRIC], 1e-12),
        "best_single_family": best,
        "best_single_ndcg_at_10": single.metrics[METRIC],
        "difference_to_best_single": float(difference.mean()),
        "difference_ci95_low": low,
        "difference_ci95_high": high,
        "cases": len(difference),
    }


def interactions_of(events: list[dict[str, Any]], catalogue: Catalogue) -> Interactions:
    """Events in time order as arrays, every event of weight 1."""
    users: dict[str, int] = {}
    rows = np.array([users.setdefault(event["user_id"], len(users)) for event in events], np.int32)
    items = np.array([catalogue.row_of[event["item_id"]] for event in events], np.int32)
    times = np.array([datetime.fromisoformat(event["event_time"]).timestamp() * 1000 for event in events], np.int64)
    return Interactions(rows, items, np.ones(len(events), np.float32), times, len(users), len(catalogue))
