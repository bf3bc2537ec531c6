"""Fixtures that several folders of tests use, and the skipping of tests that `pytest -m` did not ask for."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from hypothesis import settings
from needs import IMPORTED, reason_to_skip
from running import Running
from xdist.scheduler.loadfile import LoadFileScheduling

# before anything imports torch: two threads on two cores spin while they wait for each other, and take twice as long
os.environ.setdefault("OMP_NUM_THREADS", "1")

SERVED = ("tests/deployments/local/test_server.py", "tests/pages/test_page.py", "tests/test_readme.py")
"""The files whose tests use `serving`."""

# `make test` draws the same everywhere, so that a change lands by what it does; `make laws` draws anew
settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("hundred", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("anew", max_examples=500, deadline=None)
settings.load_profile("fast")


class SharedServer(LoadFileScheduling):
    """Keep a file's tests in one process, and in one also the files that use the session's server: it starts once."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "serving" if file in SERVED else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedServer | None:
    return SharedServer(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if reason := reason_to_skip(marks, config.option.markexpr):
            item.add_marker(pytest.mark.skip(reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave thousands of tests and their parameters out of every later garbage collection, as tests ask for many."""
    session.config.stash[IMPORTED] = frozenset(sys.modules)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let HTTP clients read one certificate authority: the usual 140 take each new client 20 ms."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(first + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def serving(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Run `make serve`'s server with the embedded models, once for all tests. It must leave no process behind."""
    using = [item.nodeid for item in request.session.items if "serving" in getattr(item, "fixturenames", ())]
    assert all(nodeid.startswith(SERVED) for nodeid in using), f"add their files to SERVED: {using}"
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
