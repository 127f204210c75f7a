"""The graph filter against its formula, its parts alone, and what it refuses."""

import numpy as np
import pytest

from app.errors import MantaError
from app.models.graph_filter import GraphFilter, GraphFilterParams, rank_for
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item_graph import ItemGraph
from app.models.subspace import leading_eigenpairs
from app.retrieval.allowed import Allowed
from app.retrieval.sources import SumSource, source_of


def events(n_users: int = 60, n_items: int = 30, n: int = 500, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.permutation(n_users * n_items)[:n])
    times = np.arange(n, dtype=np.int64)
    weights = rng.uniform(0.5, 2.0, n).astype(np.float32)
    return Interactions(
        (pairs // n_items).astype(np.int32), (pairs % n_items).astype(np.int32), weights, times, n_users, n_items
    )


def graph_of(data: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """P in float64, and the items' degrees."""
    users = np.zeros((data.n_users, data.n_items))
    users[data.users, data.items] = data.weights
    degrees = users.sum(axis=0)
    scaled = users / np.sqrt(users.sum(axis=1, keepdims=True)) / np.sqrt(degrees)
    return scaled.T @ scaled, degrees


def one_item_histories(n_items: int) -> Histories:
    return Histories.of_lists([[row] for row in range(n_items)], as_of=10**6)


def fitted(data: Interactions, **params: float) -> GraphFilter:
    catalogue = Catalogue.of([str(row) for row in range(data.n_items)])
    return GraphFilter(GraphFilterParams.model_validate(params)).fit(data, catalogue)


@pytest.mark.parametrize("n_neighbours", [1, 5, 100])
def test_at_full_rank_it_is_its_formula_however_little_of_the_graph_is_kept(n_neighbours: int) -> None:
    data = events()
    graph, degrees = graph_of(data)
    wanted = (graph + 0.3 * np.eye(30)) @ (np.eye(30) - 0.7 * graph) * degrees**0.4
    model = fitted(data, n_factors=60, n_neighbours=n_neighbours, smooth=0.3, sharpen=0.7, target_power=0.4)
    apart = ~np.eye(data.n_items, dtype=bool)
    np.testing.assert_allclose(model.score(one_item_histories(data.n_items))[apart], wanted[apart], atol=2e-4)


def test_below_its_rank_it_is_the_nearest_to_the_blurred_and_sharpened_graph() -> None:
    data = events()
    graph, degrees = graph_of(data)
    values, vectors = np.linalg.eigh(graph)
    tail, top, basis = values[:-4], values[-4:], vectors[:, -4:]
    slope = 1 - 0.7 * (tail**2).sum() / tail.sum()
    ideal = (degrees**-0.5)[:, None] * (basis @ basis.T) * degrees**0.5
    low = (basis * (top - 0.7 * top**2 - slope * top)) @ basis.T + 0.3 * ideal @ (np.eye(30) - 0.7 * graph)
    left, sizes, right = np.linalg.svd(low)
    low = (left[:, :4] * sizes[:4]) @ right[:4]
    wanted = slope * (graph - np.diag(np.diag(graph))) + low
    model = fitted(data, n_factors=4, n_neighbours=100, passes=40, smooth=0.3, sharpen=0.7, target_power=0)
    np.testing.assert_allclose(model.score(one_item_histories(data.n_items)), wanted, atol=5e-4)


def test_only_the_largest_entries_of_the_graph_are_kept_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data = events()
    graph, degrees = graph_of(data)
    whole = ItemGraph(data)
    factors = whole.powers(0.5)
    monkeypatch.setattr("app.models.item_graph.PAIRS", 300)
    monkeypatch.setattr("app.models.item_graph.USERS_AT_ONCE", 7)
    block = np.random.default_rng(0).standard_normal((data.n_items, 3)).astype(np.float32)
    np.testing.assert_allclose(whole @ block, graph @ block, atol=1e-5)
    found = whole.largest(5, factors, 0)
    np.testing.assert_allclose(found.diagonal, np.diag(graph), rtol=1e-4)
    assert found.squares == pytest.approx((graph**2).sum(), rel=1e-4)
    kept, wanted = found.entries.toarray(), graph * degrees**0.5
    wanted[wanted < np.sort(wanted, axis=None)[-6 * data.n_items]] = 0
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(kept, wanted, rtol=1e-4)


def test_eigenpairs_are_those_of_the_whole_matrix() -> None:
    graph, _ = graph_of(events(300, 150, 3000))
    values, vectors = np.linalg.eigh(graph)
    found, basis = leading_eigenpairs(lambda block: (graph @ block).astype(np.float32), 150, 10, passes=12, seed=3)
    np.testing.assert_allclose(found, values[:-11:-1], rtol=1e-3)
    np.testing.assert_allclose(np.abs((basis * vectors[:, :-11:-1]).sum(axis=0)), 1, atol=0.02)
    none, empty = leading_eigenpairs(lambda block: 0 * block, 150, 10, passes=2, seed=3)
    assert none.shape == (0,)
    assert empty.shape == (150, 0)


def test_it_is_served_as_the_sum_of_both_its_parts() -> None:
    model = fitted(events(), n_factors=6)
    source = source_of(model)
    assert isinstance(source, SumSource)
    asked = Histories.of_lists([[3, 4, 9], [], [99], [7]], as_of=10**6)
    banned, offsets = np.array([5, 0], np.int32), np.array([0, 1, 1, 1, 2], np.int64)
    found = source.search(asked, 10, Allowed(banned, offsets, np.empty((0, 30), np.bool_), np.full(4, -1, np.int32)))
    scores = model.score(asked)
    scores[0, 5] = scores[3, 0] = -np.inf
    assert [len(rows) for rows, _ in found] == [10, 0, 0, 10]  # nothing is known of the empty one
    for place in (0, 3):
        np.testing.assert_array_equal(found[place][0], np.argsort(-scores[place], kind="stable")[:10])


def test_the_rank_follows_the_shape() -> None:
    assert rank_for(29_858, 40_981) == 449
    assert rank_for(10**6, 10**5) == 512
    assert rank_for(1, 3) <= 3


def test_it_refuses_before_any_work_and_says_what_it_needs() -> None:
    empty = np.zeros(0, np.int32)
    data = Interactions(empty, empty, empty.astype(np.float32), empty.astype(np.int64), 10, 10**6)
    with pytest.raises(MantaError, match=r"1000000 items, rank 8 and 500 neighbours need \d+\.\d GB"):
        fitted(data)
