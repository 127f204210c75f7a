"""One contract for every candidate family: a known answer, batch as single, save and load, determinism, stopping."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.errors import BundleError, SettingsError
from app.models.candidate import (
    CandidateModel,
    NeighbourModel,
    StaticModel,
    StopFitting,
    SumModel,
    VectorModel,
    WholeModel,
)
from app.models.families import FAMILIES, load_model, make
from app.models.interactions import Catalogue, Histories, Interactions

GROUP = 12  # items of each of two groups; users stay in one and walk through it in order
PARAMS: dict[str, dict[str, Any]] = {
    "ease": {"l2": 1.0},
    "item_knn": {"shrink": 1.0},
    "ials": {"n_factors": 8, "iterations": 4, "l2": 0.1},
    "two_tower": {"n_factors": 16, "iterations": 20, "batch": 64, "lr": 0.02, "n_hidden": 16, "n_negatives": 0},
    "blend": {"parts": ["ease", "ials"], "part_params": {"ease": {"l2": 1.0}, "ials": {"n_factors": 8, "l2": 0.1}}},
    "item2vec": {"n_factors": 16, "iterations": 20, "batch": 256, "lr": 0.02, "subsample": 0},
    "sasrec": {"n_factors": 16, "iterations": 20, "history": 8, "batch_events": 64, "lr": 0.02, "dropout": 0.1},
}


def walks(seed: int = 0) -> tuple[Interactions, Catalogue]:
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(40):
        start, length = rng.integers(GROUP), rng.integers(5, 10)
        walk = (start + np.arange(length)) % GROUP + GROUP * (user % 2)
        users += [user] * length
        items += walk.tolist()
    n = len(items)
    data = Interactions(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.ones(n, np.float32),
        1_000_000 + np.arange(n, dtype=np.int64) * 1000,
        40,
        2 * GROUP + 1,  # the last item has no event
    )
    rows = np.arange(2 * GROUP + 1)
    columns = pa.table(
        {
            "title": [f"{'Red' if row < GROUP else 'Blue'} story {row}" for row in rows],
            "genres": [["Red"] if row < GROUP else ["Blue", "Long"] for row in rows],
            "year": [None if row == 3 else 1990 + int(row) for row in rows],
            "picture": [[1.0, 0.1 * float(np.cos(row)), float(row >= GROUP)] for row in rows],
        }
    )
    return data, Catalogue.of([str(row) for row in rows], columns)


DATA, CATALOGUE = walks()


def fitted(name: str, seed: int = 0) -> CandidateModel:
    return make(name, PARAMS.get(name)).fit(DATA, CATALOGUE, seed=seed)


MODELS: dict[str, CandidateModel] = {}


@pytest.fixture(params=sorted(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> CandidateModel:
    if name not in MODELS:
        MODELS[name] = fitted(name)
    return MODELS[name]


HISTORIES = Histories.of_lists([[2, 3, 4], [], [20], [14, 15, 16, 17] * 20, [9999, 5], [9999]], as_of=DATA.end)


def test_known_answer(name: str, model: CandidateModel) -> None:
    asked = Histories.of_lists([[2, 3, 4], [14, 15, 16]], as_of=DATA.end)
    scores = model.score(asked)
    assert scores.shape == (2, DATA.n_items)
    if isinstance(model, StaticModel):
        assert scores[0].argmax() == np.bincount(DATA.items).argmax()
        return
    scores[asked.owner, asked.items] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :2]
    assert (best[0] < GROUP).all(), "items of the history's own group come first"
    assert ((best[1] >= GROUP) & (best[1] < 2 * GROUP)).all()
    if name in {"sasrec", "two_tower"}:
        assert 5 in best[0], "the walk goes on"


def test_every_history_gets_finite_scores(model: CandidateModel) -> None:
    scores = model.score(HISTORIES)
    assert scores.dtype == np.float32
    assert scores.shape == (len(HISTORIES), model.n_items)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[1], scores[5])  # rows that the model does not know are no history
    assert model.score(Histories.of_lists([])).shape == (0, model.n_items)


def test_rows_beyond_the_catalogue_are_ignored(name: str, model: CandidateModel) -> None:
    known = Histories.of_lists([[3, 4]], as_of=DATA.end)
    mixed = Histories.of_lists([[9999, 3, 4]], as_of=DATA.end)
    np.testing.assert_allclose(model.score(mixed), model.score(known), rtol=1e-4, atol=1e-5)


def test_batch_equals_single(model: CandidateModel) -> None:
    together = model.score(HISTORIES)
    for place in range(len(HISTORIES)):
        alone = model.score(HISTORIES.slice(place, place + 1))
        np.testing.assert_allclose(alone[0], together[place], rtol=1e-4, atol=1e-5)


def test_save_and_load_equal(name: str, model: CandidateModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = load_model(name, tmp_path)
    assert again.n_items == model.n_items
    np.testing.assert_array_equal(again.score(HISTORIES), model.score(HISTORIES))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".safetensors"}
    other = "content" if name != "content" else "ease"
    with pytest.raises(BundleError):
        load_model(other, tmp_path)


def test_same_seed_same_model(name: str, model: CandidateModel, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model.save(tmp_path / "a")
    fitted(name).save(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_kinds_answer_as_their_protocol_says(model: CandidateModel) -> None:
    scores = model.score(HISTORIES)
    left = scores  # without what vectors say
    if isinstance(model, VectorModel):
        queries, items = model.encode(HISTORIES), model.item_vectors()
        assert queries.dtype == items.dtype == np.float32
        assert items.shape == (model.n_items, queries.shape[1])
        assert not queries[1].any()
        if isinstance(model, SumModel):
            left = scores - queries @ items.T
        else:
            np.testing.assert_allclose(queries @ items.T, scores, rtol=1e-4, atol=1e-5)
    if isinstance(model, NeighbourModel):
        indptr, indices, data = model.neighbours()
        dtypes = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32))
        assert (indptr.dtype, indices.dtype, data.dtype) == dtypes
        weights = model.entry_weights(HISTORIES)
        assert weights.shape == HISTORIES.items.shape
        rows = np.repeat(np.arange(model.n_items), np.diff(indptr))
        assert (rows != indices).all()
        assert all((a >= b or ra != rb) for (a, ra), (b, rb) in pairwise(zip(data, rows, strict=True)))
        matrix = np.zeros((model.n_items, model.n_items), np.float32)
        matrix[rows, indices] = data
        want = np.zeros_like(scores)
        known = HISTORIES.items < model.n_items
        np.add.at(want, HISTORIES.owner[known], weights[known, None] * matrix[HISTORIES.items[known]])
        np.testing.assert_allclose(want, left, rtol=1e-4, atol=1e-5)
    elif isinstance(model, StaticModel):
        assert (model.item_scores() >= 0).all()
    elif not isinstance(model, VectorModel):
        assert isinstance(model, WholeModel)
        assert model.scores_all_items


def test_progress_and_stopping(name: str) -> None:
    passes: list[int] = []

    def stop_at_two(number: int, model: CandidateModel) -> None:
        passes.append(number)
        assert np.isfinite(model.score(HISTORIES)).all()
        if number == 2:
            raise StopFitting

    model = make(name, PARAMS.get(name)).fit(DATA, CATALOGUE, progress=stop_at_two)
    assert passes == ([1, 2] if FAMILIES[name].iterative else [])
    assert np.isfinite(model.score(HISTORIES)).all()


def test_few_or_no_events_and_columns(name: str) -> None:
    for n in (0, 1):
        data = Interactions(
            np.zeros(n, np.int32), np.zeros(n, np.int32), np.ones(n, np.float32), np.ones(n, np.int64), 1, 3
        )
        scores = make(name, PARAMS.get(name)).fit(data, Catalogue.of(["a", "b", "c"])).score(HISTORIES)
        assert scores.shape == (len(HISTORIES), 3)
        assert np.isfinite(scores).all()


def test_wrong_parameters_are_named(name: str) -> None:
    with pytest.raises(SettingsError, match="no_such_key"):
        make(name, {"no_such_key": 1})
    with pytest.raises(SettingsError, match="no_such_family"):
        make("no_such_family")


def test_search_spaces_hold_valid_values(name: str) -> None:
    family = FAMILIES[name]
    for key, values in family.space.items():
        ends = getattr(values, "values", None) or (values.low, values.high)  # type: ignore[union-attr]
        for value in ends:
            make(name, {key: value})
