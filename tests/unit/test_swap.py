"""The two-phase swap over a real registry and replicas that are only coroutines."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.bundles.registry import Promotion, Registry
from app.errors import BundleError, Conflict, GateRefused, NotFound, RegistryUnavailable
from app.settings import Settings
from deployments.health import BUCKETS, Harm, Tally
from deployments.rollout import Kind, Orders, Report
from deployments.swap import Swap

SETTINGS = Settings.model_validate(
    {"surfaces": {"home": {}, "related": {"topology": "distributed"}}, "promotion": {"ctr_every_s": 0.1}}
)


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
    monkeypatch.setattr("deployments.examination.verify", lambda *_: None)
    monkeypatch.setattr("deployments.swap.REGISTRY_POLL_S", 0.02)
    monkeypatch.setattr("deployments.records.RETRY_S", 0.02)
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
    assert registry.promotion(harmful.id).figures["harm"] == {"by": "errors", "failed": 60, "asked": 80}
    backs = [one for one in registry.promotions() if one.kind == "rollback"]
    assert all(f"promotion {harmful.id} is taken back: errors: 60 of 80" in str(one.reason) for one in backs)


async def test_answers_that_take_much_longer_than_before_are_taken_back(registry: Registry, make: Any) -> None:
    fast, slow_times = (tuple(600 * (place == bucket) for place in range(BUCKETS)) for bucket in (8, 18))
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    for replica in replicas:
        replica.tallies = {"b1": Tally(600, 0, fast)}
    await until(lambda: [tally.asked for tally in swap.rollout.tallies("b1").values()] == [600, 600])
    slower = await swap.promote("b2", None, False, None)
    await ended(registry, slower.id)
    replicas[0].tallies = {"b2": Tally(600, 0, slow_times)}
    await until(lambda: registry.promotion(slower.id).state == "rolled_back")
    why = registry.promotion(slower.id)
    assert "latency: 95% of its answers took up to 256 ms, of those before 8 ms" in str(why.reason)
    assert why.figures["harm"]["by"] == "latency"
    await until(lambda: registry.aliases().live == {"home": "b1", "related": "b1"})


async def test_clicks_that_fall_take_it_back_where_it_still_shows(registry: Registry, make: Any) -> None:
    asked: list[tuple[str, dict[str, str]]] = []
    found: list[Harm] = []

    def ctr(bundle: str, before: dict[str, str]) -> Harm | None:
        asked.append((bundle, dict(before)))
        return found[0] if found else None

    swap, replicas = await make("g1", ctr=ctr)
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    unloved = await swap.promote("b2", None, False, None)
    await ended(registry, unloved.id)
    await until(lambda: len(asked) >= 2)
    assert asked[0] == ("b2", {"home": "b1", "related": "b1"})
    assert registry.promotion(unloved.id).state == "live"
    registry.move("b3", {"related": "b2"})
    await until(lambda: asked[-1] == ("b2", {"home": "b1"}))
    found.append(Harm("CTR on home: 0.01 against 0.05", {"by": "ctr", "surface": "home"}))
    await until(lambda: registry.promotion(unloved.id).state == "rolled_back")
    await until(lambda: replicas[0].live == {"home": "b1", "related": "b3"})
    assert registry.promotion(unloved.id).figures["harm"] == {"by": "ctr", "surface": "home"}
    registry.move("b2", {"home": "b1"})
    looks = len(asked)
    await asyncio.sleep(0.3)
    assert len(asked) == looks  # what has ended is watched no more


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

    def flipped_bit(*_: Any) -> None:
        raise BundleError("hash differs")

    monkeypatch.setattr("deployments.examination.verify", flipped_bit)
    with pytest.raises(GateRefused, match="hash"):
        await swap.promote("b1", None, True, None)
    assert registry.aliases().live == {}


class Away:
    """Makes a method of the registry fail for some calls, before or after it has done its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registry: Registry, method: str, after: bool = False) -> None:
        self.times, self._work, self._after = 0, getattr(registry, method), after
        monkeypatch.setattr(registry, method, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.times and not self._after:
            self.times -= 1
            raise RegistryUnavailable("no answer")
        told = self._work(*args, **kwargs)
        if self.times:
            self.times -= 1
            raise RegistryUnavailable("the line broke")
        return told


async def test_what_fails_after_the_move_does_not_make_it_failed(
    registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def publish(promotion: Promotion) -> None:
        told.append(promotion.bundle)
        raise OSError("no broker")

    swap, replicas = await make("g1", "g2", publish=publish)
    updates, aliases = (Away(monkeypatch, registry, name) for name in ("update_promotion", "aliases"))
    move = Away(monkeypatch, registry, "move", after=True)

    def moved(*args: Any, **kwargs: Any) -> Any:
        updates.times = aliases.times = 3
        return move(*args, **kwargs)

    monkeypatch.setattr(registry, "move", moved)
    assert (await ended(registry, (await swap.promote("b1", None, False, None)).id)).state == "live"
    move.times = 1  # it has moved, and nobody was told
    done = await ended(registry, (await swap.promote("b2", None, False, None)).id)
    assert (done.state, done.loaded) == ("live", 2)
    assert all(replica.live == {"home": "b2", "related": "b2"} for replica in replicas)
    await until(lambda: told == ["b1", "b2"])
    assert updates.times == aliases.times == move.times == 0


async def test_a_move_that_was_lost_is_a_failure(
    registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, _ = await make("g1")
    Away(monkeypatch, registry, "move").times = 1
    failed = await ended(registry, (await swap.promote("b1", None, False, None)).id)
    assert (failed.state, failed.reason) == ("failed", "no answer")
    assert registry.aliases().live == {}


async def test_what_had_moved_before_the_kill_is_live_though_a_replica_cannot_load_it_now(
    registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.swap.FLIP_TIMEOUT_S", 0.2)
    swap, replicas = await make("g1", "g2")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    replicas[1].failing.add("b2")
    replicas[0].slow.clear()
    interrupted = await swap.promote("b2", None, False, None)
    await swap.stop()
    registry.move("b2", {"home": "b1", "related": "b1"})
    await make(settle_s=0.5)
    replicas[0].slow.set()
    assert (await ended(registry, interrupted.id)).state == "live"
    await until(lambda: replicas[0].live == {"home": "b2", "related": "b2"})


async def test_a_harmful_promotion_of_several_surfaces_is_taken_back_once(
    registry: Registry, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    swap, replicas = await make("g1")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    harmful = await swap.promote("b2", None, False, None)
    await ended(registry, harmful.id)
    replicas[0].tallies = {"b2": Tally(80, 80)}
    await until(lambda: replicas[0].live == {"home": "b1", "related": "b1"})
    await until(lambda: registry.promotion(harmful.id).state == "rolled_back")
    rollbacks = [one.id for one in registry.promotions() if one.kind == "rollback"]
    for rollback in rollbacks:
        assert (await ended(registry, rollback)).state == "live"
    reason = registry.promotion(harmful.id).reason or ""
    assert len(rollbacks) == 2
    assert reason.startswith("errors: 80 of 80 answers failed, wanted at most 20%; ")
    assert all(rollback in reason for rollback in rollbacks)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(("age_s", "taken_back"), [(30.0, True), (25 * 3600.0, False)])
async def test_the_watch_goes_on_after_a_kill_for_the_time_that_is_left(
    registry: Registry, make: Any, monkeypatch: pytest.MonkeyPatch, age_s: float, taken_back: bool
) -> None:
    swap, replicas = await make("g1")
    await ended(registry, (await swap.promote("b1", None, False, None)).id)
    replicas[0].tallies = {"b2": Tally(1000, 0)}  # from before: it was live on another surface
    harmful = await swap.promote("b2", None, False, None)
    await ended(registry, harmful.id)
    await swap.stop()
    replicas[0].tallies = {"b2": Tally(1080, 80)}  # while nobody watches
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + age_s)
    await make()
    if taken_back:
        await until(lambda: registry.promotion(harmful.id).state == "rolled_back")
        await until(lambda: replicas[0].live == {"home": "b1", "related": "b1"})
    else:
        await asyncio.sleep(0.5)
        assert registry.promotion(harmful.id).state == "live"


class Slow:
    """A look at a bundle's files that takes until it is let go, and may find something."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.looks = 0
        self.finds: Exception | None = None

    def __call__(self, *_: Any) -> None:
        self.looks += 1
        self.go.wait(5)
        if self.finds is not None:
            raise self.finds


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr("deployments.swap.VERDICT_S", 0.1)
    return Slow()


async def test_a_slow_look_is_waited_for_in_the_background(registry: Registry, make: Any, slow: Slow) -> None:
    swap, replicas = await make("g1", smoke=slow)
    begun = await swap.promote("b1", None, False, None)
    assert (begun.state, registry.promotion(begun.id).state) == ("loading", "loading")
    assert replicas[0].log == []  # nobody loads what was not looked at
    slow.go.set()
    assert (await ended(registry, begun.id)).state == "live"
    slow.go.clear()
    slow.finds = BundleError("scores are no numbers")
    refused = await swap.promote("b2", None, False, None)
    assert refused.state == "loading"
    slow.go.set()
    end = await ended(registry, refused.id)
    assert (end.state, end.reason) == ("refused", "smoke request: scores are no numbers")
    assert end.figures["candidate"] == 0.2
    assert replicas[0].loaded == {"b1"}
    assert registry.aliases().live == {"home": "b1", "related": "b1"}


async def test_the_gate_and_what_is_expected_answer_at_once(registry: Registry, make: Any, slow: Slow) -> None:
    swap, _ = await make("g1", smoke=slow)
    registry.move("b2", {"home": None, "related": None})
    for bundle, expected in (("b1", None), ("b3", "b1")):
        with pytest.raises(GateRefused) as refused:
            await swap.promote(bundle, None, False, expected)
        assert registry.promotion(str(refused.value.figures["promotion"])).state == "refused"
    assert slow.looks == 0


async def test_asking_again_while_it_is_under_way_joins(registry: Registry, make: Any, slow: Slow) -> None:
    swap, _ = await make("g1", smoke=slow)
    both = await asyncio.gather(*(swap.promote("b1", None, False, None) for _ in range(2)))
    third = await swap.promote("b1", ["related", "home"], False, None)
    assert {one.id for one in both} == {third.id}
    other = await swap.promote("b1", ["home"], False, None)
    assert other.id != third.id
    with pytest.raises(GateRefused, match="expected b3"):
        await swap.promote("b1", None, False, "b3")
    slow.go.set()
    assert [(await ended(registry, one.id)).state for one in (third, other)] == ["live", "live"]
    assert slow.looks == 2
    assert (await swap.promote("b1", None, False, None)).state == "live"


async def test_a_rollback_looks_in_the_background_and_is_joined_too(
    registry: Registry, make: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, _ = await make("g1")
    for bundle in ("b1", "b2"):
        await ended(registry, (await swap.promote(bundle, None, False, None)).id)
    monkeypatch.setattr("deployments.examination.verify", slow)
    both = [await swap.rollback("home") for _ in range(2)]
    assert both[0].id == both[1].id
    slow.go.set()
    assert (await ended(registry, both[0].id)).state == "live"
    assert registry.aliases().live == {"home": "b1", "related": "b2"}
    slow.finds = BundleError("a bit is flipped")
    with pytest.raises(GateRefused, match="hashes: a bit is flipped"):
        await swap.rollback("related")


async def test_a_look_that_was_interrupted_is_made_again(registry: Registry, make: Any, slow: Slow) -> None:
    swap, _ = await make("g1", smoke=slow)
    begun = await swap.promote("b1", None, False, None)
    await swap.stop()
    slow.finds = BundleError("scores are no numbers")
    slow.go.set()
    await make(smoke=slow)
    assert (await ended(registry, begun.id)).state == "refused"
    assert slow.looks == 2


async def test_an_alias_moved_by_others_is_followed(registry: Registry, make: Any) -> None:
    _, replicas = await make("g1", "g2")
    registry.move("b3", {"home": None})
    await until(lambda: all(replica.live.get("home") == "b3" for replica in replicas))
    with pytest.raises(Conflict):
        registry.move("b1", {"home": "b2"})
