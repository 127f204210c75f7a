"""`ray start` with only what a system of Manta needs: python -m deployments.head start --head ...

The command itself imports all of Serve for a sub-command that is not used here (2 s of a core), and starts a server for
`ray://` clients whenever it can; Manta's clients are drivers, jobs and HTTP. It also gives up a node that has not
registered within 30 s, which a busy machine may well need.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

_REGISTERED_S = 120.0


def main() -> None:
    """Ray's command line."""
    sys.modules["ray.serve.scripts"] = None  # type: ignore[assignment]
    from ray._private import services
    from ray.scripts import scripts

    services.get_node = patient(services.get_node)
    scripts.get_ray_client_dependency_error = lambda: ImportError("not wanted")
    scripts.main()


def patient(get_node: Callable[..., Any], seconds: float = _REGISTERED_S) -> Callable[..., Any]:
    """Ray's question for a node, asked again while the node has not registered."""

    def ask(*arguments: Any, **named: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return ask


if __name__ == "__main__":
    main()
