"""SASRec: a small causal transformer over the history, with a softmax over (nearly) all items."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from app.errors import MantaError
from app.models import together, warm
from app.models.adam import AdamW, warm_then_cosine
from app.models.candidate import Progress, StopFitting
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_table import ItemTable, table_of, training_device
from app.models.sasrec_network import Encoder
from app.models.sasrec_params import SasRecParams, Sizes, refuse_beyond, sizes_for
from app.models.sequences import Sequences, oldest_first, targets_in
from app.models.softmax_loss import Negatives, halves_well, softmax_loss
from app.models.storage import checked, load_model_files, save_model
from app.models.torch_arrays import arrays_of, load_arrays

BATCH = 256  # histories encoded at once: bounds the attention matrices
_SHAPE = ("n_factors", "blocks", "history", "similarity")  # what must be as it was for a fit to begin there
HALF = 100  # dimensions from which on products of the loss are made in bfloat16: below they are not what costs


class SasRec:
    """score = hidden(history) · item + bias, learned by a (sampled) softmax over the next event at every place.

    Differs from the papers where later work found better: softmax over all items or with many negatives in place of
    one, pre-norm, a learned attention bias by distance in place of absolute positions, item vectors that see the
    items' columns, and a weighted mean of the history that the transformer corrects (CORE's representation), for
    sessions with the cosine in place of the product. The bias is the last dimension of both sides.
    Searched: n_factors 32-64; blocks 1-2; history 20-50; dropout 0.1-0.5; lr 0.0005-0.005, log; iterations 4-15.
    Papers: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018; Klenitskiy and Vasilev, "Turning
    dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023; Hou et al., "CORE: simple and effective
    session-based recommendation within consistent representation space", SIGIR 2022.
    """

    family: ClassVar[str] = "sasrec"
    iterative: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self._asked = checked(params, SasRecParams)
        self._before: tuple[Self, NDArray[np.int64]] | None = None
        nothing = np.zeros(0, np.int32)
        self._begin(Interactions(nothing, nothing, nothing.astype(np.float32), nothing.astype(np.int64), 0, 0))

    def _begin(self, data: Interactions) -> None:
        """Sizes for the data, and a network that has learned nothing."""
        self.sizes = sizes_for(self._asked, data)
        self.params = self._asked.model_copy(update=asdict(self.sizes))
        with torch.random.fork_rng():
            self._encoder = _network(self.sizes, self._asked.heads)
        self._set_vectors(np.zeros((data.n_items, self.sizes.n_factors + 1), np.float32))

    def begin_at(self, before: Self, rows: NDArray[np.int64]) -> Self:
        """As `app.models.warm.WarmModel` has it: at all weights. What was left open is chosen as it was before."""
        open_ones = {name: getattr(before.sizes, name) for name in _SHAPE if getattr(self._asked, name) is None}
        asked = self._asked.model_copy(update=open_ones)
        found = {"heads": before._asked.heads, **{name: getattr(before.sizes, name) for name in _SHAPE}}
        warm.same_sizes(self.family, found, {name: getattr(asked, name) for name in found})
        self._asked, self._before = asked, (before, rows)
        return self

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: it would need more than `memory_limit_bytes` (nothing was allocated), or the loss diverged.
        """
        refuse_beyond(self._asked, sizes_for(self._asked, data), data)
        with torch.random.fork_rng(), suppress(StopFitting):
            torch.manual_seed(seed)
            self._begin(data)
            before, self._before = self._before, None
            if before is not None:
                fewer = warm.passes_of(self.sizes.iterations)
                self.sizes = replace(self.sizes, iterations=fewer)
            items = table_of(
                data,
                catalogue,
                self.sizes.n_factors,
                warm_start=self._asked.warm_start and before is None,
                content=self._asked.content,
                seed=seed,
                unit=self.sizes.similarity == "cosine",
            )
            self._encoder = _network(self.sizes, self._asked.heads)
            if before is not None:
                model, rows = before
                items.begin_at(model._vectors[:, :-1], model._vectors[:, -1], rows)
                self._encoder.load_state_dict(model._encoder.state_dict())
            self._fit(data, items.to(training_device()), seed, progress)
        return self

    def _fit(self, data: Interactions, items: ItemTable, seed: int, progress: Progress | None) -> None:
        sizes, rng, device = self.sizes, np.random.default_rng(seed), training_device()
        sequences = Sequences.of(data)
        self._encoder.to(device)
        step = _Step(items, self._encoder, data, sizes, device)
        self._take(items)
        learned = list(step.parameters())
        together.begin(learned, seed)
        optimizer: AdamW | None = None
        for iteration in range(sizes.iterations):
            self._encoder.train()
            batches = sequences.batches(sizes.history, sizes.batch_events, rng)
            if optimizer is None:
                schedule = warm_then_cosine(sizes.iterations * len(batches))
                optimizer = AdamW(learned, lr=sizes.lr, l2=self._asked.l2, schedule=schedule)
            step.whole = iteration >= sizes.iterations - round(sizes.whole_share * sizes.iterations)
            total = torch.zeros((), device=device)
            for place in rng.permutation(len(batches)):
                windows = together.mine(batches[place])
                optimizer.zero_grad()
                if len(windows):
                    loss = step.loss(torch.from_numpy(sequences.padded(windows, data.n_items)).to(device))
                    loss = loss * (targets_in(windows) / targets_in(batches[place]))
                    loss.backward()
                    total += loss.detach()
                together.sum_gradients(learned)
                optimizer.step()
            if not torch.isfinite(together.summed(total)):
                raise MantaError(f"sasrec: found a loss of {float(total)} in pass {iteration + 1}, wanted a number")
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
        vectors = np.empty((len(histories), self.sizes.n_factors + 1), np.float32)
        for start in range(0, len(histories), BATCH):
            end = min(start + BATCH, len(histories))
            vectors[start:end] = self._encode(histories.slice(start, end))
        return vectors

    def _encode(self, histories: Histories) -> NDArray[np.float32]:
        rows, held = oldest_first(histories, self.n_items, self.sizes.history)
        device = self._encoder.norm.weight.device
        with torch.inference_mode():
            entries = self._table[torch.from_numpy(rows)].to(device)
            hidden = self._encoder.last(entries, torch.from_numpy(np.maximum(held - 1, 0)).to(device)).cpu().numpy()
        vectors = np.concatenate([hidden, np.ones((len(rows), 1), np.float32)], axis=1)
        vectors[held == 0] = 0.0
        return vectors

    def score(self, histories: Histories) -> NDArray[np.float32]:
        return self.encode(histories) @ self._vectors.T

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


