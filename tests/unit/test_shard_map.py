"""Where shards are: even, with few moves, and read where they are caught up."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.shard_map import GRACE_S, ShardMap, spread

names = st.sampled_from(["n1", "n2", "n3", "n4"])


@given(st.integers(1, 12), st.sets(names, min_size=1), st.dictionaries(st.integers(0, 14), names))
def test_every_shard_has_one_living_node_evenly_and_few_move(
    shards: int, nodes: set[str], held: dict[int, str]
) -> None:
    found = spread(shards, nodes, held)
    assert found.keys() == set(range(shards))
    loads = [list(found.values()).count(node) for node in nodes]
    assert sum(loads) == shards
    assert max(loads) - min(loads) <= 1
    assert spread(shards, nodes, found) == found
    stay = [shard for shard in found if held.get(shard) in nodes]
    before = [[held[shard] for shard in stay].count(node) for node in nodes]
    most = -(-shards // len(nodes))
    assert sum(found[shard] != held[shard] for shard in stay) <= sum(max(0, one - most + 1) for one in before)


def test_no_node_no_shard() -> None:
    assert spread(3, [], {0: "n1"}) == {}


def test_a_shard_of_a_dead_node_moves_at_once() -> None:
    shards = ShardMap(2)
    shards.look(["n1", "n2"], {}, 0.0)
    assert shards.owners == {0: "n1", 1: "n2"}
    assert shards.look(["n2"], {"n2": {1: "shown"}}, 1.0) == {"n2": {0, 1}}
    assert shards.owners == {0: "n2", 1: "n2"}


def test_a_node_that_joins_is_asked_once_it_has_caught_up_and_the_old_one_keeps_on_until_all_have_heard() -> None:
    shards = ShardMap(2)
    shards.look(["n1"], {}, 0.0)
    assert shards.look(["n1", "n2"], {"n1": {0: "shown", 1: "shown"}}, 1.0) == {"n1": {0, 1}, "n2": {1}}
    assert shards.owners == {0: "n1", 1: "n1"}
    shards.look(["n1", "n2"], {"n2": {1: "catching up"}}, 2.0)
    assert shards.owners == {0: "n1", 1: "n1"}
    assert shards.look(["n1", "n2"], {"n2": {1: "shown"}}, 3.0) == {"n1": {0, 1}, "n2": {1}}
    assert shards.owners == {0: "n1", 1: "n2"}
    assert shards.look(["n1", "n2"], {"n2": {1: "shown"}}, 3.1 + GRACE_S) == {"n1": {0}, "n2": {1}}


def test_on_a_disk_that_nodes_share_the_old_one_gives_way_first() -> None:
    shards = ShardMap(2)
    shards.look(["n1"], {}, 0.0)
    shards.look(["n1", "n2"], {}, 1.0)
    assert shards.look(["n1", "n2"], {"n2": {1: "blocked"}}, 2.0) == {"n1": {0}, "n2": {1}}


def test_a_new_keeper_of_the_map_finds_the_shards_where_they_are() -> None:
    shards = ShardMap(2)
    assert shards.look(["n1", "n2"], {"n1": {1: "shown"}, "n2": {0: "shown"}}, 0.0) == {"n1": {1}, "n2": {0}}
