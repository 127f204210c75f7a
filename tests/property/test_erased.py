"""What is left out because of erasures: the vectorised rule against one written row by row."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from app.erasure.erased import NOBODY, Boundary, Entry, Erased, Salt, TopicEnd
from app.erasure.places import Subject

SALT = Salt(b"salt")
NAMES = ("a", "b", "c")
TIMES = st.integers(0, 20)
TOPIC_IDS = st.sampled_from(["one", "two", ""])

erasures = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        TIMES,
        st.none() | st.tuples(TOPIC_IDS, st.dictionaries(st.integers(0, 2), st.integers(0, 12), max_size=3)),
    ),
    max_size=4,
)
rows = st.lists(
    st.tuples(st.none() | st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 2), st.integers(0, 14), TIMES),
    max_size=30,
)


def table_of(found: list[tuple[str | None, str, int, int, int]]) -> pa.Table:
    columns = list(zip(*found, strict=True)) if found else [(), (), (), (), ()]
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int64(), pa.timestamp("us", "UTC"))
    columns[4] = [ms * 1000 for ms in columns[4]]  # type: ignore[call-overload]
    names = ["user_id", "session_id", "partition", "offset", "record_time"]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table([pa.chunked_array([part.slice(0, 3), part.slice(3)]) for part in arrays], names)


@settings(deadline=None)
@given(erasures, rows, TOPIC_IDS)
def test_rows_are_left_out_as_one_would_judge_them_one_by_one(
    erased: list[tuple[str, list[str], int, tuple[str, dict[int, int]] | None]],
    found: list[tuple[str | None, str, int, int, int]],
    topic_id: str,
) -> None:
    entries = [
        Entry(
            frozenset({SALT.key("user", user), *(SALT.key("session", name) for name in sessions)}),
            Boundary(at, {"events": TopicEnd(*end)} if end is not None else {}),
        )
        for user, sessions, at, end in erased
    ]
    table, everyone = table_of(found), Erased(SALT, entries)

    def wanted(row: tuple[str | None, str, int, int, int], stored: bool) -> bool:
        user, session, partition, offset, arrived = row
        for name, sessions, at, end in erased:
            if (user is not None and user != name) or (user is None and session not in sessions):
                continue
            below = end is not None and offset < end[1].get(partition, 0)
            if stored and (below or arrived < at):
                return True
            if not stored and (below if end is not None and end[0] == topic_id else arrived < at):
                return True
        return False

    on = everyone.on("events", topic_id)
    left_out = on.rows(table).tolist()
    assert left_out == [wanted(row, False) for row in found]
    assert everyone.stored("events", table).tolist() == [wanted(row, True) for row in found]
    for row, gone in zip(found, left_out, strict=True):
        user, session, *place = row
        assert on.message("user" if user is not None else "session", user or session, *place) == gone
        assert on.may(*place) or not gone
        assert not gone or on.keyed((user or session).encode(), *place)
    for user, sessions, at, end in erased[:1]:
        ends = {"events": TopicEnd(*end)} if end is not None else {}
        mine = Subject("e", user, tuple(sessions), at, ends).rows("events", table).tolist()
        alone = Erased(SALT, entries[:1]).stored("events", table).tolist()
        assert mine == alone


def test_what_happened_before_is_not_imported_again() -> None:
    entry = Entry(frozenset({SALT.key("user", "a")}), Boundary(100, {}))
    users, sessions = pa.array(["a", "a", "b", None], pa.string()), pa.array([None, "s", None, "a"], pa.string())
    times = np.array([99, 100, 99, 99])
    assert Erased(SALT, [entry]).imports(users, sessions, times).tolist() == [True, False, False, False]
    assert NOBODY.imports(users, sessions, times).tolist() == [False] * 4
