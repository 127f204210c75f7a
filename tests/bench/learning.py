"""Families beside what others offer: iALS and implicit, EASE and LAPACK, SASRec and torch's own encoder, evaluation."""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from app.evaluation.folder import Held
from app.evaluation.judging import histories_of, judge
from app.evaluation.metrics import per_case
from app.models.ease import Ease, EaseParams
from app.models.ials import Ials, IalsParams
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.sasrec import SasRec
from app.models.sasrec_params import SasRecParams
from app.models.sequences import Sequences

FACTORS, PASSES = 64, 8
ROUNDS = 3
LENGTH, BLOCKS, HEADS, NEGATIVES, BATCH_EVENTS = 50, 2, 2, 1024, 3000


def run() -> dict[str, dict[str, float]]:
    """Seconds by the clock, each pair in turns, and their ratios (medians); all thread pools as they come."""
    return {"evaluation": evaluation(), "ials": ials(), "ease": ease(), "sasrec": sasrec()}  # the first for its memory


def ials() -> dict[str, float]:
    """The same objective, factors and passes; quality: a held-out item of each user among 20."""
    data = clusters(users=30_000, items=10_000, n=1_200_000)
    held = np.zeros(len(data), bool)
    held[np.unique(data.users[::-1], return_index=True)[1]] = True
    held = held[::-1]
    rest = data.some(~held)
    targets = np.full(data.n_users, -1)
    targets[data.users[held]] = data.items[held]
    seen = csr_matrix((np.ones(len(rest), np.float32), (rest.users, rest.items)), shape=(data.n_users, data.n_items))
    ours = Ials(IalsParams(n_factors=FACTORS, l2=10.0, alpha=2.0, iterations=PASSES, place_tau=0, frequency=0.0))
    theirs = AlternatingLeastSquares(
        FACTORS, regularization=10.0, alpha=1.0, iterations=PASSES, random_state=0, calculate_training_loss=False
    )

    def fit_theirs() -> None:
        with threadpool_limits(1, user_api="blas"):  # it asks for that itself
            theirs.fit(seen * np.float32(3.0), show_progress=False)

    own, other = in_turns(lambda: ours.fit(rest, catalogue_of(data)), fit_theirs)
    some = np.flatnonzero(targets >= 0)[:5000]
    histories = rest.histories()
    asked = histories.gather(histories.offsets[some], histories.offsets[some + 1], histories.as_of[some])
    found = ours.score(asked)
    found_theirs = theirs.user_factors[some] @ theirs.item_factors.T
    return {
        "seconds": own,
        "implicit_seconds": other,
        "of_implicit": own / other,
        "recall_at_20": recall(found, asked, targets[some]),
        "implicit_recall_at_20": recall(found_theirs, asked, targets[some]),
    }


def ease() -> dict[str, float]:
    """The whole fit, neighbour lists and all, beside one inversion of a matrix of that size."""
    data = clusters(users=20_000, items=6_000, n=600_000)
    model = Ease(EaseParams(neighbourhood=0))
    gram = np.eye(6_000, dtype=np.float32) * 500 + np.random.default_rng(0).random((6_000, 6_000), np.float32)
    own, other = in_turns(lambda: model.fit(data, catalogue_of(data)), lambda: np.linalg.inv(gram))
    return {"seconds": own, "inversion_seconds": other, "of_inversion": own / other}


