"""A state out of which somebody was erased equals one that never heard of what came before, byte for byte."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.events.schema import EVENTS, MERGE
from app.settings import Settings
from app.state.batch import Batch, StateEvent, session_key, user_key
from app.state.memory import fold_everything
from app.state.messages import without_erased
from app.state.store import StateStore
from tests.property.test_state import PARTITIONS, log, stored, wishes

SETTINGS = Settings()
SALT = Salt(b"salt")
REQUESTED_MS = 1 << 40
without_ids = wishes.map(lambda wish: {**wish, "event_id": None})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(without_ids, max_size=30),
    shares=st.tuples(*[st.floats(0, 1)] * PARTITIONS),
    late=st.floats(0, 1),
    missed=st.booleans(),
)
def test_the_state_is_as_if_nothing_had_come_before(
    drawn: list[dict[str, object]], shares: tuple[float, ...], late: float, missed: bool
) -> None:
    events = [event for event in log(drawn) if not _merged_elsewhere(event, drawn)]
    ends = {part: round(share * sum(e.partition == part for e in events)) for part, share in enumerate(shares)}
    ends = {
        part: sorted(e.offset for e in events if e.partition == part)[:end][-1] + 1 for part, end in ends.items() if end
    }
    before = [event for event in events if event.offset < ends.get(event.partition, 0)]
    after = [event for event in events if event.offset >= ends.get(event.partition, 0)]
    boundary = Boundary(REQUESTED_MS, {EVENTS: TopicEnd("t", ends)})
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(Path(folder) / "one", SETTINGS)
        store.topic_ids[EVENTS] = "t"
        store.apply(Batch(events=before))
        sessions = store.known("a").sessions
        erased = Erased(
            SALT, [Entry(frozenset({SALT.key("user", "a"), *(SALT.key("session", s) for s in sessions)}), boundary)]
        )
        cut = round(late * len(after))
        store.apply(Batch(events=after[:cut]))  # came in before the writer heard of it
        if missed:
            store.erase_known(erased)
        else:
            store.erase({user_key("a"): [boundary]} | {session_key(name): [boundary] for name in sessions})
        store.apply(Batch(events=after[cut:]))
        store.close()

        left = without_erased(events, erased.on(EVENTS, "t"))
        assert stored(Path(folder) / "one") == fold_everything(left, SETTINGS.state.max_history, 1)
        again = StateStore(Path(folder) / "two", SETTINGS)
        again.apply(Batch(events=left))  # a replay from zero
        again.close()
        assert stored(Path(folder) / "two") == stored(Path(folder) / "one")
        assert all(event.user_id != "a" for event in left if event in before)


def _merged_elsewhere(event: StateEvent, drawn: list[dict[str, object]]) -> bool:
    """A session merges into one user here: which of two holds is forgotten with the one that is erased."""
    owners = [wish["user"] for wish in drawn if wish["kind"] == MERGE and wish["session"] == event.session_id]
    return event.event_type == MERGE and event.user_id != next(owner for owner in owners if owner is not None)
