"""Waiting for a node that a busy machine starts slowly."""

import pytest

from deployments.head import patient


def test_a_node_is_asked_for_until_it_has_registered() -> None:
    answers: list[object] = [RuntimeError("not yet"), RuntimeError("not yet"), {"node": 1}]

    def get_node(address: str, node: str) -> object:
        assert (address, node) == ("gcs", "n")
        found = answers.pop(0)
        if isinstance(found, RuntimeError):
            raise found
        return found

    assert patient(get_node)("gcs", "n") == {"node": 1}
    assert not answers


def test_at_last_it_is_an_error() -> None:
    def get_node() -> object:
        raise RuntimeError("not yet")

    with pytest.raises(RuntimeError, match="not yet"):
        patient(get_node, 0.3)()
