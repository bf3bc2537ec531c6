"""Random requests that the OpenAPI document allows: no 5xx, and responses as documented."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from lazy_module import LazyModule
from served import LLAVA, listening, message, plain, router

from serve.api.app import create_app
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine

EXAMPLES = int(os.environ.get("DIPTYCH_SCHEMATHESIS", "10"))
"""Number of requests for each operation. A few hundred find more, in minutes."""
schemathesis, checks = LazyModule("schemathesis"), LazyModule("schemathesis.checks")


def reply_text(prompt: Prompt) -> str:
    """Return a reply that the task can parse: boxes in the family's format, a number, or else a word, as of labels."""
    if "bounding box" in prompt.text:
        return "[0.1, 0.1, 0.5, 0.5]"
    if "detect" in prompt.text:
        return "<loc0100><loc0100><loc0500><loc0500> cat"
    return "2" if "How many" in prompt.text else "yes"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening(create_app(router(FakeEngine(reply_text), FakeEngine(reply_text)))) as url:
        yield url


OPERATIONS = [
    (method, route.path_format)
    for route in plain().routes
    if isinstance(route, APIRoute) and route.include_in_schema and route.path != "/v1/tasks/segment"  # needs a decoder
    for method in sorted(route.methods)
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_documented_request_gets_a_documented_response(method: str, path: str, address: str) -> None:
    schemathesis.serializer.alias("application/zip", "application/octet-stream")  # an uploaded folder is sent as it is
    schema = schemathesis.openapi.from_dict(plain().openapi())
    held = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    schema.config.update(base_url=address)
    control = {"model": LLAVA, "messages": [message()], "max_tokens": 2}

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=schema[path][method].as_strategy())
    def ask(case: Any) -> None:
        reply = case.call(timeout=20)
        case.validate_response(reply, checks=held)
        if reply.status_code >= 400:
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 2000
        assert httpx.post(f"{address}/v1/chat/completions", json=control).status_code == 200

    ask()
