"""What more than one kind of test needs."""

from collections.abc import Iterator

import pytest
from running import Running


@pytest.fixture(scope="session")
def serving() -> Iterator[Running]:
    """The embedded models, served as `make serve` does: one server for all tests; it must leave nothing behind."""
    running = Running()
    try:
        yield running.wait_for("Diptych is ready")
    finally:
        code = running.interrupt()
    assert code == 0, running.said()
    assert not running.left()


@pytest.fixture
def server(serving: Running) -> str:
    """The URL of a server with every embedded model."""
    return serving.url
