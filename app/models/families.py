"""The registry of candidate families: name, class, parameters, search ranges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.errors import SettingsError
from app.models.blend import Blend, BlendParams
from app.models.candidate import CandidateModel
from app.models.content import ContentModel, ContentParams, ItemVectors, VectorParams
from app.models.ease import Ease, EaseParams
from app.models.graph_filter import GraphFilter, GraphFilterParams
from app.models.ials import Ials, IalsParams
from app.models.item2vec import Item2Vec, Item2VecParams
from app.models.item_knn import ItemKnn, ItemKnnParams
from app.models.popularity import Popularity, PopularityParams
from app.models.sasrec import SasRec
from app.models.sasrec_params import SasRecParams
from app.models.seq_ridge import SeqRidge, SeqRidgeParams
from app.models.session_knn import SessionKnn, SessionKnnParams
from app.models.storage import FamilyParams
from app.models.two_tower import TwoTower, TwoTowerParams


@dataclass(frozen=True, slots=True)
class FloatRange:
    """A float from `low` to `high`, uniform, or uniform in the logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class IntRange:
    """An integer from `low` to `high`, both included, uniform, or uniform in the logarithm."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]


Range = FloatRange | IntRange | Choice


@dataclass(frozen=True, slots=True)
class Family:
    """One candidate family.

    Attributes:
        name: as settings, sweeps and bundles call it.
        model: its class.
        params: the model of its parameters; the defaults were chosen on the demo's validation split.
        space: the parameters that a sweep searches, and where.
        fit_cost: rough seconds of one fit of 90,000 events and 9,000 items on one core, to order and budget trials.
        shared_fit: whether several processes can fit it together (`app.models.together`).
    """

    name: str
    model: type[CandidateModel]
    params: type[FamilyParams]
    space: Mapping[str, Range]
    fit_cost: float
    shared_fit: bool = False

    @property
    def iterative(self) -> bool:
        return self.model.iterative


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("popularity", Popularity, PopularityParams, {"half_life_days": FloatRange(1.0, 3650.0, log=True)}, 0.1),
        Family(
            "item_knn",
            ItemKnn,
            ItemKnnParams,
            {
                "similarity": Choice(("cosine", "bm25")),
                "n_neighbours": Choice((100, 200, 500)),
                "shrink": FloatRange(5.0, 200.0, log=True),
                "target_power": FloatRange(0.1, 0.7),
                "window": Choice((0, 10, 20, 40)),
                "window_tau": FloatRange(5.0, 50.0, log=True),
                "backward": FloatRange(0.2, 1.0),
                "place_tau": FloatRange(2.0, 20.0, log=True),
                "place_floor": FloatRange(0.0, 0.1),
            },
            1.0,
        ),
        Family(
            "session_knn",
            SessionKnn,
            SessionKnnParams,
            {
                "place_tau": FloatRange(0.5, 10.0, log=True),
                "recent": FloatRange(0.1, 3.0, log=True),
                "window_tau": FloatRange(1.0, 20.0, log=True),
                "backward": FloatRange(0.2, 1.0),
                "length_power": FloatRange(0.0, 1.0),
                "source_power": FloatRange(0.0, 1.0),
                "target_power": FloatRange(0.0, 0.5),
            },
            1.0,
        ),
        Family(
            "ease",
            Ease,
            EaseParams,
            {
                "l2": FloatRange(30.0, 1000.0, log=True),
                "piece": Choice((0, 50, 100, 200)),
                "user_power": FloatRange(0.0, 0.5),
                "target_power": FloatRange(0.0, 0.4),
                "place_tau": FloatRange(2.0, 20.0, log=True),
                "place_floor": FloatRange(0.0, 0.1),
            },
            5.0,
        ),
        Family(
            "seq_ridge",
            SeqRidge,
            SeqRidgeParams,
            {
                "place_tau": FloatRange(2.0, 15.0, log=True),
                "l2": FloatRange(3.0, 300.0, log=True),
                "target_power": FloatRange(0.0, 0.4),
            },
            15.0,
        ),
        Family(
            "graph_filter",
            GraphFilter,
            GraphFilterParams,
            {
                "smooth": FloatRange(0.05, 1.0, log=True),
                "sharpen": FloatRange(0.0, 1.0),
                "target_power": FloatRange(0.0, 0.4),
                "n_factors": Choice((64, 128, 256)),
                "place_tau": Choice((0.0, 5.0, 20.0)),
            },
            2.0,
        ),
        Family(
            "ials",
            Ials,
            IalsParams,
            {
                "n_factors": Choice((32, 64, 96)),
                "l2": FloatRange(1.0, 100.0, log=True),
                "alpha": FloatRange(0.5, 20.0, log=True),
                "place_tau": FloatRange(3.0, 30.0, log=True),
                "place_floor": FloatRange(0.0, 0.2),
            },
            2.0,
        ),
        Family(
            "two_tower",
            TwoTower,
            TwoTowerParams,
            {
                "n_factors": Choice((32, 64, 96)),
                "history": Choice((10, 20, 30, 50)),
                "dropout": FloatRange(0.0, 0.5),
                "lr": FloatRange(0.0005, 0.005, log=True),
                "l2": FloatRange(0.0001, 0.1, log=True),
            },
            18.0,
            shared_fit=True,
        ),
        Family(
            "sasrec",
            SasRec,
            SasRecParams,
            {
                "n_factors": Choice((32, 64)),
                "blocks": IntRange(1, 2),
                "history": Choice((20, 50)),
                "dropout": FloatRange(0.1, 0.5),
                "lr": FloatRange(0.0005, 0.01, log=True),
                "l2": FloatRange(0.001, 0.5, log=True),
            },
            25.0,
            shared_fit=True,
        ),
        Family(
            "item2vec",
            Item2Vec,
            Item2VecParams,
            {
                "n_factors": Choice((32, 64, 128)),
                "window": IntRange(2, 10),
                "negative_power": FloatRange(-0.5, 1.0),
                "iterations": IntRange(3, 15),
                "place_tau": FloatRange(1.0, 20.0, log=True),
            },
            5.0,
        ),
        Family("blend", Blend, BlendParams, {"cases": Choice((2_000, 10_000))}, 60.0),
        Family(
            "content",
            ContentModel,
            ContentParams,
            {
                "n_factors": Choice((16, 32, 64)),
                "list_weight": FloatRange(0.0, 2.0),
                "text_weight": FloatRange(0.0, 2.0),
                "number_weight": FloatRange(0.0, 2.0),
                "place_tau": FloatRange(1.0, 50.0, log=True),
            },
            1.0,
        ),
        Family(
            "vector",
            ItemVectors,
            VectorParams,
            {"place_tau": FloatRange(1.0, 50.0, log=True), "place_floor": FloatRange(0.0, 0.3)},
            0.5,
        ),
    )
}


def family_of(name: str) -> Family:
    """The family of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in FAMILIES:
        raise SettingsError("candidate families", "family", name, "one of " + ", ".join(FAMILIES))
    return FAMILIES[name]


def make(name: str, params: Mapping[str, Any] | None = None) -> CandidateModel:
    """An unfitted model.

    Raises:
        SettingsError: unknown family or parameter, or a value out of range.
    """
    family = family_of(name)
    try:
        return family.model(family.params.model_validate(dict(params or {})))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(family.params.model_fields)
        wanted = f"one of {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise SettingsError(f"family {name}", key, first.get("input"), wanted) from None


def load_model(name: str, folder: Path) -> CandidateModel:
    """The model that `save` wrote into `folder`.

    Raises:
        SettingsError: unknown family.
        BundleError: the folder does not hold a readable model of that family.
    """
    return family_of(name).model.load(folder)
