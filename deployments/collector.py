"""Python's cycle collector in processes that make no cycles."""

import gc


def rest_the_collector() -> None:
    """Keeps Python's cycle collector from a process that makes small tuples by the thousand, and no cycles.

    It would go through everything that stands in memory, imports included, several times a second.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
