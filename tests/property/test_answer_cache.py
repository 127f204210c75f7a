"""A cached answer never hides an event, a withdrawal, a changed item or another bundle."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.cache import AnswerCache
from app.recommend import Chain, Request
from tests.unit.chain_world import World, bundle, columns_of, ids_of

BUNDLES = {name: bundle(name, mix) for name, mix in (("b1", None), ("b2", (("popularity", 30), ("content", 5))))}
USERS = ("u", "v")
ITEMS = st.integers(0, 59).map(lambda row: f"i{row}")


class CachedChain(RuleBasedStateMachine):
    """Two worlds see the same changes, one of them through the cache; their answers are equal at every moment."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.now = 0.0
        self.cache = AnswerCache(self.folder / "cache", 5_000_000, clock=lambda: self.now)
        self.worlds = {name: World(made) for name, made in BUNDLES.items()}
        self.live = "b1"
        for world in self.worlds.values():  # decay counts from the watermark, which stands still from here
            world.click("other", "i0", start_ms=200 * 86_400_000)

    def chain(self, cached: bool) -> Chain:
        chain = self.worlds[self.live].chain
        return Chain(
            "home",
            chain.surface,
            chain.target,
            chain.state,
            chain.stages,
            answers=self.cache if cached else None,
        )

    @rule(user=st.sampled_from(USERS), item=ITEMS)
    def click(self, user: str, item: str) -> None:
        for world in self.worlds.values():
            world.click(user, item)

    @rule(item=ITEMS)
    def withdraw(self, item: str) -> None:
        for world in self.worlds.values():
            world.put(item, None)

    @rule(item=ITEMS, genre=st.sampled_from(["Drama", "Horror"]))
    def put(self, item: str, genre: str) -> None:
        for world in self.worlds.values():
            world.put(item, {**columns_of(int(item[1:])), "genres": [genre]})

    @rule()
    def swap(self) -> None:
        self.live = "b2" if self.live == "b1" else "b1"

    @rule(seconds=st.sampled_from([1, 50]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def same_answers(self) -> None:
        if not hasattr(self, "worlds"):
            return
        requests = [
            Request(user_id="u", k=5),
            Request(user_id="u", k=5, filters={"genres": {"any": ["Drama"]}}),
            Request(user_id="v", k=5, explain=True),
            Request(k=5),
        ]
        world = self.worlds[self.live]
        fresh = World.outcomes_of(self.chain(cached=False), requests)
        for _ in range(2):
            kept = World.outcomes_of(self.chain(cached=True), requests)
            assert [ids_of(answer) for answer in kept] == [ids_of(answer) for answer in fresh]
            assert all(answer.bundle == self.live for answer in kept)
        assert all(answer.cache_hit for answer in kept)
        assert not any(answer.cache_hit for answer in fresh)
        assert world.target.live.sequence == self.worlds["b1"].target.live.sequence

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
            self.folder.rmdir()


CachedChain.TestCase.settings = settings(max_examples=12, stateful_step_count=10, deadline=None)
TestCachedChain = CachedChain.TestCase


def test_answers_expire_and_keep_their_explanations(tmp_path: Path) -> None:
    now = [0.0]
    cache = AnswerCache(tmp_path / "cache", 5_000_000, clock=lambda: now[0])
    world = World(BUNDLES["b1"], answers=cache)
    first, second = (world.answer(user_id="u", explain=True) for _ in range(2))
    assert (first.cache_hit, second.cache_hit) == (False, True)
    assert second.items == first.items
    assert second.body()["cache_hit"] is True
    now[0] += world.surface.cache_ttl_s
    assert world.answer(user_id="u", explain=True).cache_hit is False
    cache.close()
    assert not (tmp_path / "cache").exists()
