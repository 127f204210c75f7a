"""Ray Serve without pandas, in every process that imports this module first.

`ray.serve._private.utils` tries to import it, for a JSON encoder that Manta never uses: in each of a system's ten
processes that takes 1.3 s of a core and 60 MB. Workers import this module through `RAY_preload_python_modules`.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TRIES = "ray.serve._private.utils"
HIDDEN = "pandas"


class _Hiding(Loader):
    """Runs a module that makes do without HIDDEN."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[HIDDEN] = None  # type: ignore[assignment]
        try:
            self._loader.exec_module(module)
        finally:
            del sys.modules[HIDDEN]


class _Finder(MetaPathFinder):
    """Finds TRIES, once."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != TRIES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None and HIDDEN not in sys.modules:
            spec.loader = _Hiding(spec.loader)
        return spec


if TRIES not in sys.modules:
    sys.meta_path.insert(0, _Finder())
