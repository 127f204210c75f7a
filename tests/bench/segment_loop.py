"""What `tests/bench/sweep.py` measures itself against: a plain loop over segments, without Ray.

python -m tests.bench.segment_loop EVENTS.npz FOLDER PROCESSES
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from app.models.families import FAMILIES
from app.models.interactions import Catalogue, Interactions
from tune.segments import SegmentedData, by_mark
from tune.trial import cap_threads, fit_and_judge


def main(events: Path, folder: Path, processes: int) -> float:
    """Seconds for all segments; as a sweep it fits before the newest tenth, judges at most 200 cases, and saves."""
    held = np.load(events)
    n_users, n_items = (int(size) for size in held["sizes"])
    n = len(held["items"])
    ones, times = np.ones(n, np.float32), np.arange(n, dtype=np.int64) * 1000
    whole = Interactions(held["users"], held["items"], ones, times, n_users, n_items)
    n_fit = n - int(n * 0.1)
    marks = pa.array([f"s{one}" for one in range(int(held["own"].max()) + 1)]).take(pa.array(held["own"]))
    segments = by_mark(marks, n_fit, 400)
    data = SegmentedData(whole, Catalogue.of([f"i{row}" for row in range(n_items)]), segments, n_fit, 200, 200, 0)
    assert "ials" in FAMILIES
    cap_threads(int(os.environ["OMP_NUM_THREADS"]))

    def some(part: int) -> None:
        for segment in range(part, len(segments), processes):
            place = folder / str(processes) / str(segment)
            fit_and_judge(
                "ials", {}, data.cut(segment), metric="ndcg_at_10", seed=0, report=lambda _: None, save_to=place
            )

    began = time.perf_counter()
    if processes == 1:
        some(0)
    else:
        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=some, args=(part,)) for part in range(processes)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        assert all(process.exitcode == 0 for process in started)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps({"seconds": main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))}))
