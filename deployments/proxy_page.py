"""What Ray's HAProxy answers by itself: 503 with `Retry-After`, as Manta says it, in every process that imports this.

A replica that dies takes the requests in flight on it along, and for a moment there may be none: Ray 2.60 has HAProxy
answer both with a 500 in plain text. Workers import this module first, through `RAY_preload_python_modules`; it costs
them nothing until one of them is to run HAProxy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from deployments.import_hooks import around_import

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


@contextmanager
def _with_page(module: ModuleType) -> Iterator[None]:
    yield
    put_page(module)


around_import(RUNS, _with_page)
