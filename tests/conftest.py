"""Fixtures that several folders of tests use."""

from collections.abc import Iterator

import pytest
from running import Running


@pytest.fixture(scope="session")
def serving() -> Iterator[Running]:
    """Run `make serve`'s server with the embedded models, once for all tests. It must leave no process behind."""
    running = Running()
    try:
        yield running.wait_for("Diptych is ready")
    finally:
        code = running.interrupt()
    assert code == 0, running.output()
    assert not running.leftovers()


@pytest.fixture
def server(serving: Running) -> str:
    """Return the URL of the server with the embedded models."""
    return serving.url
