"""A chain and each of its families on the cases of a folder of data, whole catalogue, from lists as they are served."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.evaluation.evaluate import KS
from app.evaluation.folder import Folder
from app.evaluation.judging import histories_of
from app.evaluation.metrics import per_case
from app.features.items import ItemFeatures
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, features
from app.models.candidate import CandidateModel
from app.models.interactions import Histories
from app.retrieval.merge import of_fewer
from app.retrieval.query import Candidates, Query
from app.retrieval.sources import Source, retrieve, source_of
from tune.ablation import Stage
from tune.case_table import in_rows
from tune.chains import Chain
from tune.held_out_events import HISTORY_LIMIT
from tune.mixes import LEADING

BATCH = 64


@dataclass(frozen=True, slots=True)
class FolderJudge:
    """The folder's cases, asked of what was fitted on everything."""

    data: Folder
    chain: Chain
    models: Mapping[str, CandidateModel]
    again: bool

    def stages(self, told: Callable[[int], None]) -> list[Stage]:
        """Every family alone, the sources of the mix in their own order, and the chain."""
        held, names = self.data.held, list(self.models)
        sources: dict[str, Source] = {name: source_of(model) for name, model in self.models.items()}
        depth = max(LEADING, *(k for _, k in self.chain.mix))
        statistics = ItemStatistics.of(self.data.fitted, self.chain.spec.half_lives_days)
        items = ItemFeatures.of(self.chain.spec, self.data.catalogue)
        histories = histories_of(held, self.data.fitted)
        columns = [names.index(name) for name, _ in self.chain.mix]
        ranks = np.full((len(names) + 2, len(held.targets)), np.inf)
        for start in range(0, len(held), BATCH):
            end = min(start + BATCH, len(held))
            whole = histories(start, end)
            mix = tuple((name, depth) for name in names)
            found = in_rows(retrieve(sources, self._query(whole, mix, depth * len(names))))
            _, merged = of_fewer(found, columns, [k for _, k in self.chain.mix], self.chain.candidates)
            recent = whole.last(HISTORY_LIMIT)
            mine = slice(held.offsets[start], held.offsets[end])
            owner = np.repeat(np.arange(end - start), np.diff(held.offsets[start : end + 1]))
            wanted = owner * len(self.data.catalogue) + held.targets[mine]
            wanted[held.targets[mine] < 0] = -1
            for place in range(len(names)):
                own = found.ranks[:, place].astype(np.float64)
                ranks[place, mine] = self._places(found, np.where((own > 0) & (own <= LEADING), own, np.inf), wanted)
            order = (np.arange(len(merged.rows)) - merged.offsets[merged.owner] + 1).astype(np.float64)
            ranks[-2, mine] = self._places(merged, order, wanted)
            ranks[-1, mine] = self._places(merged, self._ranked(merged, recent, items, statistics, order), wanted)
            told(end)
        cases = [per_case(some, held.offsets, KS) for some in ranks]
        stages = [Stage(f"{name} alone", "alone", one) for name, one in zip(names, cases[:-2], strict=True)]
        if self.chain.ranker is not None:
            stages.append(Stage("the chain's sources, not ranked", "other", cases[-2]))
        return [*stages, Stage("the chain", "chain", cases[-1])]

    def _query(self, whole: Histories, mix: tuple[tuple[str, int], ...], limit: int) -> Query:
        banned, ends = (whole.items[:0], np.zeros_like(whole.offsets)) if self.again else (whole.items, whole.offsets)
        masks, unmasked = np.empty((0, len(self.data.catalogue)), np.bool_), np.full(len(whole), -1, np.int32)
        return Query(whole.last(HISTORY_LIMIT), banned, ends, masks, unmasked, mix, limit)

    def _ranked(
        self,
        found: Candidates,
        recent: Histories,
        items: ItemFeatures,
        statistics: ItemStatistics,
        order: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """float64 (R,): the place of each candidate by the ranker; equal scores keep retrieval order."""
        if self.chain.ranker is None:
            return order
        names = [name for name, _ in self.chain.mix]
        context = FeatureContext(self.chain.spec, recent, found, names, items, statistics)
        scores = self.chain.ranker.score(features(self.chain.spec, context))
        owner = found.owner
        places = np.empty(len(scores))
        places[np.lexsort((-scores, owner))] = np.arange(len(scores)) - found.offsets[owner] + 1.0
        return places

    def _places(self, found: Candidates, places: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 (T,): the places of the wanted candidates (question × items + row); infinite: not among them."""
        keys = found.owner * len(self.data.catalogue) + found.rows
        order = np.argsort(keys)
        spot = np.minimum(np.searchsorted(keys[order], wanted), max(len(keys) - 1, 0))
        if not len(keys):
            return np.full(len(wanted), np.inf)
        hit = keys[order][spot] == wanted
        return np.where(hit, places[order][spot], np.inf)