def _network(sizes: Sizes, heads: int) -> Encoder:
    encoder = Encoder(
        sizes.n_factors, sizes.blocks, heads, sizes.history, sizes.dropout, unit=sizes.similarity == "cosine"
    )
    encoder.eval()
    return encoder


class _Step:
    """The loss of one batch.

    Attributes:
        whole: whether the softmax goes over all items.

    Args:
        items: the table that learns.
        encoder: the network that learns.
        data: what is learned from, for the draws of negatives.
        sizes: of the family.
        device: where the table and the network are.
    """

    def __init__(
        self, items: ItemTable, encoder: Encoder, data: Interactions, sizes: Sizes, device: torch.device
    ) -> None:
        self.whole = False
        self._items, self._encoder, self._half = items, encoder, sizes.n_factors >= HALF and halves_well(device)
        self._negatives: Negatives | None = None
        if 0 < sizes.n_negatives < data.n_items:
            counts = np.bincount(data.items, minlength=data.n_items).astype(np.float64)
            self._negatives = Negatives(counts, sizes.n_negatives, device)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self._items.parameters()
        yield from self._encoder.parameters()

    def loss(self, rows: Tensor) -> Tensor:
        """The mean over the places of rows int64 (B, L + 1), padded with n_items at the end."""
        items = self._items
        told, known = rows[:, :-1].clamp(max=items.n_items - 1), rows[:, 1:] < items.n_items
        targets = rows[:, 1:][known]
        if self._negatives is None or self.whole:
            others, extra, places = items.vectors(), torch.zeros_like(items.bias), targets
            entries, own = functional.embedding(told, others), functional.embedding(targets, others)
            drawn_bias = items.bias
        else:
            drawn, extra = self._negatives.draw()
            places = self._negatives.places(drawn, targets)
            asked = torch.cat([told.flatten(), targets, drawn])  # one look-up, one gradient of the table's size
            vectors = items.reader(len(asked))(asked)
            flat, own, others = vectors.split([told.numel(), len(targets), len(drawn)])
            entries, drawn_bias = flat.view(*told.shape, -1), items.bias[drawn]
        hidden = self._encoder(entries)[known]
        return softmax_loss(hidden, own, items.bias[targets], others, drawn_bias + extra, places, half=self._half)
