"""What all sources find for some cases, asked once: what any mix of them retrieves follows without asking again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.features.items import ItemFeatures
from app.features.spec import FeatureSpec
from app.features.statistics import ItemStatistics
from app.features.table import FeatureContext, feature_names, features
from app.models.interactions import Histories
from app.ranking.examples import Examples
from app.ranking.next_events import statistics_steps, training_examples
from app.retrieval.merge import of_fewer, take
from app.retrieval.query import Candidates, Query
from app.retrieval.sources import Source, retrieve
from tune.chains import Mix, Slices

# Features that depend on which sources are asked, and for how many candidates; no other does.
OF_THE_MIX = ("source_score", "source_rank", "source_named", "fused_rank")


@dataclass(frozen=True, slots=True)
class CaseTable:
    """C cases with the candidates of all sources, in rising rows within each case.

    Attributes:
        names: of the sources, in the order of the candidates' columns.
        found: the candidates.
        plain: the features that no mix changes, in the order of `plain_names`, and what was answered.
        items: content arrays of the rows.
        nothing: statistics of no event, where features that look at none want some.
    """

    names: tuple[str, ...]
    found: Candidates
    plain: Examples
    plain_names: tuple[str, ...]
    items: ItemFeatures
    nothing: ItemStatistics

    @classmethod
    def of(
        cls,
        sources: Mapping[str, Source],
        slices: Slices,
        cases: NDArray[np.int64],
        spec: FeatureSpec,
        items: ItemFeatures,
        depth: int,
    ) -> "CaseTable":
        """Asks all sources for `depth` candidates of each case; statistics are as of the slice that they are of.

        Memory: 4 bytes × cases × distinct candidates × (features + 2 × sources).

        Args:
            spec: names the features; which sources it names does not matter.
        """
        whole, asked = slices.interactions, list[Candidates]()
        nothing = ItemStatistics.of(whole.first(0), spec.half_lives_days, as_of=0)

        def ask(query: Query) -> Candidates:
            asked.append(in_rows(retrieve(sources, query)))
            return asked[-1]

        plain = _with(spec, (name for name in spec.features if name not in OF_THE_MIX))
        examples = training_examples(
            ask,
            whole,
            cases,
            spec=plain,
            items=items,
            statistics=statistics_steps(whole, cases, spec.half_lives_days, slices.statistics_age_h)
            if plain.features
            else nothing,
            mix=[(name, depth) for name in sources],
            limit=depth * len(sources),
            history_limit=slices.history_limit,
            user_columns=slices.user_columns,
            objectives=slices.objectives,
            again=slices.again,
        )
        return cls(tuple(sources), _joined(asked, len(sources)), examples, feature_names(plain), items, nothing)

    def __len__(self) -> int:
        return len(self.plain)

    def some(self, cases: NDArray[np.int64]) -> "CaseTable":
        """Of some of the cases."""
        return replace(self, found=take(self.found, cases.tolist()), plain=self.plain.take(cases))

    def answered(self) -> NDArray[np.int64]:
        """int64: the cases whose item any source found."""
        return np.flatnonzero(self.plain.targets >= 0)

    def ranks(self, mix: Mix, limit: int) -> NDArray[np.float64]:
        """float64 (C,): the place of each case's item in retrieval order from 1; infinite: it is not retrieved."""
        places, found = self._merged(mix, limit)
        hits = np.flatnonzero(self.plain.labels[places, 0] > 0)
        ranks = np.full(len(self), np.inf)
        owner = np.searchsorted(found.offsets, hits, side="right") - 1
        ranks[owner] = hits - found.offsets[owner] + 1.0
        return ranks

    def examples(self, mix: Mix, limit: int, spec: FeatureSpec) -> Examples:
        """What `training_examples` gives of a mix, with features in the order of `feature_names(spec)`.

        Args:
            mix: of sources of this table, with at most as many candidates each as it has.
            limit: candidates after merging.
            spec: that of the mix.
        """
        places, found = self._merged(mix, limit)
        own = _with(spec, (name for name in spec.features if name in OF_THE_MIX))
        nobody = Histories.of_lists([[]] * len(self))
        context = FeatureContext(own, nobody, found, [name for name, _ in mix], self.items, self.nothing)
        mine, column_of = features(own, context), {name: place for place, name in enumerate(self.plain_names)}
        place_of = {name: place for place, name in enumerate(feature_names(own))}
        names = feature_names(spec)
        made = np.empty((len(places), len(names)), np.float32)
        for place, name in enumerate(names):
            if name in place_of:
                made[:, place] = mine[:, place_of[name]]
            else:
                made[:, place] = self.plain.features[:, column_of[name]].take(places)
        unshown = np.zeros(len(places), np.int32)
        return Examples(made, found.offsets, self.plain.labels[places], self.plain.objectives, unshown)

    def _merged(self, mix: Mix, limit: int) -> tuple[NDArray[np.int64], Candidates]:
        return of_fewer(self.found, [self.names.index(name) for name, _ in mix], [k for _, k in mix], limit)


def _with(spec: FeatureSpec, names: Iterable[str]) -> FeatureSpec:
    return spec.model_copy(update={"features": tuple(names)})


def in_rows(found: Candidates) -> Candidates:
    """The same in rising rows within each question."""
    order = np.lexsort((found.rows, found.owner))
    return Candidates(found.rows[order], found.offsets, found.scores[order], found.ranks[order])


def _joined(parts: Sequence[Candidates], n_sources: int) -> Candidates:
    """Batches one behind the other."""
    if not parts:
        none = np.empty((0, n_sources))
        return Candidates(np.empty(0, np.int32), np.zeros(1, np.int64), none.astype(np.float32), none.astype(np.int32))
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows, scores = np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts])
    return Candidates(rows, offsets, scores, np.concatenate([part.ranks for part in parts]))
