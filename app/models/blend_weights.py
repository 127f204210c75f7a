"""How much each part of a blend counts, by what the parts say of held-out next items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from app.models.candidate import CandidateModel
from app.models.interactions import Histories, Interactions
from app.models.kinds import kind_of

Scores = NDArray[np.float32]

CELLS = 4_000_000  # scores of one part held at once (16 MB)
BEST = 100  # items of each part that a case is judged among
CUTOFF = 20  # places that count
STEPS = (0.0, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0)  # what a weight is tried times
FIRST = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # what a weight of 0 is tried as, times the largest
ROUNDS = 8
WORTH = 0.001  # a part without which the rest reaches all but this share of the quality is left out

FORMS: tuple[str, ...] = ("standard", "log", "peak")


@dataclass(frozen=True, slots=True)
class Scale:
    """What a part's scores of each history are measured by, float32 (B, 1) each.

    Attributes:
        mean: of the scores of all items.
        spread: their standard deviation; infinite where all are equal.
        top: the largest z = (score - mean) / spread; infinite where all are equal.
    """

    mean: Scores
    spread: Scores
    top: Scores

    @classmethod
    def of(cls, scores: Scores) -> "Scale":
        mean = scores.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.square(scores - mean).mean(axis=1, keepdims=True))
        largest = scores.max(axis=1, keepdims=True, initial=-np.inf)
        equal = spread <= 1e-6 * np.maximum(np.abs(largest), np.abs(mean))
        spread = np.where(equal, np.float32(np.inf), spread)
        return cls(mean, spread, np.where(equal, np.float32(np.inf), (largest - mean) / spread))

    def form(self, name: str, scores: Scores) -> Scores:
        """Scores float32 (B, any) on a scale on which parts can be added.

        `standard` is z, `log` is sign(z) log(1 + |z|), `peak` is exp(z - top), which tells only the first few apart.
        Where all scores are equal, all are 0.
        """
        z: Scores = (scores - self.mean) / self.spread
        if name == "standard":
            return z
        return np.copysign(np.log1p(np.abs(z)), z) if name == "log" else np.exp(z - self.top)


Weights = dict[str, dict[str, float]]  # by part and form, above 0


def blended(parts: Mapping[str, CandidateModel], weights: Weights, histories: Histories) -> Scores:
    """float32 (B, n_items): the weighted sum of the parts' forms."""
    n_items = next(iter(parts.values())).n_items
    total = np.zeros((len(histories), n_items), np.float32)
    step = max(1, CELLS // max(n_items, 1))
    for start in range(0, len(histories), step):
        some = histories.slice(start, min(start + step, len(histories)))
        for name, model in sorted(parts.items()):  # in one order, whatever the order in which they were loaded
            scores = model.score(some)
            scale = Scale.of(scores)
            for form, weight in sorted(weights[name].items()):
                total[start : start + step] += np.float32(weight) * scale.form(form, scores)
    return total


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One event of each of some users apart from the rest.

    Attributes:
        rest: the other events.
        histories: of those users, in the rest.
        targets: int32 (C,), the items held out.
        mask: whether items of a history are no answers: no user has an item twice.
    """

    rest: Interactions
    histories: Histories
    targets: NDArray[np.int32]
    mask: bool


def hold_out(data: Interactions, n_users: int, seed: int) -> HeldOut:
    """One event each of at most n_users users who have others, drawn by seed.

    Of data with validation events it is a user's first of those, and none of them is in the rest; else his last event.
    Of `sets`, whose order says nothing, it is any such event.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(data.users, kind="stable")
    owners = data.users[order]
    counts = np.bincount(owners, minlength=data.n_users)
    last = np.zeros(len(data), bool)
    last[order[np.cumsum(counts)[counts > 0] - 1]] = True
    sets = kind_of(data) == "sets"
    apart = data.validation if data.validation is not None else np.ones(len(data), bool) if sets else last
    others = counts - (np.bincount(data.users[apart], minlength=data.n_users) if data.validation is not None else 1)
    users = np.flatnonzero((np.bincount(data.users[apart], minlength=data.n_users) > 0) & (others > 0))
    users = np.sort(rng.permutation(users)[:n_users])
    may = order[apart[order] & np.isin(owners, users)]  # by user, then in order
    some = rng.permutation(may) if sets else may
    _, first = np.unique(data.users[some], return_index=True)
    held = some[first]
    kept = np.ones(len(data), bool)
    kept[held] = False
    if data.validation is not None:
        kept &= ~data.validation
    rest = replace(data.some(kept), validation=None)
    whole = rest.histories()
    histories = whole.gather(whole.offsets[users], whole.offsets[users + 1], data.times[held])
    pairs = data.users.astype(np.int64) * data.n_items + data.items
    return HeldOut(rest, histories, data.items[held], len(np.unique(pairs)) == len(pairs))


@dataclass(frozen=True, slots=True)
class Cases:
    """What the parts say of the items that matter: float32 (C, U, F), F forms of parts; the target stands first.

    Attributes:
        said: as above.
        real: bool (C, U), false for repeats.
    """

    said: NDArray[np.float32]
    real: NDArray[np.bool_]

    def quality(self, weights: NDArray[np.float64]) -> float:
        """ndcg at CUTOFF; ties count half."""
        return self.quality_of(self.said @ weights.astype(np.float32))

    def quality_of(self, scores: NDArray[np.float32]) -> float:
        mine = scores[:, :1]
        ahead = ((scores > mine) & self.real).sum(axis=1) + 0.5 * (((scores == mine) & self.real).sum(axis=1) - 1)
        return float(np.where(ahead < CUTOFF, 1 / np.log2(2 + ahead), 0.0).mean())


def cases_of(parts: Mapping[str, CandidateModel], held: HeldOut) -> Cases:
    """Each case's target and the best items of each part."""
    n_items = next(iter(parts.values())).n_items
    step = max(1, CELLS // max(n_items, 1))
    best = min(BEST, n_items)
    said, real = [], []
    for start in range(0, len(held.targets), step):
        some = held.histories.slice(start, min(start + step, len(held.targets)))
        asked = [held.targets[start : start + step, None].astype(np.int64)]
        scored: list[Scores] = []
        for model in parts.values():
            scored.append(model.score(some))
            shown = scored[-1].copy()
            if held.mask:
                shown[some.owner, some.items] = -np.inf
            asked.append(torch.topk(torch.from_numpy(shown), best).indices.numpy())
        items = np.concatenate(asked, axis=1)
        forms = [
            scale.form(form, np.take_along_axis(scores, items, axis=1))
            for scores, scale in zip(scored, map(Scale.of, scored), strict=True)
            for form in FORMS
        ]
        said.append(np.stack(forms, axis=2))
        real.append(_first_of_each(items))
    return Cases(np.concatenate(said), np.concatenate(real))


def _first_of_each(items: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (B, U): whether an item has not stood further left in its row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    new = np.ones(items.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty(items.shape, bool)
    np.put_along_axis(first, order, new, axis=1)
    return first


def fit_weights(names: Sequence[str], cases: Cases) -> tuple[Weights, dict[str, float]]:
    """Weights by ascent on one form of one part at a time from the best alone; parts worth nothing are left out.

    Returns:
        the weights, and the quality of each part's best form alone and of the `blend`.
    """
    n_forms = len(FORMS)
    alone = [cases.quality(one) for one in np.eye(len(names) * n_forms)]
    weights = np.zeros(len(alone))
    weights[int(np.argmax(alone))] = 1.0
    weights = _ascend(cases, weights)
    best = cases.quality(weights)
    for part in np.argsort([alone[place * n_forms] for place in range(len(names))]):
        without = weights.copy()
        without[part * n_forms : (part + 1) * n_forms] = 0.0
        if without.any() and cases.quality(without) > (1 - WORTH) * best:
            weights = without
    found = {
        name: {
            form: float(weight)
            for form, weight in zip(FORMS, weights[place * n_forms : (place + 1) * n_forms], strict=True)
            if weight > 0
        }
        for place, name in enumerate(names)
    }
    told = {name: max(alone[place * n_forms : (place + 1) * n_forms]) for place, name in enumerate(names)}
    return {name: forms for name, forms in found.items() if forms}, {**told, "blend": cases.quality(weights)}


def _ascend(cases: Cases, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    quality = cases.quality(weights)
    for _ in range(ROUNDS):
        before = quality
        for place in range(len(weights)):
            mine = cases.said[:, :, place]
            own = weights[place]
            rest = weights.copy()
            rest[place] = 0.0
            others = cases.said @ rest.astype(np.float32)
            tried = [own * step for step in STEPS] if own > 0 else [weights.max() * step for step in FIRST]
            for value in tried:
                if value == 0 and not rest.any():
                    continue
                found = cases.quality_of(others + np.float32(value) * mine)
                if found > quality + 1e-6:
                    quality, weights = found, rest.copy()
                    weights[place] = value
        if quality < before + 1e-5:
            break
    return weights
