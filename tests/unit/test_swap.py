"""The two-phase swap over a real registry and replicas that are only coroutines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.bundles.registry import Promotion, Registry
from app.errors import BundleError, Conflict, GateRefused, NotFound
from app.settings import Settings
from deployments import swap as swap_module
from deployments.health import Tally
from deployments.rollout import Kind, Orders, Report
from deployments.swap import Swap

SETTINGS = Settings.model_validate({"surfaces": {"home": {}, "related": {"topology": "distributed"}}})


class Replica:
    """Does what its orders say; notes what it answered from."""

    def __init__(self, swap: Callable[[], Swap], name: str, kind: Kind = "gateway") -> None:
        self._swap, self.name, self.kind = swap, name, kind
        self.orders = Orders("")
        self.loaded: set[str] = set()
        self.failing: set[str] = set()
        self.failed: dict[str, str] = {}
        self.live: dict[str, str] = {}
        self.slow = asyncio.Event()
        self.slow.set()
        self.log: list[tuple[str, str]] = []
        self.tallies: dict[str, Tally] = {}
        self.task = asyncio.create_task(self._follow())

    def report(self) -> Report:
        live = dict(self.live) if self.kind == "gateway" else {}
        return Report(self.name, self.kind, frozenset(self.loaded), dict(self.failed), live, tallies=dict(self.tallies))

    async def _follow(self) -> None:
        version: str | None = None
        while True:
            self.orders = await self._swap().exchange(self.report(), version)
            version = self.orders.version
            for bundle in self.orders.load:
                if bundle in self.failing:
                    self.failed[bundle] = "disk full"
                elif bundle not in self.loaded:
                    self.log.append(("load", bundle))
                    await self.slow.wait()
                    self.loaded.add(bundle)
            for surface, bundle in self.orders.live.items():
                if bundle in self.loaded and self.live.get(surface) != bundle:
                    self.log.append((surface, bundle))
                    self.live[surface] = bundle
            self.loaded &= set(self.orders.load)
            self.failed = {name: why for name, why in self.failed.items() if name in self.orders.load}
            await self._swap().exchange(self.report(), None)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(swap_module, "verify", lambda _: None)
    monkeypatch.setattr(swap_module, "REGISTRY_POLL_S", 0.02)
    monkeypatch.setattr("deployments.rollout.POLL_S", 0.1)
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    for name, ndcg in (("b1", 0.1), ("b2", 0.2), ("b3", 0.15)):
        manifest = {"id": name, "metrics": {"ndcg_at_10": ndcg}, "validation": {"cases": 7}, "surfaces": []}
        registry.register(name, tmp_path / name, manifest)
    return registry


@pytest.fixture
async def make(registry: Registry) -> AsyncIterator[Callable[..., Any]]:
    swaps: list[Swap] = []
    replicas: list[Replica] = []

    async def start(*names: str, **options: Any) -> tuple[Swap, list[Replica]]:
        swap = Swap(registry, SETTINGS, settle_s=options.pop("settle_s", 0.05), **options)
        swaps.append(swap)
        await swap.start()
        kinds: dict[str, Kind] = {"g": "gateway", "r": "retriever", "k": "ranker"}
        replicas.extend(Replica(lambda: swaps[-1], name, kinds[name[0]]) for name in names)
        await asyncio.sleep(0.02)
        return swap, replicas

    yield start
    for replica in replicas:
        replica.task.cancel()
    await asyncio.gather(*(replica.task for replica in replicas), return_exceptions=True)
    for swap in swaps:
        await swap.stop()


async def until(done: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ended(registry: Registry, promotion: str) -> Promotion:
    await until(lambda: registry.promotion(promotion).state != "loading")
    return registry.promotion(promotion)


async def test_all_load_before_any_flips(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1", "g2", "r1")
    first = await swap.promote("b1", None, False, None)
    assert (await ended(registry, first.id)).state == "live"
    assert registry.aliases().live == {"home": "b1", "related": "b1"}
    replicas[1].slow.clear()
    second = await swap.promote("b2", None, False, "b1")
    await asyncio.sleep(0.2)
    assert registry.promotion(second.id).state == "loading"
    assert [replica.live.get("home") for replica in replicas[:2]] == ["b1", "b1"]  # one lags: nobody flips
    replicas[1].slow.set()
    done = await ended(registry, second.id)
    assert (done.state, done.loaded, done.total) == ("live", 3, 3)
    assert all(replica.live == {"home": "b2", "related": "b2"} for replica in replicas[:2])
    await asyncio.sleep(0.1)
    assert all(replica.loaded == {"b2"} for replica in replicas)  # the old one has gone


async def test_a_replica_that_cannot_load_keeps_the_old_one_everywhere(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    replicas[0].failing.add("b2")
    failed = await ended(registry, (await swap.promote("b2", None, False, None)).id)
    assert failed.state == "failed"
    assert "g1: disk full" in (failed.reason or "")
    await asyncio.sleep(0.1)
    assert [replica.live["home"] for replica in replicas] == ["b1", "b1"]
    assert [replica.loaded for replica in replicas] == [{"b1"}, {"b1"}]
    replicas[0].failing.clear()
    assert (await ended(registry, (await swap.promote("b2", None, False, None)).id)).state == "live"


async def test_gate_expectation_and_what_is_live_already(registry: Registry, make: Any) -> None:
    swap, _ = await make("g1")
    with pytest.raises(NotFound):
        await swap.promote("none", None, False, None)
    await ended(registry, (await swap.promote("b2", None, False, None)).id)
    again = await swap.promote("b2", None, False, None)
    assert again.state == "live"
    with pytest.raises(GateRefused) as worse:
        await swap.promote("b1", None, False, None)
    assert registry.promotion(str(worse.value.figures["promotion"])).state == "refused"
    with pytest.raises(GateRefused):
        await swap.promote("b3", None, True, "b1")  # force does not skip what is expected
    forced = await swap.promote("b1", ["home"], True, "b2")
    assert (await ended(registry, forced.id)).state == "live"
    assert registry.aliases().live == {"home": "b1", "related": "b2"}


async def test_rollback(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1")
    with pytest.raises(NotFound):
        await swap.rollback("home")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    second = await swap.promote("b2", None, False, None)
    await ended(registry, second.id)
    back = await ended(registry, (await swap.rollback("home")).id)
    assert (back.state, back.bundle) == ("live", "b1")
    assert replicas[0].live == {"home": "b1", "related": "b2"}
    await until(lambda: registry.promotion(second.id).state == "rolled_back")


async def test_a_promotion_that_does_harm_is_taken_back_by_itself(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    harmful = await swap.promote("b2", None, False, None)
    await ended(registry, harmful.id)
    await asyncio.sleep(0.1)
    replicas[0].tallies = {"b2": Tally(40, 40)}
    replicas[1].tallies = {"b2": Tally(40, 20)}
    await until(lambda: all(replica.live == {"home": "b1", "related": "b1"} for replica in replicas))
    await until(lambda: registry.promotion(harmful.id).state == "rolled_back")


async def test_what_has_been_replaced_is_not_taken_back(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1")
    for bundle, force in (("b1", False), ("b2", False), ("b3", True)):
        assert (await ended(registry, (await swap.promote(bundle, None, force, None)).id)).state == "live"
    replicas[0].tallies = {"b2": Tally(80, 80)}
    await asyncio.sleep(0.7)
    assert registry.aliases().live == {"home": "b3", "related": "b3"}


async def test_of_two_swaps_at_once_one_wins(registry: Registry, make: Any) -> None:
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    replicas[0].slow.clear()
    both = [await swap.promote(bundle, None, True, "b1") for bundle in ("b2", "b3")]
    replicas[0].slow.set()
    found = [await ended(registry, one.id) for one in both]
    assert sorted(one.state for one in found) == ["failed", "live"]
    winner = next(one.bundle for one in found if one.state == "live")
    await asyncio.sleep(0.1)
    assert all(replica.live == {"home": winner, "related": winner} for replica in replicas)


@pytest.mark.parametrize("moved", [False, True])
async def test_a_killed_coordinator_is_resumed(registry: Registry, make: Any, moved: bool) -> None:
    """Killed while loading, and killed right after the alias moved: in both cases it ends in exactly one version."""
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    replicas[1].slow.clear()
    interrupted = await swap.promote("b2", None, False, None)
    await asyncio.sleep(0.05)
    await swap.stop()
    if moved:
        registry.move("b2", {"home": "b1", "related": "b1"})
    await make(settle_s=0.3)
    replicas[1].slow.set()
    assert (await ended(registry, interrupted.id)).state == "live"
    assert all(replica.live == {"home": "b2", "related": "b2"} for replica in replicas)


async def test_a_dead_replica_holds_nobody_up(registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.rollout.EXPIRES_S", 0.3)
    swap, replicas = await make("g1", "g2")
    replicas[1].task.cancel()
    done = await ended(registry, (await swap.promote("b1", None, False, None)).id)
    assert (done.state, done.total) == ("live", 1)


async def test_smoke_and_hashes_are_never_skipped(
    registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise RuntimeError("no answer")

    swap, _ = await make("g1", smoke=broken)
    with pytest.raises(GateRefused, match="smoke"):
        await swap.promote("b1", None, True, None)

    def flipped_bit(_: Path) -> None:
        raise BundleError("hash differs")

    monkeypatch.setattr(swap_module, "verify", flipped_bit)
    with pytest.raises(GateRefused, match="hash"):
        await swap.promote("b1", None, True, None)
    assert registry.aliases().live == {}


async def test_an_alias_moved_by_others_is_followed(registry: Registry, make: Any) -> None:
    _, replicas = await make("g1", "g2")
    registry.move("b3", {"home": None})
    await until(lambda: all(replica.live.get("home") == "b3" for replica in replicas))
    with pytest.raises(Conflict):
        registry.move("b1", {"home": "b2"})
