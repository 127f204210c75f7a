"""The in-process door: a folder and a list of requests are enough."""

from app.door import load_bundle
from app.recommend import Answer, Request
from tests.golden.test_bundle import HERE


def test_a_bundle_answers_by_itself() -> None:
    door = load_bundle(HERE)
    answers = door.recommend([Request(history=["i1", "i5"], k=5), Request(k=5)])
    assert all(isinstance(answer, Answer) for answer in answers)
    mine, anybody = (answer for answer in answers if isinstance(answer, Answer))
    assert len(mine.items) == len(anybody.items) == 5
    assert mine.degraded is anybody.degraded is None
    assert {"i1", "i5"}.isdisjoint(item.item_id for item in mine.items)
    gone = anybody.items[0].item_id
    door.state.put_item(gone, None)
    door.state.add("7", "i1", time_ms=door.bundle.statistics.as_of)
    later = door.recommend([Request(user_id="7", k=50)])[0]
    assert isinstance(later, Answer)
    assert {"i1", gone}.isdisjoint(item.item_id for item in later.items)
