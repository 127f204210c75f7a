"""What Ray says to a driver stands on stderr: stdout is for results, which programs read."""

import pytest
from ray._private import worker

from deployments.cluster import _messages_to_stderr


def test_a_message_of_the_raylet_is_no_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # as it was, afterwards
    _messages_to_stderr()
    worker.print_to_stdstream({"lines": ["too many workers"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert "too many workers" in said.err
