"""Beyond accuracy: what lists show of the catalogue, how popular, how surprising and how varied it is."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from app.models.interactions import Interactions

DIVERSITY_CASES = 2000  # lists whose pairs are compared: evenly spread over the cases


def beyond_accuracy(shown: NDArray[np.int32], fitted: Interactions, k: int) -> dict[str, float]:
    """Means over cases (`coverage` and `gini`: over all lists together) of the first k items.

    - `coverage_at_k`: share of the catalogue that stands in any list.
    - `gini_at_k`: how unequally the items are shown: 0 all alike, 1 always the same ones.
    - `popularity_at_k`: mean events of a shown item, over the mean events of an event's item: above 1, lists are more
      popular than what users do (popularity bias; Abdollahpouri et al., "The unfairness of popularity bias", 2019).
    - `novelty_at_k`: mean of -log2 of the share of users who have the item (Vargas and Castells, RecSys 2011), bits.
    - `diversity_at_k`: mean of 1 - cosine of two items' users over the pairs of a list (intra-list diversity of the
      same authors, with the fitted rows as what tells items apart), over at most `DIVERSITY_CASES` lists.

    Args:
        shown: int32 (C, >= k), catalogue rows, -1 where a list is shorter.
        fitted: what the family was fitted on.
        k: length of the lists.
    """
    lists = shown[:, :k]
    there = lists >= 0
    counts = np.bincount(lists[there], minlength=fitted.n_items)
    events = np.bincount(fitted.items, minlength=fitted.n_items).astype(np.float64)
    seen = csr_matrix(
        (np.ones(len(fitted), np.float32), (fitted.users, fitted.items)), (fitted.n_users, fitted.n_items)
    )
    seen.data[:] = 1.0  # an item that a user repeats is his once
    owners = np.asarray(seen.sum(axis=0), np.float64).ravel()
    surprise = -np.log2((owners + 1) / (fitted.n_users + 1))
    usual = float(events @ events / events.sum()) if len(fitted) else 1.0
    return {
        f"coverage_at_{k}": float((counts > 0).mean()),
        f"gini_at_{k}": _gini(counts),
        f"popularity_at_{k}": _mean(events[lists] / usual, there),
        f"novelty_at_{k}": _mean(surprise[lists], there),
        f"diversity_at_{k}": _diversity(lists[:: -(-len(lists) // DIVERSITY_CASES)], seen),
    }


def _mean(values: NDArray[np.float64], there: NDArray[np.bool_]) -> float:
    """The mean over lists of each list's mean; lists without an item do not count."""
    lengths = there.sum(axis=1)
    sums = np.where(there, values, 0.0).sum(axis=1)
    return float((sums[lengths > 0] / lengths[lengths > 0]).mean()) if lengths.any() else 0.0


def _gini(counts: NDArray[np.int64]) -> float:
    if counts.sum() == 0:
        return 0.0
    ordered, n = np.sort(counts), len(counts)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def _diversity(lists: NDArray[np.int32], seen: csr_matrix) -> float:
    """From sums: the cosines of all pairs of a list add up to (|sum of its unit vectors|^2 - their number) / 2."""
    lengths = (lists >= 0).sum(axis=1)
    squares = np.asarray(seen.multiply(seen).sum(axis=0)).ravel()
    units = (seen @ diags(1 / np.sqrt(np.maximum(squares, 1)))).T.tocsr()  # items × users, rows of length 1 or 0
    alone = (squares > 0).astype(np.float64)
    owner, place = np.nonzero(lists >= 0)
    items = lists[owner, place]
    chosen = csr_matrix((np.ones(len(items), np.float32), (owner, items)), (len(lists), len(squares)))
    sums = chosen @ units
    whole = np.asarray(sums.multiply(sums).sum(axis=1)).ravel()
    similar = (whole - np.bincount(owner, alone[items], len(lists))) / 2
    pairs = lengths * (lengths - 1) / 2
    return float((1 - similar[pairs > 0] / pairs[pairs > 0]).mean()) if (pairs > 0).any() else 0.0
