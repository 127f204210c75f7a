"""Erasure from checkpoints: those that are there are replaced by one of the state as it is now, without the user."""

import shutil
from pathlib import Path

from app.artifacts import Place, StoreError, below
from app.erasure.places import PlaceReport, Subject, cleared
from app.errors import MantaError, StateUnavailable
from app.faults import reach
from app.settings import Settings
from app.state.checkpoint import SHARD, checkpoints_place, place_of, write_checkpoint
from app.state.layout import StatePaths
from app.state.shares import Share, shares


class CheckpointsPlace:
    """The copies of the state in the artifact store, half ones too. The state itself is cleared before.

    Args:
        settings, home: where they are.
    """

    name = "checkpoints"

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings, self._home = settings, home

    def clear(self, _: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`.

        Raises:
            MantaError: the store cannot be read or written.
        """
        address = checkpoints_place(self._settings, self._home)
        wanted = {share: place_of(address, share) for share in shares(self._settings.state)}
        try:
            gone = [self._clear(share, place) for share, place in wanted.items()]
            # Of another number of shards, or of another placement
            store = Place.of(address)
            for name in store.folders():
                if name.startswith(SHARD) and below(address, name) not in wanted.values():
                    store.remove(name)
        except StoreError as error:
            raise MantaError(f"checkpoints at {address}: found {error}, wanted a place that can be written") from None
        number, made = sum(old for old, _ in gone), {made for old, made in gone if old}
        return [cleared(self.name, f"{number} {'; '.join(sorted(made))}" if number else "there was none")]

    def _clear(self, share: Share, address: str) -> tuple[int, str]:
        """How many of one database there were, and what became of them."""
        paths, made = StatePaths.of(self._home).shard(share.shard), "replaced by a new one"
        # One that is being made now: it may be older than the erasure, and whoever makes it notices
        for half in (paths.checkpoint, paths.checkpoint.with_suffix(".new")):
            shutil.rmtree(half, ignore_errors=True)
        store = Place.of(address)
        old = [name for name in store.folders() if not name.startswith(SHARD)]
        if not old:
            return 0, made
        try:
            write_checkpoint(self._settings, self._home, share)
        except StateUnavailable as error:
            made = f"removed; none could be made anew, a new node replays the topics ({error})"
        reach("erase:checkpoint_written")
        for name in set(old).intersection(store.folders()):  # the new one has made room for itself
            store.remove(name)
        return len(old), made
