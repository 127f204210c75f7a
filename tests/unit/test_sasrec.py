"""What stands behind `sasrec`: the loss, attention by distance, batches of one pass, sizes by the data's shape."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from app.errors import MantaError
from app.models.adam import AdamW
from app.models.dropout import Dropout
from app.models.interactions import Catalogue, Interactions
from app.models.item2vec import Item2Vec, Item2VecParams, neighbours
from app.models.sasrec import SasRec
from app.models.sasrec_network import Encoder, by_distance
from app.models.sasrec_params import SasRecParams, sizes_for
from app.models.sequences import Sequences
from app.models.softmax_loss import Negatives, softmax_loss


def events(n_users: int, length: int, n_items: int) -> Interactions:
    users = np.repeat(np.arange(n_users, dtype=np.int32), length)
    items = np.random.default_rng(0).integers(0, n_items, len(users)).astype(np.int32)
    return Interactions(
        users, items, np.ones(len(users), np.float32), np.arange(len(users), dtype=np.int64), n_users, n_items
    )


def test_loss_over_all_items_and_its_gradients_are_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.softmax_loss.CELLS", 50)  # chunks of 5 predictions
    torch.manual_seed(0)
    hidden, vectors, bias = torch.randn(17, 4), torch.randn(10, 4), torch.randn(10)
    targets = torch.randint(10, (17,))
    for tensor in (hidden, vectors, bias):
        tensor.requires_grad_()
    own = functional.embedding(targets, vectors)
    (3 * softmax_loss(hidden, own, bias[targets], vectors, bias, targets)).backward()
    found = [tensor.grad.clone() for tensor in (hidden, vectors, bias)]
    for tensor in (hidden, vectors, bias):
        tensor.grad = None
    wanted = functional.cross_entropy(functional.linear(hidden, vectors, bias), targets)
    (3 * wanted).backward()
    for got, tensor in zip(found, (hidden, vectors, bias), strict=True):
        torch.testing.assert_close(got, tensor.grad)
    loss = softmax_loss(hidden, own, bias[targets], vectors, bias, targets)
    torch.testing.assert_close(loss, wanted)
    rough = softmax_loss(hidden, own, bias[targets], vectors, bias, targets, half=True)
    torch.testing.assert_close(rough, wanted, rtol=0.02, atol=0.02)


def test_drawn_negatives_estimate_the_sum_over_all_items() -> None:
    torch.manual_seed(0)
    scores = torch.randn(50)
    negatives = Negatives(np.arange(50.0) ** 2, 200, torch.device("cpu"))
    sums = []
    for _ in range(400):
        rows, extra = negatives.draw()
        assert len(torch.unique(rows)) == len(rows)
        sums.append(float((scores[rows] + extra).exp().sum()))
    assert np.mean(sums) == pytest.approx(float(scores.exp().sum()), rel=0.03)
    assert negatives.places(torch.tensor([7, 3]), torch.tensor([3, 1, 7])).tolist() == [1, -1, 0]


def test_attention_by_distance_looks_back_only() -> None:
    weights = torch.arange(5.0)[None]
    never = -torch.inf
    wanted = torch.tensor([[0.0, never, never], [1.0, 0.0, never], [2.0, 1.0, 0.0]])
    torch.testing.assert_close(by_distance(weights, 3, None)[0], wanted)
    torch.testing.assert_close(by_distance(weights, 3, torch.tensor([2, 0]))[:, 0, 0], wanted[[2, 0]])


@pytest.mark.parametrize("unit", [False, True])
def test_the_last_place_is_answered_as_among_all(unit: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(16, 2, 2, 6, 0.2, unit)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    encoder.eval()
    entries = torch.randn(3, 5, 16)
    at = torch.tensor([4, 0, 2])
    everywhere = encoder(entries)
    torch.testing.assert_close(encoder.last(entries, at), everywhere[torch.arange(3), at], rtol=1e-4, atol=1e-4)
    later = entries.clone()
    later[:, 3:] = 0
    torch.testing.assert_close(encoder(later)[:, :3], everywhere[:, :3])  # what comes later changes nothing


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    dropout, ones = Dropout(0.25), torch.ones(100, 1000)
    dropped = dropout(ones)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert not torch.equal(dropout(ones), dropped)
    assert dropout.eval()(ones) is ones


def test_adam_steps_by_its_formula() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    idle = torch.nn.Parameter(torch.ones(1))
    optimizer = AdamW([weight, idle], lr=0.1, l2=0.5, betas=(0.9, 0.98))
    first, second, wanted = np.zeros(2), np.zeros(2), np.array([1.0, -2.0])
    for step in range(1, 4):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        slope = 2 * wanted
        first, second = 0.9 * first + 0.1 * slope, 0.98 * second + 0.02 * slope**2
        size = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.98**step)) + 1e-8)
        wanted = wanted * (1 - 0.1 * 0.5) - 0.1 * size
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), wanted, rtol=1e-5)
    assert idle.item() == 1


def test_batches_of_a_pass_are_its_windows_and_hold_no_more_than_asked() -> None:
    data = events(9, 23, 5)
    sequences = Sequences.of(data)
    batches = sequences.batches(8, 24, np.random.default_rng(0))
    covered = np.concatenate([np.arange(start + 1, end) for batch in batches for start, end in batch])
    np.testing.assert_array_equal(np.sort(covered), sequences.targets)
    assert max(len(batch) * (batch[:, 1] - batch[:, 0] - 1).max() for batch in batches) <= 24
    assert len(sequences.windows(22, np.random.default_rng(0))) == 9  # who fits in is not cut


def test_sizes_follow_the_data_and_what_is_given_stays() -> None:
    small = sizes_for(SasRecParams(), events(100, 30, 50))
    assert (small.n_factors, small.blocks, small.history, small.similarity) == (64, 1, 50, "dot")
    long = sizes_for(SasRecParams(lr=0.5), events(1000, 400, 50))
    assert (long.n_factors, long.history, long.n_negatives, long.similarity, long.lr) == (128, 192, 1024, "dot", 0.5)
    short = sizes_for(SasRecParams(), events(100_000, 4, 20_000))
    assert (short.history, short.n_negatives, short.similarity) == (16, 2048, "cosine")
    empty = sizes_for(SasRecParams(), events(0, 0, 1))
    assert empty.n_factors == 64


@pytest.mark.parametrize(
    "model", [SasRec(SasRecParams(memory_limit_bytes=1)), Item2Vec(Item2VecParams(memory_limit_bytes=1))]
)
def test_refusals_say_what_is_needed_before_any_work(model: SasRec | Item2Vec) -> None:
    with pytest.raises(MantaError, match=r"need \d+\.\d GB, wanted at most memory_limit_bytes"):
        model.fit(events(10, 10, 10), Catalogue.of([str(row) for row in range(10)]))


def test_a_loss_that_is_no_number_stops_and_names_the_family() -> None:
    data = events(20, 10, 12)
    catalogue = Catalogue.of([str(row) for row in range(12)])
    with pytest.raises(MantaError, match="sasrec: found a loss of"):
        SasRec(SasRecParams(n_factors=8, lr=1.0, l2=1e30, iterations=3, history=5)).fit(data, catalogue)


def test_neighbours_of_a_pass_stay_with_their_user_and_window() -> None:
    data = events(6, 12, 1000)
    sequences, counts = Sequences.of(data), np.bincount(data.items, minlength=1000)
    params = Item2VecParams(window=3, subsample=0)
    centres, others = neighbours(sequences, counts, params, np.random.default_rng(0))
    found = set(zip(centres.tolist(), others.tolist(), strict=True))
    grid = sequences.items.reshape(6, 12)
    near = {(row[a], row[b]) for row in grid.tolist() for a in range(12) for b in range(12) if 0 < abs(a - b) <= 3}
    assert found <= near
    beside = {(row[a], row[a + 1]) for row in grid.tolist() for a in range(11)}
    assert beside <= found
    thin, _ = neighbours(sequences, counts, params.model_copy(update={"subsample": 1e-9}), np.random.default_rng(0))
    assert len(thin) == 0
