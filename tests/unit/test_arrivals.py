"""The clock of what may be forgotten."""

import time

from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE

from app.state.arrivals import Arrivals

DAY = 86_400_000


class Arrived:
    """A message as far as this looks at it."""

    def __init__(self, moment: int, kind: int = TIMESTAMP_CREATE_TIME) -> None:
        self._told = (kind, moment)

    def timestamp(self) -> tuple[int, int]:
        return self._told


def reached(*seen: tuple[int, Arrived], behind: dict[int, int]) -> int | None:
    arrivals = Arrivals()
    for partition, message in seen:
        arrivals.saw(("events", partition), message)
    arrivals.saw(("items", 0), Arrived(99 * DAY))
    return arrivals.reached_ms("events", {("items", 0): 5, **{("events", p): left for p, left in behind.items()}})


def test_a_partition_that_lags_holds_it_back_and_one_that_is_read_does_not() -> None:
    seen = ((0, Arrived(3 * DAY)), (1, Arrived(30 * DAY)))
    assert reached(*seen, behind={0: 1, 1: 1}) == 3 * DAY
    assert reached(*seen, behind={0: 0, 1: 7}) == 30 * DAY
    assert reached(*seen, behind={0: 0, 1: 0, 2: 0}) == 30 * DAY
    assert reached(*seen, *[(0, Arrived(4 * DAY))] * 32, behind={0: 1, 1: 1}) == 4 * DAY


def test_nothing_is_known_of_a_partition_before_something_is_read_there() -> None:
    assert reached(behind={0: 0}) is None
    assert reached((0, Arrived(3 * DAY)), behind={0: 0, 1: 1}) is None


def test_a_message_of_a_wrong_clock_says_nothing_of_what_stands_behind_it() -> None:
    now = int(time.time() * 1000)
    years_ahead, a_year_ahead = Arrived(now + 900 * DAY), Arrived(370 * DAY)
    assert reached((0, Arrived(5 * DAY)), (0, years_ahead), behind={0: 1}) == 5 * DAY
    assert reached((0, Arrived(5 * DAY)), (0, a_year_ahead), behind={0: 1}) == 5 * DAY  # in a log that is old itself
    assert reached((0, Arrived(5 * DAY)), (0, years_ahead), behind={0: 0}) == 5 * DAY
    assert reached(*[(0, years_ahead)] * 40, behind={0: 1}) is None
    assert reached((1, Arrived(5 * DAY)), *[(0, years_ahead)] * 40, behind={0: 0, 1: 1}) == 5 * DAY


def test_without_a_timestamp_a_message_arrived_now() -> None:
    now = int(time.time() * 1000)
    found = reached((0, Arrived(-1, TIMESTAMP_NOT_AVAILABLE)), behind={0: 1})
    assert found is not None
    assert now <= found <= now + DAY
