"""A request that a bundle must be able to answer before it goes live, without Ray, Kafka or stored state.

    python -m deployments.smoke BUNDLE_FOLDER

Says nothing and ends with 0, or says on stderr what was wrong and ends with 1.
"""

import math
import sys
from pathlib import Path

from app.bundles.load import LoadedBundle, load_bundle
from app.errors import BundleError, MantaError
from app.recommend import Answer, Chain, LiveBundle, LocalStages, Request, recommend_now
from app.settings import Settings
from app.state.memory import MemoryState
from app.surfaces import SurfaceSettings
from deployments.threads import cap_threads

K = 5


def smoke(bundle: LoadedBundle) -> None:
    """Answers a visitor with a history and one without.

    Raises:
        BundleError: it failed, gave too few items or scores that are no numbers.
    """
    chain = Chain(
        "smoke", SurfaceSettings(), LiveBundle(bundle), MemoryState(Settings()), LocalStages({bundle.id: bundle})
    )
    known = [bundle.catalogue.item_ids[row] for row in bundle.popular[:3].tolist()]
    requests = [Request(history=known, k=K, timeout_ms=10_000), Request(k=K, timeout_ms=10_000)]
    for request, outcome in zip(requests, recommend_now(chain, requests), strict=True):
        if not isinstance(outcome, Answer):
            raise BundleError(f"bundle {bundle.id}: smoke request failed: {outcome}") from outcome
        if outcome.degraded is not None:
            raise BundleError(f"bundle {bundle.id}: smoke request: found a degraded answer ({outcome.degraded_reason})")
        wanted = min(K, len(bundle.catalogue) - len(set(request.history or ())))
        if len(outcome.items) < wanted or not all(math.isfinite(item.score) for item in outcome.items):
            raise BundleError(f"bundle {bundle.id}: smoke request: found {outcome.items}, wanted {wanted} scored items")


def main() -> int:
    """The command."""
    cap_threads(1)
    try:
        smoke(load_bundle(Path(sys.argv[1]), check_hashes=False))
    except MantaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
