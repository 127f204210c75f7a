"""Two towers in torch: one makes a vector of the recent history, the other of the item."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor, nn

from app.models import together, warm
from app.models.adam import AdamW, warm_then_cosine
from app.models.candidate import Progress, StopFitting
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_table import ItemTable, next_item_loss, table_of, training_device
from app.models.sequences import Sequences, newest_first, shuffled_batches
from app.models.storage import FamilyParams, checked, load_model_files, save_model
from app.models.torch_arrays import arrays_of, load_arrays

_SHAPE = ("n_factors", "history", "n_hidden")  # what must be as it was for a fit to begin there


class TwoTowerParams(FamilyParams):
    """Parameters of `two_tower`."""

    n_factors: int = Field(64, ge=4, le=512, description="Dimensions of both towers' vectors.")
    history: int = Field(30, ge=1, le=500, description="Newest events that the user tower looks at.")
    n_hidden: int = Field(128, ge=4, le=2048, description="Width of the user tower's hidden layer.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of history entries and hidden units dropped in fitting.")
    n_negatives: int = Field(1024, ge=0, description="Sampled negatives shared by a batch; 0: all items.")
    lr: float = Field(0.0015, gt=0, le=1, description="Adam's step size at its peak.")
    l2: float = Field(0.01, ge=0, description="Weight decay.")
    batch: int = Field(512, ge=8, description="Events a step learns from.")
    iterations: int = Field(5, ge=1, le=1000, description="Passes over the events.")
    warm_start: bool = Field(True, description="Whether item vectors start from a short iALS fit.")
    content: bool = Field(True, description="Whether item vectors see the items' columns.")


class UserTower(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Mean of the history's item vectors, weighted by place (learned), plus a two-layer correction of it."""

    def __init__(self, params: TwoTowerParams) -> None:
        super().__init__()
        self.place = nn.Parameter(-torch.arange(params.history) / 8.0)
        self.scale = nn.Parameter(torch.tensor(16.0))
        self.inner = nn.Linear(params.n_factors, params.n_hidden)
        self.outer = nn.Linear(params.n_hidden, params.n_factors)
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, entries: Tensor, known: Tensor) -> Tensor:
        """entries float32 (B, L, d) newest first, known bool (B, L), at least one a row -> float32 (B, d)."""
        weights = torch.softmax(self.place.masked_fill(~known, float("-inf")), dim=1)
        weights = self.dropout(weights)
        mean = torch.einsum("bl,bld->bd", weights, entries)
        hidden: Tensor = self.scale * (mean + self.outer(self.dropout(torch.relu(self.inner(mean)))))
        return hidden


class TwoTower:
    """score = user(history) · item + bias, learned by (sampled) softmax over next events.

    The user tower sees only the history's items, so unseen users are folded in by the same pass; the item tower adds a
    projection of the item's columns to a vector of its own. The bias is the last dimension of both sides.
    Searched: n_factors 32-96; history 5-50; dropout 0-0.5; lr 0.0005-0.005, log; l2 0.0001-0.1, log; iterations 3-10.
    Papers: Covington et al., "Deep neural networks for YouTube recommendations", RecSys 2016; Yi et al.,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019.
    """

    family: ClassVar[str] = "two_tower"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, TwoTowerParams)
        self.n_items = 0
        self._before: tuple[Self, NDArray[np.int64]] | None = None
        with torch.random.fork_rng():
            self._user = UserTower(self.params)
        self._table = torch.zeros(1, self.params.n_factors)  # (n_items + 1, d), padding last
        self._vectors = np.zeros((0, self.params.n_factors + 1), np.float32)

    def begin_at(self, before: Self, rows: NDArray[np.int64]) -> Self:
        """As `app.models.warm.WarmModel` has it: at all weights."""
        found, wanted = ({name: getattr(model.params, name) for name in _SHAPE} for model in (before, self))
        warm.same_sizes(self.family, found, wanted)
        self._before = before, rows
        return self

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        with torch.random.fork_rng(), suppress(StopFitting):
            torch.manual_seed(seed)
            params = self.params
            before, self._before = self._before, None
            drawn = params.warm_start and before is None
            items = table_of(data, catalogue, params.n_factors, warm_start=drawn, content=params.content, seed=seed)
            self._user, self._passes = UserTower(params), params.iterations
            if before is not None:
                model, rows = before
                items.begin_at(model._vectors[:, :-1], model._vectors[:, -1], rows)
                self._user.load_state_dict(model._user.state_dict())
                self._passes = warm.passes_of(params.iterations)
            self._fit(data, items.to(training_device()), seed, progress)
        return self

    def _fit(self, data: Interactions, items: ItemTable, seed: int, progress: Progress | None) -> None:
        params, rng, device = self.params, np.random.default_rng(seed), training_device()
        self.n_items = data.n_items
        sequences = Sequences.of(data)
        targets = sequences.targets
        self._user.to(device)
        learned = [*items.parameters(), *self._user.parameters()]
        steps = self._passes * -(-len(targets) // params.batch)
        optimizer = AdamW(learned, lr=params.lr, l2=params.l2, schedule=warm_then_cosine(steps, 0.1))
        self._take(items)
        together.begin(learned, seed)
        for iteration in range(self._passes):
            self._user.train()
            for batch in shuffled_batches(len(targets), params.batch, rng):
                some = together.mine(targets[batch])
                optimizer.zero_grad()
                if len(some):
                    rows = torch.from_numpy(sequences.before(some, params.history, data.n_items)).to(device)
                    known = rows < data.n_items
                    read = items.reader(rows.numel())
                    entries = read(rows.clamp(max=data.n_items - 1)) * known[:, :, None]
                    hidden = self._user(entries, known)
                    wanted = torch.from_numpy(sequences.items[some]).to(device)
                    loss = next_item_loss(items, read, hidden, wanted, params.n_negatives)
                    (loss * (len(some) / len(batch))).backward()
                together.sum_gradients(learned)
                optimizer.step()
            self._take(items)
            if progress is not None:
                progress(iteration + 1, self)

    def _take(self, items: ItemTable) -> None:
        """Makes the model answer with the weights as they stand."""
        self._user.eval()
        with torch.inference_mode():
            vectors = items.vectors().cpu()
            biased = torch.cat([vectors, items.bias.cpu()[:, None]], dim=1)
        self._set_vectors(biased.numpy().copy())

    def _set_vectors(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self.n_items = len(vectors)
        table = torch.from_numpy(vectors[:, :-1])
        self._table = torch.cat([table, torch.zeros(1, table.shape[1])])

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d + 1): the user vector and a 1 for the bias; zeros for a history without a known item."""
        rows = newest_first(histories, self.n_items, self.params.history)
        empty = rows[:, 0] == self.n_items
        known = rows < self.n_items
        known[:, 0] = True
        device = self._user.place.device
        with torch.inference_mode():
            entries = self._table[torch.from_numpy(rows)].to(device)
            hidden = self._user(entries, torch.from_numpy(known).to(device)).cpu().numpy()
        vectors = np.concatenate([hidden, np.ones((len(rows), 1), np.float32)], axis=1)
        vectors[empty] = 0.0
        return vectors

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

    def save(self, folder: Path) -> None:
        arrays = {"vectors": self._vectors, **arrays_of(self._user, "user.")}
        save_model(folder, self.family, self.params, arrays, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, TwoTowerParams)
        model = cls(params)
        load_arrays(model._user, arrays, "user.")
        model._user.eval()
        model._set_vectors(arrays["vectors"])
        return model
