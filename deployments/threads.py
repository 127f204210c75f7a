"""One thread budget per replica: FAISS, BLAS and torch would each start a pool as large as the machine."""

import contextlib
from math import ceil


def cap_threads(cpus: float) -> int:
    """Caps every pool of this process to the CPUs that it reserved (at least 1); returns the cap."""
    import faiss  # seconds of a core with torch, which a driver that only deploys need not spend
    import torch
    from threadpoolctl import threadpool_limits

    threads = max(1, ceil(cpus))
    threadpool_limits(threads)
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # it can be set only before the first parallel work
        torch.set_num_interop_threads(1)
    return threads
