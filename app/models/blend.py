"""Blend: several families fitted on the same events, their scores added with weights found on held-out next items."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, field_validator

from app.errors import BundleError, MantaError
from app.models.blend_weights import FORMS, Weights, blended, cases_of, fit_weights, hold_out
from app.models.candidate import CandidateModel, Progress
from app.models.ease import Ease, EaseParams
from app.models.graph_filter import GraphFilter, GraphFilterParams
from app.models.ials import Ials, IalsParams
from app.models.interactions import Catalogue, Histories, Interactions
from app.models.item2vec import Item2Vec, Item2VecParams
from app.models.item_knn import ItemKnn, ItemKnnParams
from app.models.kinds import Kind, kind_of
from app.models.sasrec import SasRec
from app.models.sasrec_params import SasRecParams
from app.models.seq_ridge import SeqRidge, SeqRidgeParams
from app.models.session_knn import SessionKnn, SessionKnnParams
from app.models.storage import FamilyParams, checked, load_model_files, save_model

PARTS: dict[str, tuple[type[CandidateModel], type[FamilyParams]]] = {
    "ease": (Ease, EaseParams),
    "graph_filter": (GraphFilter, GraphFilterParams),
    "ials": (Ials, IalsParams),
    "item2vec": (Item2Vec, Item2VecParams),
    "item_knn": (ItemKnn, ItemKnnParams),
    "sasrec": (SasRec, SasRecParams),
    "seq_ridge": (SeqRidge, SeqRidgeParams),
    "session_knn": (SessionKnn, SessionKnnParams),
}
BY_KIND: dict[Kind, tuple[str, ...]] = {
    "sets": ("graph_filter", "ials", "item_knn", "ease"),
    "sessions": ("sasrec", "session_knn", "item_knn"),
    "sequences": ("sasrec", "seq_ridge", "ease", "session_knn"),
}
# Parameters that differ from the part's own defaults: of sets, no place in a history counts more than another.
OF_KIND: dict[Kind, dict[str, dict[str, Any]]] = {
    "sets": {
        "ease": {"place_tau": 0, "piece": 0},
        "ials": {"n_factors": 128},
        "item_knn": {"place_tau": 0, "window": 0},
    },
    "sessions": {},
    "sequences": {},
}


class BlendParams(FamilyParams):
    """Parameters of `blend`."""

    parts: tuple[str, ...] | None = Field(
        None, min_length=1, description="Families that are blended. Null: by what the order of the events says."
    )
    part_params: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Parameters of parts, by part; what is not named suits the kind of data."
    )
    cases: int = Field(10_000, ge=1, description="Users whose last event the weights are found on, at most.")

    @field_validator("parts")
    @classmethod
    def _known(cls, parts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in parts or ():
            if name not in PARTS:
                raise ValueError(f"found {name}, wanted some of {', '.join(PARTS)}")
        return parts

    @field_validator("part_params")
    @classmethod
    def _valid(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, params in given.items():
            if name not in PARTS:
                raise ValueError(f"found {name}, wanted some of {', '.join(PARTS)}")
            try:
                PARTS[name][1].model_validate(params)
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None
        return given


class Blend:
    """score = sum over parts and forms of weight × form(part's scores), forms being scales on which parts can be added.

    The last event of some users is held out, the parts are fitted on the rest, the weights climb in ndcg_at_20 on what
    was held out, and the parts that are worth something are fitted again on everything. A part that refuses the data
    (too large for it) is left out. Memory is that of the largest part while it is fitted, beside the parts themselves.
    Searched: cases (the parts search for themselves).
    Paper: Breiman, "Stacked regressions", Machine Learning 24, 1996, with Caruana et al., "Ensemble selection from
    libraries of models", ICML 2004, for the ascent on the metric itself.
    """

    family: ClassVar[str] = "blend"
    iterative: ClassVar[bool] = False
    scores_all_items: ClassVar[bool] = True

    def __init__(self, params: BaseModel | None = None) -> None:
        self._asked = checked(params, BlendParams)
        self.params = self._asked
        self.n_items = 0
        self.weights: Weights = {}
        self.quality: dict[str, float] = {}  # ndcg_at_20 on what was held out, by part and of the blend
        self.refused: dict[str, str] = {}  # parts that were left out, with what they said
        self._parts: dict[str, CandidateModel] = {}

    def fit(self, data: Interactions, catalogue: Catalogue, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Fits.

        Raises:
            MantaError: every part refused the data.
        """
        del progress
        names = self._asked.parts or BY_KIND[kind_of(data)]
        self.n_items, self._parts, self.refused, self.quality = data.n_items, {}, {}, {}
        held = hold_out(data, self._asked.cases, seed)
        if len(held.targets):
            parts = self._fitted(names, held.rest, catalogue, seed)
            self.weights, self.quality = fit_weights(list(parts), cases_of(parts, held))
            del parts
        else:
            self.weights = {name: {FORMS[0]: 1.0} for name in names}
        del held
        self._parts = self._fitted(self.weights, data, catalogue, seed)
        self.weights = {name: self.weights[name] for name in self._parts}
        self.params = self._asked.model_copy(update={"parts": tuple(self._parts)})
        return self

    def _fitted(
        self, names: Iterable[str], data: Interactions, catalogue: Catalogue, seed: int
    ) -> dict[str, CandidateModel]:
        """The parts that accept the data."""
        fitted: dict[str, CandidateModel] = {}
        suited = OF_KIND[kind_of(data)]
        for name in names:
            params = {**suited.get(name, {}), **self._asked.part_params.get(name, {})}
            model, params_type = PARTS[name]
            try:
                fitted[name] = model(params_type.model_validate(params)).fit(data, catalogue, seed=seed)
            except MantaError as error:
                self.refused[name] = str(error)
        if not fitted:
            raise MantaError(f"blend: found no part that accepts the data: {'; '.join(self.refused.values())}")
        return fitted

    def score(self, histories: Histories) -> NDArray[np.float32]:
        if not self._parts:
            return np.zeros((len(histories), self.n_items), np.float32)
        return blended(self._parts, self.weights, histories)

    def save(self, folder: Path) -> None:
        facts = {"n_items": self.n_items, "weights": self.weights, "quality": self.quality, "refused": self.refused}
        save_model(folder, self.family, self.params, {}, facts)
        for name, model in self._parts.items():
            (folder / name).mkdir()
            model.save(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Self:
        params, _, facts = load_model_files(folder, cls.family, BlendParams)
        model = cls(params)
        try:
            model.n_items, model.weights = int(facts["n_items"]), _checked_weights(facts["weights"])
            model.quality, model.refused = dict(facts["quality"]), dict(facts["refused"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder}: not a readable blend ({error!r})") from error
        model._parts = {name: PARTS[name][0].load(folder / name) for name in model.weights}
        return model


def _checked_weights(given: Mapping[str, Mapping[str, float]]) -> Weights:
    weights = {name: {form: float(weight) for form, weight in forms.items()} for name, forms in given.items()}
    for name, forms in weights.items():
        if name not in PARTS or not set(forms) <= set(FORMS):
            raise ValueError(f"weights: found {name}: {', '.join(forms)}")
    return weights
