"""The chain that a sweep would choose against the best single family, on each set of data in `shared/data`.

Full size takes hours on two cores (`sasrec` is among the families, fitted twice): `manta evaluate --chain` takes one
set at a time, fewer families, and `--users`.
"""

from pathlib import Path
from typing import Any

from app.evaluation.evaluate import Protocol
from tune.folder_chain import evaluate_chain

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS: dict[str, tuple[Protocol, bool]] = {  # protocol, and whether items of the history are masked
    "gowalla": ("top-n", True),
    "ml-1m-leave-one-out": ("next-item", True),
    "diginetica": ("next-item", False),
}


def run() -> dict[str, Any]:
    """By data set what was chosen, the test's table, and whether the chain holds; where the data are absent, that."""
    return {name: _one(name, *how) for name, how in SETS.items()}


def _one(name: str, protocol: Protocol, mask: bool) -> dict[str, Any]:
    if not (DATA / name).is_dir():
        return {"skipped": f"found no folder shared/data/{name}, wanted one beside the checkout"}
    found = evaluate_chain(DATA / name, protocol, mask_history=mask)
    kept = ("metric", "mix", "ranker", "best_single", "holds", "n_cases", "test", "seconds")
    return {key: found[key] for key in kept}
