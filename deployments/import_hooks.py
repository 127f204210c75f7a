"""What is done around the first import of a module of Ray's, in every process that asks for it before that import."""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Around = Callable[[ModuleType], AbstractContextManager[None]]


def around_import(name: str, around: Around) -> None:
    """The module `name` runs inside `around`, which is given the module; nothing happens where it is imported already.

    Costs nothing until then.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Finder(name, around))


class _Loader(Loader):
    def __init__(self, loader: Loader, around: Around) -> None:
        self._loader, self._around = loader, around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with self._around(module):
            self._loader.exec_module(module)


class _Finder(MetaPathFinder):
    """Finds one module, once."""

    def __init__(self, name: str, around: Around) -> None:
        self._name, self._around = name, around

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._around)
        return spec
