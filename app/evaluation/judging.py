"""Scores of many cases to the places of what is held out, batch by batch: memory is bounded by a batch of scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.errors import MantaError
from app.evaluation.folder import Held
from app.evaluation.metrics import Offsets, Ranks
from app.models.interactions import Histories, Interactions

CELLS = 8_000_000  # scores held at once (32 MB)

Scores = NDArray[np.float32]
Scorer = Callable[[Histories], Scores]


@dataclass(frozen=True, slots=True)
class Judged:
    """Where the held-out items stand, and what was shown.

    Attributes:
        ranks: float64 (T,), the place of each held-out item from 1; infinite beyond the longest list and for what can
            never be shown.
        offsets: int64 (C + 1,), which of them belong to which case.
        shown: int32 (C, top), the first items of each list, -1 where a list is shorter.
    """

    ranks: Ranks
    offsets: Offsets
    shown: NDArray[np.int32]


def histories_of(held: Held, fitted: Interactions) -> Callable[[int, int], Histories]:
    """From first and last case to their histories: those that the test names, else the fitted rows of their users."""
    if held.histories is not None:
        rows, offsets = held.histories

        def named(start: int, end: int) -> Histories:
            return _of_rows(rows[offsets[start] : offsets[end]], offsets[start : end + 1] - offsets[start], fitted.end)

        return named
    whole = fitted.histories()

    def of_users(start: int, end: int) -> Histories:
        users = held.users[start:end]
        known = np.maximum(users, 0)
        starts, ends = whole.offsets[known], whole.offsets[known + 1]
        return whole.gather(starts, np.where(users < 0, starts, ends), np.full(len(users), fitted.end, np.int64))

    return of_users


def judge(
    score: Scorer,
    held: Held,
    histories: Callable[[int, int], Histories],
    n_items: int,
    *,
    mask: bool,
    top: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Ranks over the whole catalogue. Equal scores stand in an order drawn by the seed.

    Args:
        score: histories to float32 (B, n_items).
        held: the cases.
        histories: as `histories_of` makes it.
        n_items: size of the catalogue.
        mask: items of the history are not shown; a held-out item among them is a miss that counts.
        top: the longest list that counts.
        seed: of the order among equal scores.
        progress: called with the cases done so far and their number.

    Raises:
        MantaError: a score is NaN or infinite.
    """
    ranks = np.full(len(held.targets), np.inf)
    shown = np.full((len(held), min(top, n_items)), -1, np.int32)
    luck = np.random.default_rng(seed)
    for start, end in _batches(len(held), n_items):
        asked = histories(start, end)
        scores = _finite(score(asked), start)
        if mask:
            scores[asked.owner, asked.items] = -np.inf
        lists = _first(scores, top, luck)
        shown[start:end] = lists
        first, last = held.offsets[start], held.offsets[end]
        owner = np.repeat(np.arange(end - start), np.diff(held.offsets[start : end + 1]))
        ranks[first:last] = _places(lists, owner, held.targets[first:last])
        if progress is not None:
            progress(end, len(held))
    return Judged(ranks, held.offsets, shown)


def judge_samples(
    score: Scorer,
    held: Held,
    histories: Callable[[int, int], Histories],
    n_items: int,
    *,
    top: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Ranks of each target among its own negatives; what is outside the catalogue stands behind everything else.

    A negative that is the target, or repeats, counts once. Arguments and errors: `judge`.
    """
    assert held.negatives is not None
    rows, offsets = held.negatives
    ranks = np.full(len(held), np.inf)
    shown = np.full((len(held), top), -1, np.int32)
    luck = np.random.default_rng(seed)
    for start, end in _batches(len(held), n_items):
        scores = _finite(score(histories(start, end)), start)
        for place in range(end - start):
            case = start + place
            target = held.targets[case]
            others = np.unique(rows[offsets[case] : offsets[case + 1]])
            known = np.concatenate([others[(others >= 0) & (others != target)], [target] if target >= 0 else []])
            known = known.astype(np.int64)
            order = known[np.lexsort((luck.random(len(known)), -scores[place, known]))]
            shown[case, : min(top, len(order))] = order[:top]
            found = np.flatnonzero(order == target)
            ranks[case] = found[0] + 1 if target >= 0 else np.inf
        if progress is not None:
            progress(end, len(held))
    return Judged(ranks, held.offsets, shown)


def _batches(n: int, n_items: int) -> Iterator[tuple[int, int]]:
    step = max(1, CELLS // max(n_items, 1))
    for start in range(0, n, step):
        yield start, min(start + step, n)


def _of_rows(rows: NDArray[np.int64], offsets: NDArray[np.int64], as_of: int) -> Histories:
    """Histories without times of their own: the newest a millisecond before `as_of`, the one before two, and so on."""
    lengths = np.diff(offsets)
    ahead = np.repeat(offsets[1:], lengths) - np.arange(len(rows))
    ones = np.ones(len(rows), np.float32)
    return Histories(rows.astype(np.int32), ones, as_of - ahead, offsets, np.full(len(lengths), as_of, np.int64))


def _finite(scores: Scores, start: int) -> Scores:
    """The scores, as the judge's own to write into."""
    if not np.isfinite(scores).all():
        row = start + int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise MantaError(f"the family diverged: found NaN or infinity among the scores of case {row}, wanted numbers")
    return scores if scores.flags.writeable else scores.copy()


def _first(scores: Scores, top: int, luck: np.random.Generator) -> NDArray[np.int32]:
    """int32 (B, min(top, n_items)): the best items of each row, best first, -1 behind the last that may be shown.

    Among equal scores the order is random, also of those that still fit in at the end.
    """
    top = min(top, scores.shape[1])
    values, rows = torch.topk(torch.from_numpy(scores), min(top + 1, scores.shape[1]))  # a third of argpartition's time
    found, best = values.numpy()[:, :top], rows.numpy()[:, :top]
    if values.shape[1] > top:  # where more items share the last score than fit in, who of them does is drawn
        last, next_one = values.numpy()[:, top - 1], values.numpy()[:, top]
        for row in np.flatnonzero((last == next_one) & np.isfinite(last)).tolist():
            equal, above = np.flatnonzero(scores[row] == last[row]), int((found[row] > last[row]).sum())
            best[row, above:] = equal[luck.choice(len(equal), top - above, replace=False, shuffle=False)]
    order = np.lexsort((luck.random(found.shape), -found), axis=1)
    lists = np.take_along_axis(best, order, axis=1)
    hidden = np.isneginf(np.take_along_axis(found, order, axis=1))
    listed: NDArray[np.int32] = np.where(hidden, -1, lists).astype(np.int32)
    return listed


def _places(lists: NDArray[np.int32], owner: NDArray[np.int64], targets: NDArray[np.int64]) -> Ranks:
    """float64 (T,): where each target stands in its owner's list, from 1; infinite: not there."""
    places = np.full(len(targets), np.inf)
    for first in range(0, len(targets), 100_000):
        some = slice(first, first + 100_000)
        hits = (lists[owner[some]] == targets[some, None]) & (targets[some, None] >= 0)
        found = hits.any(axis=1)
        places[some][found] = hits[found].argmax(axis=1) + 1.0
    return places
