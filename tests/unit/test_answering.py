"""A replica's lanes: what comes after the answers cannot take them back."""

from pathlib import Path
from typing import Any

import pytest

from app.recommend import Answer, Request
from app.settings import Settings
from deployments.answering import Answering
from deployments.freshness import Follower
from tests.unit.chain_world import World


class Broken:
    """Stands for impressions and metrics whose disk is full."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"no space left for {name}")


async def test_answers_stand_where_counting_them_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world, broken = World(), Broken()
    follower = Follower(world.state, timeout_s=1.0, moved=lambda: None)
    answering = Answering(
        Settings(),
        world.state,
        follower,
        folder=tmp_path,
        remote=None,
        impressions=broken,  # type: ignore[arg-type]
        metrics=broken,  # type: ignore[arg-type]
    )
    outcomes = await answering._work(world.chain, [Request(k=3), Request(k=2)], lambda *_: None)
    assert [len(outcome.items) for outcome in outcomes if isinstance(outcome, Answer)] == [3, 2]
    assert answering.health.tallies(["b1"])["b1"].asked == 2
    assert "could not be counted" in caplog.text
