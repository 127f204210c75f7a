"""item2vec: items that stand near each other in users' sequences get near vectors (skip-gram, negative sampling)."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import Parameter, functional

from app.errors import MantaError
from app.models.adam import AdamW, warm_then_cosine
from app.models.candidate import Progress, StopFitting
from app.models.history_decay import HistoryDecay, decayed_weights, history_matrix
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_table import training_device
from app.models.sequences import Sequences
from app.models.storage import checked, load_model_files, save_model

SHARED = 256  # negatives drawn for a whole batch of pairs, in place of a few for each
NEVER = -20.0  # the bias of an item without an event: below any other
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


class Item2VecParams(HistoryDecay):
    """Parameters of `item2vec`."""

    n_factors: int = Field(64, ge=2, le=512, description="Dimensions of the item vectors.")
    window: int = Field(5, ge=1, le=50, description="Items at most this many events apart are neighbours.")
    negatives: float = Field(10.0, gt=0, description="What the negatives of a pair count together, the pair itself: 1.")
    negative_power: float = Field(
        0.5, ge=-1, le=1, description="Negatives are drawn by the items' frequency to this power."
    )
    answer: Literal["outer", "inner"] = Field(
        "outer",
        description="outer: items likely beside the history's, as was learned; inner: items whose neighbours are alike "
        "(the paper's cosine), whatever their popularity.",
    )
    subsample: float = Field(
        0.001, ge=0, le=1, description="An event of an item with share f is kept with sqrt(subsample / f); 0: always."
    )
    lr: float = Field(0.01, gt=0, le=1, description="Adam's step size at its peak.")
    batch: int = Field(1024, ge=1, description="Pairs that a step learns from.")
    iterations: int = Field(5, ge=1, le=1000, description="Passes over the events.")
    memory_limit_bytes: int = Field(8_000_000_000, gt=0, description="Fitting is refused when it would need more.")


class Item2Vec:
    """log s(u_i · v_j + b_j) + negatives × mean log s(-u_i · v_n - b_n) over neighbours i, j, s the logistic function.

    A user is the mean of the history's vectors u, each decayed by place and age. Scores are how likely neighbours are:
    user · v_j + b_j + negative_power log(frequency of j), the last two in the last dimension; with `answer: inner` the
    mean of unit vectors times the unit vector u_j.
    Searched: n_factors 32-128; window 2-10; negative_power -0.5-1; iterations 3-15; place_tau 1-20, log.
    Papers: Barkan and Koenigstein, "Item2vec: neural item embedding for collaborative filtering", MLSP 2016;
    Caselles-Dupré et al., "Word2vec applied to recommendation: hyperparameters matter", RecSys 2018.
    """

    family: ClassVar[str] = "item2vec"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, Item2VecParams)
        self.n_items = 0
        self._inner = np.zeros((0, self.params.n_factors), np.float32)
        self._vectors = np.zeros((0, self.params.n_factors + 1), np.float32)

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: it would need more than `memory_limit_bytes` (nothing was allocated), or the loss diverged.
        """
        del catalogue
        params = self.params
        needed = 4 * data.n_items * params.n_factors * 9 + len(data) * (56 + 32 * params.window)
        if needed > params.memory_limit_bytes:
            raise MantaError(
                f"item2vec: {len(data)} events and {data.n_items} items need {needed / 1e9:.1f} GB, "
                f"wanted at most memory_limit_bytes = {params.memory_limit_bytes / 1e9:.1f} GB"
            )
        with torch.random.fork_rng(), suppress(StopFitting):
            torch.manual_seed(seed)
            self._fit(data, np.random.default_rng(seed), progress)
        return self

    def _fit(self, data: Interactions, rng: np.random.Generator, progress: Progress | None) -> None:
        params, device = self.params, training_device()
        sequences = Sequences.of(data)
        counts = np.bincount(data.items, minlength=data.n_items)
        likely = np.where(counts > 0, np.maximum(counts, 1) ** params.negative_power, 0.0)
        ends = torch.from_numpy(np.cumsum(likely / max(likely.sum(), 1e-300))).to(device)
        inner = Parameter((torch.randn(data.n_items, params.n_factors) * 0.1).to(device))
        outer = Parameter(torch.zeros(data.n_items, params.n_factors + 1, device=device))  # the bias last
        optimizer: AdamW | None = None
        self._take(inner, outer, counts)
        for iteration in range(params.iterations):
            centres, others = neighbours(sequences, counts, params, rng)
            if optimizer is None:
                steps = params.iterations * -(-len(centres) // params.batch)
                optimizer = AdamW([inner, outer], lr=params.lr, schedule=warm_then_cosine(steps))
            order, total = rng.permutation(len(centres)), torch.zeros((), device=device)
            for start in range(0, len(order), params.batch):
                some = order[start : start + params.batch]
                luck = torch.rand(SHARED, dtype=torch.float64, device=device)
                drawn = torch.searchsorted(ends, luck).clamp(max=data.n_items - 1)
                centre, other = (torch.from_numpy(rows[some]).to(device) for rows in (centres, others))
                loss = _loss(inner, outer, centre, other, drawn, params.negatives)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            if not torch.isfinite(total):
                raise MantaError(f"item2vec: found a loss of {float(total)} in pass {iteration + 1}, wanted a number")
            self._take(inner, outer, counts)
            if progress is not None:
                progress(iteration + 1, self)

    def _take(self, inner: Tensor, outer: Tensor, counts: NDArray[np.int64]) -> None:
        """Makes the model answer with the vectors as they stand; an item without an event says and gets nothing."""
        told, never = inner.detach().cpu().numpy().copy(), counts == 0
        if self.params.answer == "inner":
            told /= np.maximum(np.linalg.norm(told, axis=1, keepdims=True), 1e-30)
            vectors = np.concatenate([told, np.zeros((len(told), 1), np.float32)], axis=1)
        else:
            vectors = outer.detach().cpu().numpy().copy()
            vectors[:, -1] += self.params.negative_power * np.log(np.maximum(counts, 1))  # frequent as a negative, too
        told[never], vectors[never] = 0.0, 0.0
        vectors[never, -1] = NEVER
        self._inner, self._vectors, self.n_items = told, vectors, len(vectors)

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d + 1): the weighted mean of known entries' vectors and a 1; zeros for a history without one."""
        weights = decayed_weights(histories, self.params, self.n_items)
        total = np.bincount(histories.owner, weights, minlength=len(histories))
        summed = history_matrix(histories, weights, self.n_items) @ self._inner
        vectors = np.empty((len(histories), summed.shape[1] + 1), np.float32)
        vectors[:, :-1] = summed / np.maximum(total, 1e-30)[:, None]
        vectors[:, -1] = total > 0
        return vectors

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

    def save(self, folder: Path) -> None:
        save_model(folder, self.family, self.params, {"inner": self._inner, "vectors": self._vectors}, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, Item2VecParams)
        model = cls(params)
        model._inner, model._vectors = arrays["inner"], arrays["vectors"]
        model.n_items = len(model._vectors)
        return model


