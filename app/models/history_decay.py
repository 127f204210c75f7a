"""What each entry of a history weighs: recent events count more, by place and by age."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from app.models.interactions import Histories
from app.models.storage import FamilyParams

DAY_MS = 86_400_000.0


class HistoryDecay(FamilyParams):
    """Weight of a history entry: event weight × ((1 - f) exp(-place / place_tau) + f) × 2^(-age / half_life_days).

    f is `place_floor`: what the user always liked, beside what the last few events are about.
    """

    place_tau: float = Field(
        5.0, ge=0, description="Entries j places before the newest weigh exp(-j / place_tau); 0: no decay by place."
    )
    place_floor: float = Field(0.05, ge=0, le=1, description="Weight that decay by place comes down to.")
    half_life_days: float = Field(
        0.0, ge=0, description="Entries this old, counted from the as-of time, weigh half; 0: no decay by age."
    )


def decayed_weights(histories: Histories, decay: HistoryDecay, n_items: int) -> NDArray[np.float32]:
    """float32 (N,), the weight of each entry; 0 for rows that the model does not know (>= n_items)."""
    weights = histories.weights.astype(np.float64)
    if decay.place_tau > 0:
        places = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))
        weights *= (1 - decay.place_floor) * np.exp(places / -decay.place_tau) + decay.place_floor
    if decay.half_life_days > 0:
        age_ms = np.repeat(histories.as_of, histories.lengths) - histories.times
        weights *= np.exp2(np.maximum(age_ms, 0) / (-decay.half_life_days * DAY_MS))
    weights[histories.items >= n_items] = 0.0
    return weights.astype(np.float32)


def history_matrix(histories: Histories, weights: NDArray[np.float32], n_items: int) -> csr_matrix:
    """Sparse float32 (B, n_items): entry weights at their rows, unknown rows left out; repeats add up in products."""
    known = histories.items < n_items
    offsets = histories.offsets
    if not known.all():
        offsets = np.concatenate([[0], np.cumsum(known)])[histories.offsets]
    shape = (len(histories), n_items)
    return csr_matrix((weights[known], histories.items[known], offsets), shape=shape)
