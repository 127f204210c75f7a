"""The smoke request: what a bundle must be able to answer before it goes live, without Ray, Kafka or stored state.

    python -m app.smoke BUNDLE_FOLDER

Says how many milliseconds of CPU a lone request takes and ends with 0, or on stderr what was wrong and ends with 1.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from app.errors import BundleError, MantaError

K = 5
PROBES = 15  # lone requests, of which the median is told
# A large bundle on a slow disk: loading it is what takes long, once more than on each replica.
LIMIT_S = 300.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def smoke_apart(folder: Path, limit_s: float = LIMIT_S) -> float:
    """`smoke` in a process of its own, with one thread: a crash of it and its memory end there.

    Returns:
        What `smoke` does.

    Raises:
        BundleError: the bundle does not load, or did not answer as it must.
    """
    command = [sys.executable, "-P", "-m", "app.smoke", str(folder)]
    environment = {**os.environ, **_ONE_THREAD}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{folder}: found no answer within {limit_s:g} s") from None
    if done.returncode < 0:
        raise BundleError(f"{folder}: found the process killed by signal {-done.returncode}")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise BundleError(said)
    return float(done.stdout.split()[-1])


def smoke(folder: Path) -> float:
    """Loads a bundle whose hashes were just verified; it answers a visitor with a history and one without.

    Returns:
        Milliseconds of CPU that a lone request with a history takes, the median of some: in one thread that is its
        time on a machine that has nothing else to do.

    Raises:
        BundleError: it does not load, or failed, gave too few items, one twice, one of the history, or scores that
            are no numbers.
    """
    from app.bundles.load import load_bundle  # torch and all: whoever asks from a process of its own needs none of it
    from app.recommend import Answer, in_process, probes, recommend_now

    bundle = load_bundle(folder, check_hashes=False)
    requests, chain = probes(bundle, K, int(1000 * LIMIT_S)), in_process(bundle)
    for request, outcome in zip(requests, recommend_now(chain, requests), strict=True):
        if not isinstance(outcome, Answer):
            raise BundleError(f"{folder}: found the request failed: {outcome}") from outcome
        if outcome.degraded is not None:
            raise BundleError(f"{folder}: found a degraded answer ({outcome.degraded_reason})")
        wanted = min(K, len(bundle.catalogue) - len(set(request.history or ())))
        if len(outcome.items) < wanted or not all(math.isfinite(item.score) for item in outcome.items):
            raise BundleError(f"{folder}: found {outcome.items}, wanted {wanted} scored items")
        ids = [item.item_id for item in outcome.items]
        if len(set(ids)) < len(ids) or set(ids) & set(request.history or ()):
            raise BundleError(f"{folder}: found {ids} after {request.history}, wanted items once, none of the history")
    taken = []
    for _ in range(PROBES):
        started = time.process_time()
        recommend_now(chain, requests[:1])
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken)


def main() -> int:
    """The command."""
    try:
        sys.stdout.write(f"{smoke(Path(sys.argv[1])):.3f}\n")
    except MantaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
