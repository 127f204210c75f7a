"""Training rows of a ranker: the candidates of many cases, their features, and what came of each."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Kept = slice | NDArray[np.int64] | NDArray[np.bool_]

NEXT = "next"  # the objective of examples from histories: the very next event was with this item


@dataclass(frozen=True, slots=True)
class Examples:
    """Candidates of C cases, flat: R rows in all.

    Attributes:
        features: float32 (R, F).
        offsets: int64 (C + 1,).
        labels: float32 (R, O), 1 where the row was answered by the objective, else 0.
        objectives: names of the O objectives.
        positions: int32 (R,), where the row was shown, from 1; 0: it was not shown, only retrieved.
    """

    features: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]
    objectives: tuple[str, ...]
    positions: NDArray[np.int32]

    @classmethod
    def of_targets(
        cls, features: NDArray[np.float32], offsets: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> "Examples":
        """Of one objective, NEXT. `targets`: int64 (C,), place of the target in its case, -1: it was not retrieved."""
        labels = np.zeros((len(features), 1), np.float32)
        found = np.flatnonzero(targets >= 0)
        labels[offsets[:-1][found] + targets[found]] = 1.0
        return cls(features, offsets, labels, (NEXT,), np.zeros(len(features), np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> NDArray[np.int64]:
        """int64 (R,): the case of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def targets(self) -> NDArray[np.int64]:
        """int64 (C,): place of the first row that the first objective answered, from 0; -1: none."""
        targets = np.full(len(self), -1, np.int64)
        hits = np.flatnonzero(self.labels[:, 0] > 0)[::-1]
        cases = np.searchsorted(self.offsets, hits, side="right") - 1
        targets[cases] = hits - self.offsets[cases]
        return targets

    def slice(self, start: int, end: int) -> "Examples":
        """Cases start to end - 1, without copying rows."""
        first, last = self.offsets[start], self.offsets[end]
        return self._rows(np.s_[first:last], self.offsets[start : end + 1] - first)

    def take(self, cases: NDArray[np.int64]) -> "Examples":
        """The given cases, in that order."""
        lengths = np.diff(self.offsets)[cases]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return self._rows(np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][cases] - offsets[:-1], lengths), offsets)

    def thinned(self, most: int, random: np.random.Generator) -> "Examples":
        """About `most` random candidates of each case, those that were answered always among them."""
        lengths = np.diff(self.offsets)
        if not len(lengths) or lengths.max() <= most:
            return self
        keep = random.random(len(self.features), np.float32) < (most / np.maximum(lengths, 1))[self.owner]
        keep |= self.labels.any(axis=1)
        before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        return self._rows(keep, before[self.offsets])

    def answered(self) -> "Examples":
        """Only the cases of which some row was answered: the others say nothing of an order."""
        rows = self.labels.any(axis=1)
        found = np.unique(self.owner[rows])
        return self if len(found) == len(self) else self.take(found)

    def _rows(self, rows: Kept, offsets: NDArray[np.int64]) -> "Examples":
        return replace(
            self,
            features=self.features[rows],
            offsets=offsets,
            labels=self.labels[rows],
            positions=self.positions[rows],
        )


def both(first: Examples, second: Examples) -> Examples:
    """Two sets of the same objectives in one.

    Raises:
        ValueError: their objectives differ.
    """
    if first.objectives != second.objectives:
        raise ValueError(f"examples: found objectives {first.objectives} and {second.objectives}, wanted the same")
    return Examples(
        np.concatenate([first.features, second.features]),
        np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        np.concatenate([first.labels, second.labels]),
        first.objectives,
        np.concatenate([first.positions, second.positions]),
    )


def ndcg_of_targets(scores: NDArray[np.float32], examples: Examples, k: int = 10) -> NDArray[np.float64]:
    """float64 (C,): 1 / log2(1 + place of the target among its candidates), 0 beyond k or without a target."""
    targets = examples.targets
    has = targets >= 0
    rows = np.where(has, examples.offsets[:-1] + np.maximum(targets, 0), 0)
    reference = np.where(has, scores[rows] if len(scores) else 0.0, np.inf)
    better = np.bincount(examples.owner, scores > reference[examples.owner], minlength=len(examples))
    return np.where(has & (better < k), 1.0 / np.log2(better + 2.0), 0.0)
