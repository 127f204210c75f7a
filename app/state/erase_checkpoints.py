"""Erasure from checkpoints: those that are there are replaced by one of the state as it is now, without the user."""

import shutil
from pathlib import Path

from app.artifacts import Place, StoreError
from app.erasure.places import PlaceReport, Subject, cleared
from app.errors import MantaError, StateUnavailable
from app.faults import reach
from app.settings import Settings
from app.state.checkpoint import checkpoints_place, write_checkpoint
from app.state.layout import StatePaths


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
        paths, address = StatePaths.of(self._home), checkpoints_place(self._settings, self._home)
        # One that is being made now: it may be older than the erasure, and whoever makes it notices
        for half in (paths.checkpoint, paths.checkpoint.with_suffix(".new")):
            shutil.rmtree(half, ignore_errors=True)
        try:
            store = Place.of(address)
            old = store.folders()
            if not old:
                return [cleared(self.name, "there was none")]
            try:
                write_checkpoint(self._settings, self._home)
                made = "replaced by a new one"
            except StateUnavailable as error:
                made = f"removed; none could be made anew, a new node replays the topics ({error})"
            reach("erase:checkpoint_written")
            for name in old:
                store.remove(name)
        except StoreError as error:
            raise MantaError(f"checkpoints at {address}: found {error}, wanted a place that can be written") from None
        return [cleared(self.name, f"{len(old)} {made}")]
