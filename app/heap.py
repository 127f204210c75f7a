"""Memory that goes back to the system: left alone, allocators keep what bulk work has freed, for each thread anew."""

import ctypes
import functools
import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt
_ARENAS = 2
_KEPT_BYTES = 16_000_000  # free at the heap's end: from there on it is given back
_OWN_PAGES_BYTES = 4_000_000  # from here on an allocation has pages of its own, and gives them back when it is freed


def bound_heap() -> None:
    """Few arenas for this process's threads, and pages of its own for what is large, where the library can (glibc).

    Arrow's columns come from jemalloc, whose arenas all threads share. What threads have already they keep: the sooner
    this is called the better.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, _ARENAS)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def give_back() -> None:
    """Gives what is free, of Arrow's pool and of the heap, back to the system."""
    pa.default_memory_pool().release_unused()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def leave_pandas_out() -> None:
    """For a process that ingests and does nothing else: pyarrow imports pandas (40 MB) at the first list it is given.

    It looks for it once, here; whoever imports pandas itself still finds it, but `pyarrow.Table.to_pandas` does not.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
