"""Both halves of maintenance as the settings ask for them, table by table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from app.errors import MantaError
from app.lake.commit import NOBODY_ELSE, Alone
from app.lake.compaction import Compaction, compact
from app.lake.expiry import Expiry, expire
from app.lake.tables import Lake

# Called with (table, done, to do).
TableProgress = Callable[[str, int, int], None]


def compact_tables(
    lake: Lake,
    names: Sequence[str],
    progress: TableProgress | None = None,
    *,
    alone: Alone = NOBODY_ELSE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Compaction]:
    """Merges small files of the tables (`lake.target_file_bytes`); the rest as `compact`."""
    size = lake.settings.target_file_bytes
    for name in names:
        with _beside_erasure(name):
            done = compact(lake, name, target_bytes=size, progress=_of(name, progress), alone=alone, stop=stop)
        yield done


def expire_tables(
    lake: Lake, names: Sequence[str], progress: TableProgress | None = None, *, alone: Alone = NOBODY_ELSE
) -> Iterator[Expiry]:
    """Forgets snapshots (`lake.keep_snapshots_h`, `max_snapshots`) and removes files (`grace_h`); as `expire`."""
    kept = lake.settings
    for name in names:
        with _beside_erasure(name):
            done = expire(
                lake,
                name,
                keep_s=kept.keep_snapshots_h * 3600,
                grace_s=kept.grace_h * 3600,
                keep_most=kept.max_snapshots,
                progress=_of(name, progress),
                alone=alone,
            )
        yield done


@contextmanager
def _beside_erasure(name: str) -> Iterator[None]:
    """An erasure waits for nobody: what it takes away may be just what is looked at here."""
    try:
        yield
    except FileNotFoundError as error:
        raise MantaError(
            f"lake: {name}: found no {error.filename or error}: an erasure is at work; try again"
        ) from None


def _of(name: str, progress: TableProgress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, todo: progress(name, done, todo)
