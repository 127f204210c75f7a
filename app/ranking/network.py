"""A small cross network (DCN-v2: cross layers beside an MLP, https://arxiv.org/abs/2008.13535), trained listwise.

Position bias: while it learns, each objective has an additive logit per position at which a row was shown (the shallow
tower of Zhao et al., RecSys 2019); in a softmax over the list that is the examination model, P(click) = P(seen at the
position) × P(relevant). At serving every row counts as shown first, whose logit is 0.
"""

import json
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
from app.ranking.calibration import Calibration
from app.ranking.examples import NEXT, Examples
from app.ranking.held_out import calibrated, report_of, split
from app.ranking.ranker import TrainingReport, checked, plain_score

LEAST_ROWS = 4  # fewer take another path through BLAS, whose sums differ: a candidate scores the same in any batch
CLIP = 8.0  # standard deviations: what an outlier may count
POSITION_PACE = 10.0  # how much faster than a weight a position's logit learns: there are few, and far from 0


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
    held_out: float = Field(0.15, gt=0, lt=0.9, description="Newest share of the cases, for stopping and calibration.")
    positions: int = Field(
        20, ge=0, le=500, description="Positions of shown rows with a logit of their own; 0: the bias is not learned."
    )


class CrossNetwork(nn.Module):  # type: ignore[misc]
    """(R, F) raw features -> (R, O) logits. Standardisation is part of it, so that every device does the same."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int, params: NetworkParams, n_objectives: int = 1) -> None:
        super().__init__()
        hidden = params.hidden
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.cross = nn.ModuleList(nn.Linear(n_features, n_features) for _ in range(params.cross_layers))
        self.deep = nn.Sequential(
            nn.Linear(n_features, hidden), nn.ReLU(), nn.Dropout(params.dropout), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.out = nn.Linear(n_features + hidden, n_objectives)

    def forward(self, features: Tensor) -> Tensor:
        start = ((features - self.mean) * self.scale).clamp(-CLIP, CLIP)
        crossed = start
        for layer in self.cross:
            crossed = torch.addcmul(crossed, start, layer(crossed))
        # A single output would be a matrix-vector product, whose sums depend on a row's place; two are not.
        n, width = self.out.out_features, max(2, self.out.out_features)
        weight, bias = self.out.weight.expand(width, -1), self.out.bias.expand(width)
        logits: Tensor = nn.functional.linear(torch.cat([crossed, self.deep(start)], dim=1), weight, bias)
        return logits[:, :n]


class NetworkRanker:
    """The torch ranker behind the `Ranker` Protocol.

    Attributes:
        calibrations: one an objective; none as long as it has not learned, or was written before there were any.
        position_logits: float32 (P, O), of position 1 (0) to P, where it has learned from shown rows; else (0, O).
    """

    kind: ClassVar[str] = "network"

    def __init__(
        self,
        feature_names: tuple[str, ...],
        params: NetworkParams | None = None,
        objectives: tuple[str, ...] = (NEXT,),
    ) -> None:
        self.feature_names = tuple(feature_names)
        self.params = params or NetworkParams()
        self.device = torch.device("cpu")
        self._begin(tuple(objectives))

    def _begin(self, objectives: tuple[str, ...]) -> None:
        self.objectives = objectives
        self.module = CrossNetwork(len(self.feature_names), self.params, len(objectives)).eval().to(self.device)
        self.calibrations: tuple[Calibration, ...] = ()
        self.position_logits = np.zeros((0, len(objectives)), np.float32)

    def to(self, device: str) -> Self:
        """Moves the weights; `score` still takes and gives numpy arrays."""
        self.device = torch.device(device)
        self.module = self.module.to(self.device)
        return self

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) in the order of `feature_names` -> float32 (R,), finite."""
        if not self.calibrations:
            return plain_score(self.logits(features), self.objectives)
        if NEXT in self.objectives:  # the others cost time
            place = self.objectives.index(NEXT)
            return self.calibrations[place](self.logits(features)[:, place])
        return plain_score(self.probabilities(features), self.objectives)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R, O): of each objective; of a ranker without calibrations, by the sigmoid."""
        logits = self.logits(features)
        plain = Calibration(slope=1.0, intercept=0.0)
        calibrations = self.calibrations or (plain,) * len(self.objectives)
        columns = [calibration(column) for calibration, column in zip(calibrations, logits.T, strict=True)]
        return np.stack(columns, axis=1)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R, O), what the network gives for rows in the first place."""
        checked(features, self.feature_names)
        count = len(features)
        if count < LEAST_ROWS:
            features = np.concatenate([features, np.zeros((LEAST_ROWS - count, features.shape[1]), np.float32)])
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.module(torch.from_numpy(features).to(self.device)).cpu().numpy()
        return logits[:count]

    def fit(self, examples: Examples, *, seed: int = 0) -> TrainingReport:
        """As `TrainableRanker.fit`; also learns what it predicts, and the bias of the positions, from the examples."""
        train, held, held_all = split(examples, self.params.held_out)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._begin(examples.objectives)
            losses = self._train(train, held, np.random.default_rng(seed))
        self.calibrations, errors = calibrated(self._as_shown(held_all), held_all)
        best = int(np.argmin(losses))
        return report_of(losses, best, self._as_shown(held)[:, 0], held, errors, len(train) + len(held))

    def _as_shown(self, examples: Examples) -> NDArray[np.float32]:
        """float32 (R, O): logits of rows where they were shown."""
        logits = self.logits(examples.features)
        if not len(self.position_logits):
            return logits
        known = np.concatenate([np.zeros((1, logits.shape[1]), np.float32), self.position_logits])
        found: NDArray[np.float32] = logits + known[np.minimum(examples.positions, len(known) - 1)]
        return found

    def _train(self, train: Examples, held: Examples, random: np.random.Generator) -> list[float]:
        p = self.params
        self.module.mean.copy_(torch.from_numpy(train.features.mean(axis=0)))
        deviation = train.features.std(axis=0)
        self.module.scale.copy_(torch.from_numpy(np.where(deviation > 1e-6, 1.0 / np.maximum(deviation, 1e-6), 0.0)))
        shown = min(p.positions, int(train.positions.max(initial=0)))
        places = nn.Parameter(torch.zeros((max(shown - 1, 0), len(self.objectives)), device=self.device))
        learned = [*self.module.parameters(), places]
        steps = -(-len(train) // p.batch_cases) * p.epochs
        optimiser = AdamW(learned, lr=p.learning_rate, l2=p.weight_decay, schedule=warm_then_cosine(steps))
        losses: list[float] = []
        best: dict[str, Tensor] = {}
        for _ in range(p.epochs):
            self.module.train()
            order = random.permutation(len(train))
            for start in range(0, len(order), p.batch_cases):
                batch = train.take(np.sort(order[start : start + p.batch_cases])).thinned(p.candidates, random)
                optimiser.zero_grad()
                self._listwise(batch, places).backward()
                nn.utils.clip_grad_norm_(learned, 1.0)
                optimiser.step()
            self.module.eval()
            with torch.inference_mode():
                losses.append(float(self._listwise(held, places)))
            if losses[-1] <= min(losses):
                best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
                self.position_logits = _position_logits(places).detach().cpu().numpy()[1:].copy()
            elif len(losses) - 1 - int(np.argmin(losses)) >= p.patience:
                break
        if not np.isfinite(min(losses)):
            raise ValueError(f"ranker: found held-out losses {losses}, wanted finite ones")
        self.module.load_state_dict(best)
        if not shown:
            self.position_logits = self.position_logits[:0]
        return losses

    def _listwise(self, batch: Examples, places: nn.Parameter) -> Tensor:
        """Mean over objectives and the cases that they answered of -log softmax(answered rows) over a case's rows."""
        logits = self.module(torch.from_numpy(np.ascontiguousarray(batch.features)).to(self.device))
        owner = torch.from_numpy(batch.owner).to(self.device)
        labels = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(self.device)
        if len(places) and batch.positions.any():
            known = _position_logits(places)
            logits = logits + known[torch.from_numpy(np.minimum(batch.positions, len(known) - 1)).to(self.device)]
        shape = (len(batch), labels.shape[1])
        spread = owner[:, None].expand(-1, shape[1])
        largest = torch.full(shape, -torch.inf, device=self.device).scatter_reduce(0, spread, logits.detach(), "amax")
        total = torch.zeros(shape, device=self.device).index_add(0, owner, torch.exp(logits - largest[owner]))
        answered = torch.zeros(shape, device=self.device).index_add(0, owner, labels)
        share = labels / answered.clamp(min=1e-9)[owner]
        off = torch.log(total)[owner] + largest[owner] - logits
        cases = (answered > 0).sum(dim=0).clamp(min=1)
        return ((share * off).sum(dim=0) / cases).mean()

    def save(self, folder: Path) -> None:
        """Writes `network.safetensors` and `ranker.json`."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(tensors, folder / "network.safetensors")
        described = {
            "kind": self.kind,
            "features": self.feature_names,
            "params": self.params.model_dump(),
            "objectives": self.objectives,
            "calibrations": [calibration.model_dump() for calibration in self.calibrations],
            "position_logits": self.position_logits.tolist(),
        }
        (folder / "ranker.json").write_text(json.dumps(described, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; runs no code from it.

        Raises:
            BundleError: weights that do not belong to the described network.
        """
        described = json.loads((folder / "ranker.json").read_text())
        objectives = tuple(described.get("objectives", (NEXT,)))
        ranker = cls(tuple(described["features"]), NetworkParams.model_validate(described["params"]), objectives)
        ranker.calibrations = tuple(Calibration.model_validate(one) for one in described.get("calibrations", ()))
        if len(ranker.calibrations) not in (0, len(objectives)):
            raise BundleError(f"{folder}: found {len(ranker.calibrations)} calibrations, wanted {len(objectives)}")
        logits = np.array(described.get("position_logits", ()), np.float32)
        ranker.position_logits = logits.reshape(-1, len(objectives))
        try:
            ranker.module.load_state_dict(load_file(folder / "network.safetensors"))
        except RuntimeError as error:
            raise BundleError(
                f"{folder}: the weights do not fit the network that ranker.json describes: {error}"
            ) from None
        return ranker


def _position_logits(places: nn.Parameter) -> Tensor:
    """(P + 1, O): of rows that were not shown (0), of position 1 (0), 2, ... P and beyond."""
    return torch.cat([places.new_zeros(2, places.shape[1]), POSITION_PACE * places])
