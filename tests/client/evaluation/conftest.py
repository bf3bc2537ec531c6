"""Fixtures of the tests of `run` and `evaluate`."""

from collections.abc import Iterator
from typing import Any

import pytest
from served_folder import Ran, serving

from serve import cli


@pytest.fixture
def diptych(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command in this process."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("DIPTYCH_URL", raising=False)

    def run(*words: object) -> Ran:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ran(status, out, err)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url