def _loss(inner: Tensor, outer: Tensor, centre: Tensor, other: Tensor, drawn: Tensor, negatives: float) -> Tensor:
    """The mean over pairs; rows int64 (P,) of pairs and (S,) of what all are compared with."""
    middle = functional.embedding(centre, inner)
    near, far = functional.embedding(torch.cat([other, drawn]), outer).split([len(other), len(drawn)])
    positive = functional.softplus(-(middle * near[:, :-1]).sum(dim=1) - near[:, -1]).mean()
    loss: Tensor = positive + negatives * functional.softplus(middle @ far[:, :-1].T + far[:, -1]).mean()
    return loss


def neighbours(
    sequences: Sequences, counts: NDArray[np.int64], params: Item2VecParams, rng: np.random.Generator
) -> Pairs:
    """Item rows int64 (P,), (P,) of all neighbours in one pass, both ways round.

    Frequent items are thinned first, which brings the others nearer; each event draws how far its own window goes, so
    that nearer ones count more, as in word2vec.
    """
    n = max(int(counts.sum()), 1)
    kept = np.ones(len(sequences.items), bool)
    if params.subsample > 0:
        share = np.maximum(counts, 1) / n
        kept = rng.random(len(kept)) < np.sqrt(params.subsample / share)[sequences.items]
    items, first = sequences.items[kept], sequences.first[kept]
    reach = rng.integers(1, params.window + 1, len(items))
    pairs = list(_at_distances(items, first, reach, params.window))
    centres, others = (
        np.concatenate([np.zeros(0, np.int64), *rows]) for rows in ([a for a, _ in pairs], [b for _, b in pairs])
    )
    return centres, others


def _at_distances(
    items: NDArray[np.int64], first: NDArray[np.int64], reach: NDArray[np.int64], window: int
) -> Iterator[Pairs]:
    for distance in range(1, window + 1):
        together = first[:-distance] == first[distance:]
        ahead, behind = together & (reach[:-distance] >= distance), together & (reach[distance:] >= distance)
        yield items[:-distance][ahead], items[distance:][ahead]
        yield items[distance:][behind], items[:-distance][behind]
