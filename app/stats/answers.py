"""The answers of `/v1/stats`: rows of figures and lists of trending items as the contract writes them."""

from collections.abc import Callable
from typing import Any

from app.events.schema import format_time
from app.stats.fold import Progress
from app.stats.reader import Bucket


def ctr_answer(
    buckets: list[Bucket], progress: Progress, *, by_source: bool, kept_from: int | None = None
) -> dict[str, Any]:
    """`{"buckets": [...], "watermark", "kept_from"}`; `source` only where figures are by source."""
    return {
        "buckets": [_bucket(bucket, by_source=by_source) for bucket in buckets],
        "watermark": _time(progress.watermark),
        "kept_from": _time(kept_from),
    }


def trending_answer(found: dict[str, Any], k: int, available: Callable[[str], bool]) -> dict[str, Any]:
    """The best k items of a list (`StatsReader.trending`) that are `available`."""
    items: list[dict[str, Any]] = []
    for item_id, score, count in found["items"]:
        if len(items) == k:
            break
        if available(item_id):
            items.append({"item_id": item_id, "score": score, "count": count})
    window = {"start": _time(found["start"]), "end": _time(found["end"])}
    return {"items": items, "window": window, "watermark": _time(found["as_of"])}


def _bucket(bucket: Bucket, *, by_source: bool) -> dict[str, Any]:
    figure = bucket.figure
    impressions, clicks, conversions = figure.counts
    return {
        "start": format_time(bucket.start),
        "end": format_time(bucket.end),
        "surface": figure.surface,
        "variant": figure.variant,
        "bundle": figure.bundle,
        **({"source": figure.source} if by_source else {}),
        "impressions": impressions,
        "clicks": clicks,
        "conversions": conversions,
        "ctr": clicks / impressions if impressions else 0.0,
        "final": bucket.final,
    }


def _time(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)
