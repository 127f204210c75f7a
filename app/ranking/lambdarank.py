"""LightGBM's LambdaRank: Burges, "From RankNet to LambdaRank to LambdaMART" (MSR-TR-2010-82), gradient-boosted trees.

Position bias: where rows were shown, their position is one more feature while the trees learn; at serving every row
stands in the first. (LightGBM's own factors per position leave the held-out ndcg, which stops it, as biased as it was.)
"""

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.errors import BundleError
from app.ranking.calibration import Calibration
from app.ranking.examples import NEXT, Examples
from app.ranking.held_out import calibrated, report_of, split
from app.ranking.ranker import TrainingReport, checked, plain_score

STOP_AT = 100  # places that the ndcg looks at which stops it: of ten places, few cases say too little


class LambdaParams(BaseModel):
    """Shape and training of the trees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trees: int = Field(150, ge=1, le=5000, description="At most, for each objective: a request pays for every one.")
    leaves: int = Field(7, ge=2, le=1024, description="Leaves of a tree.")
    learning_rate: float = Field(0.04, gt=0, le=1, description="What a tree counts.")
    least_rows: int = Field(100, ge=1, description="Rows that a leaf must hold.")
    l2: float = Field(1.0, ge=0, description="Ridge on the leaves' values.")
    feature_share: float = Field(0.7, gt=0, le=1, description="Of the features, drawn anew for each tree.")
    truncation: int = Field(10, ge=1, description="Pairs count where one of both stands in the first so many places.")
    candidates: int = Field(64, ge=2, description="Candidates of a case that are learned from, drawn once.")
    patience: int = Field(40, ge=1, description="Trees without a better held-out ndcg before it stops.")
    held_out: float = Field(0.15, gt=0, lt=0.9, description="Newest share of the cases, for stopping and calibration.")
    positions: int = Field(
        20, ge=0, le=500, description="Positions of shown rows that are told apart; 0: the bias is not learned."
    )


class LambdaRanker:
    """Trees behind the `Ranker` Protocol, a set for each objective. LightGBM is imported when one is made or loaded."""

    kind: ClassVar[str] = "lightgbm"

    def __init__(self, feature_names: tuple[str, ...], params: LambdaParams | None = None) -> None:
        self.feature_names = tuple(feature_names)
        self.params = params or LambdaParams()
        self.objectives: tuple[str, ...] = (NEXT,)
        self.calibrations: tuple[Calibration, ...] = ()
        self.positions = 0  # that it has learned from; 0: it takes no position
        self._boosters: list[Any] = []

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) in the order of `feature_names` -> float32 (R,), finite."""
        return plain_score(self.probabilities(features), self.objectives)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) -> float32 (R, O): of each objective."""
        logits = self._logits(features, np.ones(len(features), np.int32))
        columns = [calibration(column) for calibration, column in zip(self.calibrations, logits.T, strict=True)]
        return np.stack(columns, axis=1)

    def _logits(self, features: NDArray[np.float32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 (R, O): what the trees give for rows that stand at these positions."""
        checked(features, self.feature_names)
        if not self._boosters:
            raise ValueError("ranker: found trees that have not learned yet, wanted `fit` or `load` before")
        if not len(features):
            return np.zeros((0, len(self._boosters)), np.float32)
        table = self._table(features, positions)
        found = [one.predict(table, num_threads=1, validate_features=False) for one in self._boosters]
        return np.stack(found, axis=1).astype(np.float32)

    def _table(self, features: NDArray[np.float32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 (R, F) or, where positions count, (R, F + 1)."""
        if not self.positions:
            return features
        return np.concatenate([features, np.minimum(positions, self.positions)[:, None].astype(np.float32)], axis=1)

    def fit(self, examples: Examples, *, seed: int = 0) -> TrainingReport:
        """As `TrainableRanker.fit`; also learns what it predicts, and the bias of the positions, from the examples."""
        train, held, held_all = split(examples, self.params.held_out)
        train = train.thinned(self.params.candidates, np.random.default_rng(seed))
        self.objectives = examples.objectives
        shown = min(self.params.positions, int(train.positions.max(initial=0)))
        self.positions = shown if shown > 1 else 0
        fitted = [self._trees(train, held, number, seed) for number in range(len(self.objectives))]
        self._boosters = [booster for booster, _ in fitted]
        self.calibrations, errors = calibrated(self._logits(held_all.features, held_all.positions), held_all)
        losses = fitted[0][1]
        scores = self._logits(held.features, held.positions)[:, 0]
        return report_of(losses, int(np.argmin(losses)), scores, held, errors, len(train) + len(held))

    def _trees(self, train: Examples, held: Examples, objective: int, seed: int) -> tuple[Any, list[float]]:
        """The trees of one objective, and 1 - ndcg at STOP_AT of the held-out cases after each."""
        import lightgbm

        p = self.params
        settings = {
            "objective": "lambdarank",
            "num_leaves": p.leaves,
            "learning_rate": p.learning_rate,
            "min_data_in_leaf": p.least_rows,
            "lambda_l2": p.l2,
            "feature_fraction": p.feature_share,
            "lambdarank_truncation_level": p.truncation,
            "metric": "ndcg",
            "eval_at": [STOP_AT],
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": max(1, int(os.environ.get("OMP_NUM_THREADS") or 1)),
            "verbosity": -1,
        }
        learned = self._data(lightgbm, train, objective)
        history: dict[str, Any] = {}
        callbacks = [
            lightgbm.record_evaluation(history),
            lightgbm.early_stopping(p.patience, verbose=False),
        ]
        validation = self._data(lightgbm, held, objective, learned)
        booster = lightgbm.train(settings, learned, p.trees, valid_sets=[validation], callbacks=callbacks)
        losses = [1.0 - value for value in history["valid_0"][f"ndcg@{STOP_AT}"]]
        kept = booster.model_to_string(num_iteration=int(np.argmin(losses)) + 1)
        return lightgbm.Booster(model_str=kept), losses

    def _data(self, lightgbm: Any, examples: Examples, objective: int, like: Any = None) -> Any:
        """LightGBM's data set of the cases that have rows."""
        lengths = np.diff(examples.offsets)
        return lightgbm.Dataset(
            self._table(examples.features, examples.positions),
            (examples.labels[:, objective] > 0).astype(np.int32),
            group=lengths[lengths > 0],
            reference=like,
            params={"verbosity": -1},
        )

    def save(self, folder: Path) -> None:
        """Writes `ranker.json` and LightGBM's text of each objective, `objective_0.txt` and so on."""
        described = {
            "kind": self.kind,
            "features": self.feature_names,
            "params": self.params.model_dump(),
            "objectives": self.objectives,
            "positions": self.positions,
            "calibrations": [calibration.model_dump() for calibration in self.calibrations],
        }
        (folder / "ranker.json").write_text(json.dumps(described, indent=1))
        for number, booster in enumerate(self._boosters):
            (folder / f"objective_{number}.txt").write_text(booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; runs no code from it.

        Raises:
            BundleError: trees that do not belong to the described ranker.
        """
        import lightgbm

        described = json.loads((folder / "ranker.json").read_text())
        ranker = cls(tuple(described["features"]), LambdaParams.model_validate(described["params"]))
        ranker.objectives = tuple(described["objectives"])
        ranker.positions = int(described["positions"])
        columns = len(ranker.feature_names) + (ranker.positions > 0)
        ranker.calibrations = tuple(Calibration.model_validate(one) for one in described["calibrations"])
        for number in range(len(ranker.objectives)):
            file = folder / f"objective_{number}.txt"
            try:
                booster = lightgbm.Booster(model_str=file.read_text())
            except lightgbm.basic.LightGBMError as error:
                raise BundleError(f"{file}: found no trees ({error}), wanted LightGBM's text") from None
            if booster.num_feature() != columns:
                found = booster.num_feature()
                raise BundleError(f"{file}: found {found} features, wanted the {columns} of ranker.json")
            ranker._boosters.append(booster)
        if len(ranker.calibrations) != len(ranker.objectives) or not ranker.objectives:
            raise BundleError(f"{folder}: found {len(ranker.calibrations)} calibrations, wanted one an objective")
        return ranker
