"""The writer of live figures lets messages gather: a batch has its cost, whatever its size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.events.schema import EVENTS
from app.settings import Settings
from app.state.feed import Read, StateFeed
from app.stats import writer
from app.stats.batch import StatsBatch
from app.stats.fold import StatsFold
from app.stats.writer import StatsWriterLoop


class Endless:
    """A feed that never runs dry; `sizes`: messages that its polls bring, then none."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    def poll(self, _timeout_s: float, most: int) -> Read:
        assert most == 100
        return Read(cast(Any, [None] * self._sizes.pop(0)), {(EVENTS, 0): 1}) if self._sizes else Read()

    def behind(self) -> dict[tuple[str, int], int]:
        return {(EVENTS, 0): 7}


@pytest.mark.parametrize(("sizes", "left"), [([9, 9, 9], 2), ([100, 50, 10, 9, 9], 1), ([0, 9], 1), ([100], 0)])
def test_few_messages_are_left_to_gather_until_the_next_look(
    sizes: list[int], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = StatsWriterLoop(Settings.model_validate({"stats": {"batch_events": 100}}), tmp_path)
    monkeypatch.setattr(loop._room, "shortage", lambda: None)
    monkeypatch.setattr(writer, "to_batch", lambda *_, **__: StatsBatch())
    applied: list[StatsBatch] = []
    fold = SimpleNamespace(apply=lambda batch, **_: applied.append(batch))
    before = len(sizes)
    loop._read(cast(StateFeed, Endless(sizes)), cast(StatsFold, fold))
    assert len(sizes) == left
    assert len(applied) == before - left
