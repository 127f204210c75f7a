"""How long until an event shows: from its POST to the first answer that has taken it into account."""

import time
from collections.abc import Sequence

from scripts.replay import Client


def event_to_recommendation_ms(
    host: str, port: int, users: Sequence[str], *, surface: str, give_up_s: float = 5.0
) -> tuple[list[float], int]:
    """For each user: clicks the first recommended item and asks until the answer no longer shows it.

    Returns:
        (milliseconds for each user whose answer changed within `give_up_s`, events that were accepted).
    """
    client = Client(host, port)
    found, accepted = [], 0
    for user in users:
        item = _first(client, surface, user)
        if item is None:
            continue
        began = time.perf_counter()
        event = {"user_id": user, "item_id": item, "event_type": "click", "surface": surface}
        status, _ = client.call("POST", "/v1/events", event)
        if status != 202:
            continue
        accepted += 1
        while time.perf_counter() - began < give_up_s:
            if _first(client, surface, user) != item:
                found.append((time.perf_counter() - began) * 1000)
                break
    return found, accepted


def _first(client: Client, surface: str, user: str) -> str | None:
    status, answer = client.call("POST", "/v1/recommend", {"surface": surface, "user_id": user, "k": 1})
    return str(answer["items"][0]["item_id"]) if status == 200 and answer["items"] else None
