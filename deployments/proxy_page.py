"""What Ray's HAProxy answers by itself: 503 with `Retry-After`, as Manta says it, in every process that imports this.

A replica that dies takes the requests in flight on it along, and for a moment there may be none: Ray 2.60 has HAProxy
answer both with a 500 in plain text. Workers import this module first, through `RAY_preload_python_modules`; it costs
them nothing until one of them is to run HAProxy.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

RUNS = "ray.serve._private.haproxy"
DETAIL = "the replica that had this request has ended, or none is there yet; retry safely, events with their event_id"


def page() -> bytes:
    """The whole answer, as HAProxy's `errorfile` wants it."""
    from app.api.problems import CONTENT_TYPE, Problem

    problem = Problem(503, DETAIL, retry_after_s=1)
    body = problem.encode()
    headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(body)), **problem.headers}
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def put_page(module: ModuleType) -> None:
    """Has HAProxy's manager write this page where it writes its own, for 502, 503 and 504."""
    api = module.HAProxyApi
    prepare = api._initialize_directories_and_error_files

    def with_page(self: Any) -> None:
        prepare(self)
        Path(self.cfg.error_file_path).write_bytes(page())

    api._initialize_directories_and_error_files = with_page


class _Adding(Loader):
    """Loads RUNS, and then puts the page."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        put_page(module)


class _Finder(MetaPathFinder):
    """Finds RUNS, once."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != RUNS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Adding(spec.loader)
        return spec


if RUNS not in sys.modules:
    sys.meta_path.insert(0, _Finder())
