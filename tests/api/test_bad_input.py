"""Bad input over a real port with a gateway's limits, and a good request after each."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import bad_input
import httpx
import pytest
import uvicorn
from served import Server, router

from deployments.server.timed_protocol import TimedHttpProtocol
from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.limits import Limits


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = create_app(router(FakeEngine("[0.1, 0.1, 0.5, 0.5]"), FakeEngine("<loc0100><loc0100><loc0500><loc0500> cat")))
    protocol: Any = partial(TimedHttpProtocol, limits=Limits())
    config = uvicorn.Config(app, http=protocol, ws="none", port=0, log_config=None, lifespan="off")
    with Server(config).running() as address, httpx.Client(base_url=address, timeout=30) as caller:
        yield caller


@pytest.mark.parametrize("case", bad_input.CASES, ids=lambda case: case.name[:60])
def test_bad_input_is_refused_and_the_next_request_answered(client: httpx.Client, case: bad_input.Case) -> None:
    bad_input.ask(client, case)
    bad_input.control(client)
