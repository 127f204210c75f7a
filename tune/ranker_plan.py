"""What a sweep says of its ranker: which kinds are tried, with which parameters; and the training of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.ranking.examples import Examples
from app.ranking.kinds import LambdaParams, LambdaRanker, NetworkParams, NetworkRanker
from app.ranking.ranker import TrainableRanker

Kind = Literal["network", "lightgbm"]

LEAST_CASES, MANY_CASES = 50, 20_000  # cases with an answered row: below the first none is trained
SMALL = NetworkParams(cross_layers=0, hidden=16)  # with few cases a larger network varies more from seed to seed


class RankerPlan(BaseModel):
    """`ranker:` of a sweep file. Of the kinds, and no ranker at all, what is best on validation is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[Kind, ...] = Field(
        ("network",), description="Tried in this order; a later one must be better on validation. None: no ranker."
    )
    examples: Literal["auto", "log", "next"] = Field(
        "auto",
        description="`log`: shown items with the features that serving logged; `next`: next events with candidates of "
        "the real retrievers; `auto`: the log where it has 1,000 answers with a reaction, else next events.",
    )
    network: NetworkParams | None = Field(
        None, description="Parameters of the cross network; null: its size by the number of cases."
    )
    lightgbm: LambdaParams = Field(LambdaParams(), description="Parameters of LightGBM's LambdaRank.")

    def made(self, kind: str, feature_names: Sequence[str], answered: int) -> TrainableRanker:
        """A ranker of one of the kinds that is yet to learn from so many answered cases."""
        if kind == LambdaRanker.kind:
            return LambdaRanker(tuple(feature_names), self.lightgbm)
        few = SMALL if answered < MANY_CASES else None
        return NetworkRanker(tuple(feature_names), self.network or few)

    def fitted(self, kind: str, feature_names: Sequence[str], examples: Examples, seed: int) -> TrainableRanker | None:
        """A ranker of the kind trained on the examples; None: too few of them hold what was answered."""
        answered = len(np.unique(examples.owner[examples.labels.any(axis=1)]))
        if answered < LEAST_CASES:
            return None
        ranker = self.made(kind, feature_names, answered)
        ranker.fit(examples, seed=seed)
        return ranker
