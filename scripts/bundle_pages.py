"""What `manta bundles list|show|history` print."""

from collections.abc import Iterable, Mapping
from typing import Any

from scripts import show

Json = Mapping[str, Any]


def overview(rows: Iterable[Json], metric: str) -> None:
    """One line a bundle, with the metric that bundles are compared by."""
    shown = [{**row, metric: row["metrics"].get(metric)} for row in rows]
    show.table(shown, ["bundle", "created", "live", metric], "no bundles yet: `manta sweep FILE.yaml` makes one")


def lineage(folder: str, manifest: Json, live: list[str], metric: str) -> None:
    """Where a bundle came from, what it consists of, and its figures: of families and segments, against others."""
    metrics, split = manifest.get("metrics") or {}, manifest.get("validation") or {}
    plain = (
        "snapshot",
        "data_hash",
        "code_version",
        "sweep",
        "seed",
        "surfaces",
        "mix",
        "candidates",
        "ranker",
        "sizes",
    )
    show.facts(
        {
            "bundle": manifest.get("id"),
            "folder": folder,
            "created": manifest.get("created"),
            "live on": live,
            **{name: manifest.get(name) or None for name in plain if name != "seed"},
            "seed": manifest.get("seed"),
            "validation": split,
            "metrics": {name: value for name, value in metrics.items() if "." not in name},
            "files": len(manifest.get("files") or {}),
        }
    )
    families = [
        {"family": one["name"], metric: metrics.get(f"{one['name']}.{metric}"), "params": one.get("params")}
        for one in manifest.get("families") or []
    ]
    _section(families, ["family", metric, "params"])
    segments = [
        {"segment": name, "cases": int(one.get("cases", 0)), metric: one.get(metric)}
        for name, one in (manifest.get("segments") or {}).items()
    ]
    _section(segments, ["segment", "cases", metric])
    against = [
        {"against": other, "interval": _interval(one), **one}
        for other, one in (manifest.get("comparisons") or {}).items()
    ]
    _section(against, ["against", "metric", "ours", "theirs", "interval", "cases", "basis"])


def history(promotions: Iterable[Json]) -> None:
    """Promotions and rollbacks, with what became of them and why."""
    columns = ["promotion", "created", "kind", "bundle", "surfaces", "state", "reason"]
    show.table(promotions, columns, "nothing was promoted yet: `manta bundles promote ID`")


def _section(rows: list[dict[str, Any]], columns: list[str]) -> None:
    if rows:
        print()
        show.table(rows, columns, "")


def _interval(comparison: Json) -> str | None:
    low, high = comparison.get("low"), comparison.get("high")
    return None if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
