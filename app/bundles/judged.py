"""How a bundle did on each validation case: kept in it without anybody's id, so that two can be paired later."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from app.bundles.manifest import Comparison, Paired
from app.errors import BundleError
from app.evaluation.metrics import bootstrap_intervals

JUDGED = "judged.safetensors"
_VALUE, _SEGMENT, _USERS = "value:", "segment:", "users"


@dataclass(frozen=True, slots=True)
class Judged:
    """Metrics by case.

    Attributes:
        users: int32 (C,), equal for cases of one user; says nothing else.
        values: metric to float64 (C,).
        segments: name to int32 places of its cases; one case may be of several.
    """

    users: NDArray[np.int32]
    values: Mapping[str, NDArray[np.float64]]
    segments: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Writes it as safetensors, users numbered from 0."""
        _, codes = np.unique(self.users, return_inverse=True)
        arrays: dict[str, NDArray[Any]] = {_USERS: codes.astype(np.int32)}
        arrays |= {_VALUE + name: np.ascontiguousarray(one, np.float32) for name, one in self.values.items()}
        arrays |= {_SEGMENT + name: np.ascontiguousarray(one, np.int32) for name, one in self.segments.items()}
        save_file(arrays, file)

    @classmethod
    def load(cls, file: Path) -> "Judged":
        """What `save` wrote.

        Raises:
            BundleError: it is no such file.
        """
        try:
            arrays = load_file(file)
            users = arrays.pop(_USERS)
        except (OSError, SafetensorError, KeyError) as error:
            raise BundleError(f"{file}: found {error}, wanted values by validation case") from None

        def named(prefix: str) -> dict[str, NDArray[Any]]:
            return {name.removeprefix(prefix): one for name, one in arrays.items() if name.startswith(prefix)}

        values = {name: one.astype(np.float64) for name, one in named(_VALUE).items()}
        return cls(users, values, named(_SEGMENT))

    def by_segment(self) -> dict[str, dict[str, float]]:
        """Means of each metric over each segment's cases, and how many these are."""
        return {
            name: {
                "cases": float(len(places)),
                **{metric: float(v[places].mean()) for metric, v in self.values.items()},
            }
            for name, places in self.segments.items()
            if len(places)
        }

    def some(self, places: NDArray[np.int64]) -> "Judged":
        """Of some cases (ascending places) alone."""
        at = np.full(len(self.users), -1, np.int32)
        at[places] = np.arange(len(places))
        segments = {name: at[held][at[held] >= 0] for name, held in self.segments.items()}
        return Judged(self.users[places], {name: one[places] for name, one in self.values.items()}, segments)


def paired(ours: Judged, theirs: Mapping[str, NDArray[np.float64]], metric: str, basis: str) -> Comparison:
    """Ours against theirs, by metric float64 (C,), on the same cases in the same order, overall and by segment."""
    mine, other = ours.values[metric], theirs[metric]
    segments = {name: places for name, places in ours.segments.items() if len(places)}
    parts = {name: _paired(mine[places], other[places], ours.users[places]) for name, places in segments.items()}
    whole = _paired(mine, other, ours.users)
    return Comparison(**dict(whole), metric=metric, basis=basis, segments=parts)


def _paired(ours: NDArray[np.float64], theirs: NDArray[np.float64], users: NDArray[np.int32]) -> Paired:
    low, high = bootstrap_intervals({"": ours - theirs}, users)[""]
    return Paired(cases=len(ours), theirs=float(theirs.mean()), ours=float(ours.mean()), low=low, high=high)


def paired_files(
    ours: tuple[Path, Mapping[str, Any]], theirs: tuple[Path, Mapping[str, Any]], metric: str
) -> Comparison | None:
    """Two bundles (folder, manifest as JSON) by their files. None: not of the same cases, or no values by case."""
    (folder, manifest), (other_folder, other_manifest) = ours, theirs
    data = manifest.get("data_hash")
    if not data or any(manifest.get(key) != other_manifest.get(key) for key in ("data_hash", "validation")):
        return None
    try:
        mine, other = Judged.load(folder / JUDGED), Judged.load(other_folder / JUDGED)
    except BundleError:  # an older bundle; what is damaged the hashes will tell
        return None
    if metric not in mine.values or metric not in other.values or len(mine.users) != len(other.users):
        return None
    return paired(mine, other.values, metric, "same validation cases")
