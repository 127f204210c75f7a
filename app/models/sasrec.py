"""SASRec: a small causal transformer over the history, with a softmax over (nearly) all items."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from app.models.adam import AdamW, warm_then_cosine
from app.models.candidate import Progress, StopFitting
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_table import ItemTable, next_item_loss, table_of, training_device
from app.models.sasrec_network import Encoder
from app.models.sequences import Sequences, oldest_first
from app.models.storage import FamilyParams, checked, load_model_files, save_model
from app.models.torch_arrays import arrays_of, load_arrays

BATCH = 256  # histories encoded at once: bounds the attention matrices


class SasRecParams(FamilyParams):
    """Parameters of `sasrec`."""

    n_factors: int = Field(64, ge=4, le=512, description="Dimensions of items and hidden states.")
    blocks: int = Field(1, ge=1, le=8, description="Transformer blocks.")
    heads: int = Field(2, ge=1, le=8, description="Attention heads; divides n_factors.")
    history: int = Field(50, ge=2, le=1000, description="Newest events that the model looks at.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of inputs, attention and layers in fitting.")
    n_negatives: int = Field(1024, ge=0, description="Sampled negatives shared by a batch; 0: all items.")
    lr: float = Field(0.002, gt=0, le=1, description="Adam's step size at its peak.")
    l2: float = Field(0.05, ge=0, description="Weight decay.")
    batch: int = Field(16, ge=1, description="Windows of `history` events a step learns from.")
    iterations: int = Field(6, ge=1, le=1000, description="Passes over the events.")
    warm_start: bool = Field(True, description="Whether item vectors start from a short iALS fit.")
    content: bool = Field(True, description="Whether item vectors see the items' columns.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_factors % self.heads:
            raise ValueError(f"heads: found {self.heads}, wanted a divisor of n_factors = {self.n_factors}")
        return self


class SasRec:
    """score = hidden(history) · item + bias, learned by a (sampled) softmax over the next event at every place.

    Differs from the paper where later work found better: softmax with many negatives in place of one, pre-norm, a
    learned attention bias by distance in place of absolute positions, item vectors that see the items' columns, and a
    decayed mean of the history that the transformer corrects.
    The bias is the last dimension of both sides.
    Searched: n_factors 32-64; blocks 1-2; history 20-50; dropout 0.1-0.5; lr 0.0005-0.005, log; iterations 4-15.
    Papers: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018; Klenitskiy and Vasilev, "Turning
    dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023.
    """

    family: ClassVar[str] = "sasrec"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self.params = checked(params, SasRecParams)
        self.n_items = 0
        self._encoder = self._new_encoder()
        self._set_vectors(np.zeros((0, self.params.n_factors + 1), np.float32))

    def _new_encoder(self) -> Encoder:
        with torch.random.fork_rng():
            params = self.params
            encoder = Encoder(params.n_factors, params.blocks, params.heads, params.history, params.dropout)
        encoder.eval()
        return encoder

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        with torch.random.fork_rng(), suppress(StopFitting):
            torch.manual_seed(seed)
            params = self.params
            items = table_of(
                data, catalogue, params.n_factors, warm_start=params.warm_start, content=params.content, seed=seed
            )
            self._fit(data, items.to(training_device()), seed, progress)
        return self

    def _fit(self, data: Interactions, items: ItemTable, seed: int, progress: Progress | None) -> None:
        params, rng, device = self.params, np.random.default_rng(seed), training_device()
        sequences = Sequences.of(data)
        self._encoder = self._new_encoder().to(device)
        learned = [*items.parameters(), *self._encoder.parameters()]
        self._take(items)
        per_pass = len(data) // (params.history * params.batch) + 1
        schedule = warm_then_cosine(params.iterations * per_pass)
        optimizer = AdamW(learned, lr=params.lr, l2=params.l2, schedule=schedule)
        for iteration in range(params.iterations):
            self._encoder.train()
            windows = sequences.windows(params.history, rng)
            by_length = windows[np.argsort(windows[:, 1] - windows[:, 0] + rng.random(len(windows)), kind="stable")]
            cuts = [by_length[start : start + params.batch] for start in range(0, len(by_length), params.batch)]
            for place in rng.permutation(len(cuts)):
                rows = torch.from_numpy(sequences.padded(cuts[place], data.n_items)).to(device)
                told, wanted = rows[:, :-1], rows[:, 1:]
                known = wanted < data.n_items
                read = items.reader(rows.numel())
                hidden = self._encoder(read(told.clamp(max=data.n_items - 1)))
                loss = next_item_loss(items, read, hidden[known], wanted[known], params.n_negatives)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self._take(items)
            if progress is not None:
                progress(iteration + 1, self)

    def _take(self, items: ItemTable) -> None:
        """Makes the model answer with the weights as they stand."""
        self._encoder.eval()
        with torch.inference_mode():
            biased = torch.cat([items.vectors(), items.bias[:, None]], dim=1)
        self._set_vectors(biased.cpu().numpy().copy())

    def _set_vectors(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self.n_items = len(vectors)
        table = torch.from_numpy(vectors[:, :-1])
        self._table = torch.cat([table, torch.zeros(1, table.shape[1])])  # padding last

    def item_vectors(self) -> NDArray[np.float32]:
        return self._vectors

    def encode(self, histories: Histories) -> NDArray[np.float32]:
        """float32 (B, d + 1): the last hidden state and a 1 for the bias; zeros for a history without a known item."""
        rows, held = oldest_first(histories, self.n_items, self.params.history)
        device = self._encoder.norm.weight.device
        with torch.inference_mode():
            entries = self._table[torch.from_numpy(rows)].to(device)
            hidden = self._encoder.last(entries, torch.from_numpy(np.maximum(held - 1, 0)).to(device)).cpu().numpy()
        vectors = np.concatenate([hidden, np.ones((len(rows), 1), np.float32)], axis=1)
        vectors[held == 0] = 0.0
        return vectors

    def score(self, histories: Histories) -> NDArray[np.float32]:
        vectors = np.empty((len(histories), self.params.n_factors + 1), np.float32)
        for start in range(0, len(histories), BATCH):
            end = min(start + BATCH, len(histories))
            vectors[start:end] = self.encode(histories.slice(start, end))
        return vectors @ self._vectors.T

    def save(self, folder: Path) -> None:
        arrays = {"vectors": self._vectors, **arrays_of(self._encoder, "encoder.")}
        save_model(folder, self.family, self.params, arrays, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, arrays, _ = load_model_files(folder, cls.family, SasRecParams)
        model = cls(params)
        load_arrays(model._encoder, arrays, "encoder.")
        model._set_vectors(arrays["vectors"])
        return model
