"""A ranker's examples from the log: answers with the features that serving had, and what users did with them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.lake.logged import logged_answers, reactions
from app.lake.tables import open_lake
from app.ranking.examples import Examples, both
from app.ranking.logged import LoggedRows, logged_rows
from app.settings import Settings

MOST_ANSWERS = 50_000  # the newest: of ten items with 40 features each 80 MB
LEAST_ANSWERED = 50  # answers with a reaction, below which an objective is not learned


@dataclass(frozen=True, slots=True)
class AnswerLog:
    """Logged answers and the events that react to them.

    Attributes:
        answers, events: as `app.lake.logged` has them.
        objectives: by name the event types (`learn.objectives`).
        attribution_us, posted_surfaces: as in `logged_rows`.
    """

    answers: pa.Table
    events: pa.Table
    objectives: Mapping[str, Collection[str]]
    attribution_us: int
    posted_surfaces: tuple[str, ...]

    @classmethod
    def read(cls, settings: Settings, home: Path) -> "AnswerLog":
        """From the lake's present snapshots."""
        lake = open_lake(settings, home)
        answers = logged_answers(lake, MOST_ANSWERS)
        posted = tuple(name for name, surface in settings.surfaces.items() if surface.impressions == "posted")
        attribution_us = int(settings.stats.attribution_s * 1_000_000)
        return cls(answers, reactions(lake, answers), settings.learn.objectives, attribution_us, posted)

    def examples(self, names: tuple[str, ...], before_ms: int | None = None) -> Examples | None:
        """Each answer that carries just these features, in whatever order, as a case; None: no objective has enough.

        Args:
            before_ms: only what had happened before this time, milliseconds since 1970; None: everything.
        """
        answers, events = self.answers, self.events
        if before_ms is not None:
            answers, events = (
                table.filter(pc.less(table[time].cast(pa.int64()), before_ms * 1000))
                for table, time in ((answers, "time"), (events, "event_time"))
            )
        orders = pc.unique(pc.binary_join(answers["feature_names"], "\x1f")).to_pylist()
        logged = [order for text in orders if sorted(order := tuple(text.split("\x1f"))) == sorted(names)]
        found = [self._rows(answers, events, order).examples(names) for order in logged]
        return _learnable(reduce(both, found)) if found else None

    def _rows(self, answers: pa.Table, events: pa.Table, names: tuple[str, ...]) -> LoggedRows:
        return logged_rows(
            answers,
            events,
            objectives=self.objectives,
            attribution_us=self.attribution_us,
            names=names,
            posted_surfaces=self.posted_surfaces,
        )


def _learnable(examples: Examples) -> Examples | None:
    """Of the objectives those with enough answers that had such a reaction; None: none has."""
    cases = [np.unique(examples.owner[column > 0]) for column in examples.labels.T]
    kept = [place for place, answered in enumerate(cases) if len(answered) >= LEAST_ANSWERED]
    if not kept:
        return None
    names = tuple(examples.objectives[place] for place in kept)
    return Examples(examples.features, examples.offsets, examples.labels[:, kept], names, examples.positions)
