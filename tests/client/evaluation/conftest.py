"""Fixtures of the tests of `run` and `evaluate`."""

from collections.abc import Iterator
from typing import Any

import pytest
from command import runner
from served_folder import serving


@pytest.fixture
def diptych(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command in this process."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("DIPTYCH_URL", raising=False)
    return runner(capsys)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url