class _Plain(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """SASRec as one writes it with what torch has: absolute positions, padding, a causal mask, dense Adam."""

    def __init__(self, n_items: int, dims: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, dims, padding_idx=n_items)
        self.places = nn.Embedding(LENGTH, dims)
        layer = nn.TransformerEncoderLayer(dims, HEADS, 4 * dims, 0.2, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, rows: Tensor) -> Tensor:
        told = self.items(rows) + self.places.weight[: rows.shape[1]]
        return self.encoder(told, mask=self.mask[: rows.shape[1], : rows.shape[1]], is_causal=True)


def sasrec(dims: int = 64) -> dict[str, float]:
    """Events learned from per second: one pass, the same width, blocks, heads, length and negatives."""
    data = clusters(users=5_000, items=8_000, n=200_000)
    params = {"n_factors": dims, "blocks": BLOCKS, "heads": HEADS, "history": LENGTH, "n_negatives": NEGATIVES}
    sizes = {"batch_events": BATCH_EVENTS, "dropout": 0.2, "whole_share": 0.0, "warm_start": False, "iterations": 1}
    model = SasRec(SasRecParams.model_validate({**params, **sizes}))
    sequences = Sequences.of(data)
    plain = _Plain(data.n_items, dims)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.001)
    told = int((np.diff(sequences.offsets) - 1).clip(0).sum())

    def pass_of_plain() -> None:
        windows = sequences.windows(LENGTH, np.random.default_rng(0))
        step = max(1, BATCH_EVENTS // LENGTH)
        for start in range(0, len(windows), step):
            rows = torch.from_numpy(_left_padded(sequences, windows[start : start + step], data.n_items))
            known = rows[:, 1:] < data.n_items
            hidden, targets = plain(rows[:, :-1])[known], rows[:, 1:][known]
            drawn = torch.randint(data.n_items, (NEGATIVES,))
            own = (hidden * plain.items(targets)).sum(dim=1, keepdim=True)
            logits = torch.cat([own, hidden @ plain.items(drawn).T], dim=1)
            loss = functional.cross_entropy(logits, torch.zeros(len(targets), dtype=torch.int64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    own, other = in_turns(lambda: model.fit(data, catalogue_of(data)), pass_of_plain)
    return {
        "events_per_second": told / own,
        "plain_events_per_second": told / other,
        "of_plain": other / own,
    }


def _left_padded(sequences: Sequences, windows: NDArray[np.int64], padding: int) -> NDArray[np.int64]:
    """int64 (B, LENGTH + 1): what comes last stands last, as the usual implementations pad."""
    index = windows[:, 1:] - LENGTH - 1 + np.arange(LENGTH + 1)
    return np.where(index >= windows[:, :1], sequences.items[np.maximum(index, 0)], padding)


def evaluation(users: int = 100_000, items: int = 50_000) -> dict[str, float]:
    """Every user's list of 50 of the whole catalogue, by vectors of 64, with all metrics."""
    data = clusters(users=users, items=items, n=20 * users)
    random = np.random.default_rng(1)
    vectors = random.normal(size=(items, FACTORS)).astype(np.float32)

    def score(histories: Histories) -> NDArray[np.float32]:
        matrix = csr_matrix((histories.weights, histories.items, histories.offsets), shape=(len(histories), items))
        return np.asarray(matrix @ vectors) @ vectors.T

    targets = random.integers(0, items, users)
    names = np.arange(users)
    held = Held(users=names, groups=names, targets=targets, offsets=np.arange(users + 1))
    began = time.perf_counter()
    judged = judge(score, held, histories_of(held, data), items, mask=True, top=50, seed=0)
    per_case(judged.ranks, judged.offsets, (5, 10, 20, 50))
    return {
        "seconds": time.perf_counter() - began,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def clusters(users: int, items: int, n: int) -> Interactions:
    """Users who mostly keep to a twentieth of the items, the front ones of it more than the others."""
    random = np.random.default_rng(0)
    owner = random.integers(0, users, n).astype(np.int32)
    group = np.where(random.random(n) < 0.8, owner % 20, random.integers(0, 20, n))
    rows = (group + 20 * ((items // 20) * random.random(n) ** 2).astype(np.int64)).astype(np.int32)
    return Interactions(owner, rows, np.ones(n, np.float32), np.arange(n, dtype=np.int64), users, items)


def catalogue_of(data: Interactions) -> Catalogue:
    return Catalogue.of([str(row) for row in range(data.n_items)])


def recall(scores: NDArray[np.float32], asked: Histories, targets: NDArray[np.int64]) -> float:
    """The share of targets among the first 20 that the history does not hold."""
    scores = scores.copy()
    scores[asked.owner, asked.items] = -np.inf
    best = np.argpartition(-scores, 20, axis=1)[:, :20]
    return float((best == targets[:, None]).any(axis=1).mean())


def in_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, after a first time each that does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for work, seconds in zip((ours, theirs), taken, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                seconds.append(time.perf_counter() - began)
    return float(np.median(taken[0])), float(np.median(taken[1]))
