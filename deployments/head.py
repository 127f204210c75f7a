"""`ray start` with only what a system of Manta needs: python -m deployments.head start --head ...

The command itself imports all of Serve for a sub-command that is not used here (2 s of a core), and starts a server for
`ray://` clients whenever it can; Manta's clients are drivers, jobs and HTTP.
"""

import sys


def main() -> None:
    """Ray's command line."""
    sys.modules["ray.serve.scripts"] = None  # type: ignore[assignment]
    from ray.scripts import scripts

    scripts.get_ray_client_dependency_error = lambda: ImportError("not wanted")
    scripts.main()


if __name__ == "__main__":
    main()
