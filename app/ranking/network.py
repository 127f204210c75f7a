"""A small cross network (DCN-v2, https://arxiv.org/abs/2008.13535) over standardised features, trained listwise."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.errors import BundleError
from app.models.adam import AdamW, warm_then_cosine
from app.ranking.examples import Examples

LEAST_ROWS = 4  # fewer take another path through BLAS, whose sums differ: a candidate scores the same in any batch
CLIP = 8.0  # standard deviations: what an outlier may count


class NetworkParams(BaseModel):
    """Shape and training of the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cross_layers: int = Field(1, ge=0, le=6, description="Full-rank cross layers.")
    hidden: int = Field(32, ge=4, le=512, description="Width of the two deep layers beside them.")
    dropout: float = Field(0.1, ge=0, lt=0.9, description="On the deep layers.")
    weight_decay: float = Field(1e-3, ge=0, description="AdamW's decoupled decay.")
    learning_rate: float = Field(2e-3, gt=0, description="At its peak; falls as a cosine.")
    candidates: int = Field(64, ge=2, description="Candidates of a case that a step sees, drawn anew each epoch.")
    batch_cases: int = Field(64, ge=1, description="Cases in a step.")
    epochs: int = Field(12, ge=1, description="At most.")
    patience: int = Field(3, ge=1, description="Epochs without a better held-out loss before it stops.")
    held_out: float = Field(0.15, gt=0, lt=0.9, description="Newest share of the cases, for stopping.")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a fit did: per epoch the held-out loss, and of the kept epoch loss and ndcg_at_10 among candidates."""

    losses: list[float]
    best_epoch: int
    held_out_loss: float
    held_out_ndcg_at_10: float
    cases: int


class CrossNetwork(nn.Module):  # type: ignore[misc]
    """(R, F) raw features -> (R,) scores. Standardisation is part of the module, so that every device does the same."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int, cross_layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.cross = nn.ModuleList(nn.Linear(n_features, n_features) for _ in range(cross_layers))
        self.deep = nn.Sequential(
            nn.Linear(n_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.out = nn.Linear(n_features + hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        start = ((features - self.mean) * self.scale).clamp(-CLIP, CLIP)
        crossed = start
        for layer in self.cross:
            crossed = torch.addcmul(crossed, start, layer(crossed))
        # A single output would be a matrix-vector product, whose sums depend on a row's place; two are not.
        weight, bias = self.out.weight.expand(2, -1), self.out.bias.expand(2)
        scores: Tensor = nn.functional.linear(torch.cat([crossed, self.deep(start)], dim=1), weight, bias)
        return scores[:, 0]


class NetworkRanker:
    """The torch ranker behind the `Ranker` Protocol."""

    kind: ClassVar[str] = "network"

    def __init__(self, feature_names: tuple[str, ...], params: NetworkParams | None = None) -> None:
        self.feature_names = tuple(feature_names)
        self.params = params or NetworkParams()
        p = self.params
        self.module = CrossNetwork(len(self.feature_names), p.cross_layers, p.hidden, p.dropout).eval()
        self.device = torch.device("cpu")

    def to(self, device: str) -> Self:
        """Moves the weights; `score` still takes and gives numpy arrays."""
        self.device = torch.device(device)
        self.module = self.module.to(self.device)
        return self

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) in the order of `feature_names` -> float32 (R,), finite."""
        if features.ndim != 2 or features.shape[1] != len(self.feature_names):
            raise ValueError(f"features: found shape {features.shape}, wanted (R, {len(self.feature_names)})")
        count = len(features)
        if count < LEAST_ROWS:
            features = np.concatenate([features, np.zeros((LEAST_ROWS - count, features.shape[1]), np.float32)])
        with torch.inference_mode():
            scores: NDArray[np.float32] = self.module(torch.from_numpy(features).to(self.device)).cpu().numpy()
        return scores[:count]

    def fit(
        self, examples: Examples, *, seed: int = 0, progress: Callable[[int, float], None] | None = None
    ) -> TrainingReport:
        """Trains on the cases whose target is among their candidates, oldest first; the newest share stops it.

        Args:
            progress: called after each epoch with (epoch from 1, held-out loss).

        Raises:
            ValueError: fewer than 10 such cases.
        """
        usable = examples.with_target()
        if len(usable) < 10:
            raise ValueError(f"ranker: found {len(usable)} cases with their target retrieved, wanted at least 10")
        cut = len(usable) - max(1, round(len(usable) * self.params.held_out))
        train, held = usable.slice(0, cut), usable.slice(cut, len(usable))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._train(train, held, np.random.default_rng(seed), progress)

    def _train(
        self,
        train: Examples,
        held: Examples,
        random: np.random.Generator,
        progress: Callable[[int, float], None] | None,
    ) -> TrainingReport:
        p = self.params
        self.module = CrossNetwork(len(self.feature_names), p.cross_layers, p.hidden, p.dropout).to(self.device)
        self.module.mean.copy_(torch.from_numpy(train.features.mean(axis=0)))
        deviation = train.features.std(axis=0)
        self.module.scale.copy_(torch.from_numpy(np.where(deviation > 1e-6, 1.0 / np.maximum(deviation, 1e-6), 0.0)))
        steps = -(-len(train) // p.batch_cases) * p.epochs
        schedule = warm_then_cosine(steps)
        optimiser = AdamW(self.module.parameters(), lr=p.learning_rate, l2=p.weight_decay, schedule=schedule)
        losses: list[float] = []
        best: dict[str, Tensor] = {}
        for epoch in range(p.epochs):
            self._epoch(train, optimiser, random)
            losses.append(self._loss_of(held))
            if progress is not None:
                progress(epoch + 1, losses[-1])
            if losses[-1] <= min(losses):
                best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
            elif len(losses) - 1 - int(np.argmin(losses)) >= p.patience:
                break
        if not np.isfinite(min(losses)):
            raise ValueError(f"ranker: found held-out losses {losses}, wanted finite ones")
        self.module.load_state_dict(best)
        self.module.eval()
        kept = int(np.argmin(losses))
        ndcg = float(ndcg_among_candidates(self.score(held.features), held).mean())
        return TrainingReport(losses, kept + 1, losses[kept], ndcg, len(train) + len(held))

    def _epoch(self, train: Examples, optimiser: AdamW, random: np.random.Generator) -> None:
        self.module.train()
        order = random.permutation(len(train))
        for start in range(0, len(order), self.params.batch_cases):
            batch = train.take(np.sort(order[start : start + self.params.batch_cases]))
            batch = batch.thinned(self.params.candidates, random)
            optimiser.zero_grad()
            loss = self._listwise(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            optimiser.step()

    def _listwise(self, batch: Examples) -> Tensor:
        """Mean over cases of -log softmax(target) over the case's candidates."""
        scores = self.module(torch.from_numpy(batch.features).to(self.device))
        owner = torch.from_numpy(batch.owner).to(self.device)
        n = len(batch)
        largest = torch.full((n,), -torch.inf, device=self.device).scatter_reduce(0, owner, scores.detach(), "amax")
        total = torch.zeros(n, device=self.device).index_add(0, owner, torch.exp(scores - largest[owner]))
        target = torch.from_numpy(batch.offsets[:-1] + batch.targets).to(self.device)
        return (torch.log(total) + largest - scores[target]).mean()

    def _loss_of(self, examples: Examples) -> float:
        self.module.eval()
        with torch.inference_mode():
            return float(self._listwise(examples))

    def save(self, folder: Path) -> None:
        """Writes `network.safetensors` and `ranker.json`."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(tensors, folder / "network.safetensors")
        described = {"kind": self.kind, "features": self.feature_names, "params": self.params.model_dump()}
        (folder / "ranker.json").write_text(json.dumps(described, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; runs no code from it.

        Raises:
            BundleError: weights that do not belong to the described network.
        """
        described = json.loads((folder / "ranker.json").read_text())
        ranker = cls(tuple(described["features"]), NetworkParams.model_validate(described["params"]))
        try:
            ranker.module.load_state_dict(load_file(folder / "network.safetensors"))
        except RuntimeError as error:
            raise BundleError(
                f"{folder}: the weights do not fit the network that ranker.json describes: {error}"
            ) from None
        return ranker


def ndcg_among_candidates(scores: NDArray[np.float32], examples: Examples, k: int = 10) -> NDArray[np.float64]:
    """float64 (cases,): 1 / log2(1 + place of the target among its candidates), 0 beyond k or without a target."""
    n = len(examples)
    has = examples.targets >= 0
    target = np.where(has, examples.offsets[:-1] + np.maximum(examples.targets, 0), 0)
    reference = np.where(has, scores[target] if len(scores) else 0.0, np.inf)
    better = np.bincount(examples.owner, scores > reference[examples.owner], minlength=n)
    return np.where(has & (better < k), 1.0 / np.log2(better + 2.0), 0.0)
