"""What is sent while the broker works on something goes out together."""

from app.events.gathering import Gathering
from app.events.parcels import Single


def parcel() -> Single:
    return Single((b"key", b"value"), lambda _: None)


def test_the_first_goes_at_once_and_the_others_when_it_has_been_acknowledged() -> None:
    gathering, first, second, third = Gathering(), parcel(), parcel(), parcel()
    assert gathering.add(first, 0.0) == [first]
    assert gathering.add(second, 0.1) == []
    assert gathering.add(third, 0.2) == []
    assert gathering.acknowledged(0.3) == [second, third]
    assert gathering.acknowledged(0.4) == []
    assert gathering.acknowledged(0.5) == []
    assert gathering.add(first, 0.6) == [first]


def test_one_that_never_is_acknowledged_holds_the_others_up_for_a_second() -> None:
    gathering, first, second, third = Gathering(), parcel(), parcel(), parcel()
    assert gathering.add(first, 10.0) == [first]
    assert gathering.add(second, 10.5) == []
    assert gathering.ready(10.9) == []
    assert gathering.ready(11.0) == [second]
    assert gathering.add(third, 11.5) == []
    assert gathering.acknowledged(11.6) == [], "one of the two is under way yet"
    assert gathering.ready(11.7, at_once=True) == [third]
