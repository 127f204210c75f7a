"""Ray Serve without pandas, in every process that imports this module first.

`ray.serve._private.utils` tries to import it, for a JSON encoder that Manta never uses: in each of a system's ten
processes that takes 1.3 s of a core and 60 MB. Workers import this module through `RAY_preload_python_modules`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from deployments.import_hooks import around_import

TRIES = "ray.serve._private.utils"
HIDDEN = "pandas"


@contextmanager
def _hidden(_: ModuleType) -> Iterator[None]:
    """HIDDEN cannot be imported meanwhile; where it has been, nothing is to be gained."""
    if HIDDEN in sys.modules:
        yield
        return
    sys.modules[HIDDEN] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[HIDDEN]


around_import(TRIES, _hidden)
