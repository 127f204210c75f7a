"""schemathesis over the OpenAPI document, in process: whatever is sent, no 5xx and always the contract's problem."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from app.api.application import create_edge
from tests.unit.fake_service import FakeService

schema = schemathesis.openapi.from_asgi("/openapi.json", create_edge(FakeService()))


@pytest.mark.timeout(120)
@schema.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_no_input_breaks_the_server(case: schemathesis.Case[Any]) -> None:
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error])
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"]
        body = response.json()
        assert body["status"] == response.status_code
        assert {"type", "title", "detail", "errors"} <= set(body)
