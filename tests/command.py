"""The command line, run in this process."""

import dataclasses
from collections.abc import Callable

import pytest

from serve import cli


@dataclasses.dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


def runner(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs `diptych` with the arguments that it is given."""

    def run(*arguments: object) -> Ran:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ran(status, out, err)

    return run
