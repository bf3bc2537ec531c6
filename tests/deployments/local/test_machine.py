"""A private Ray that does not start."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from deployments.local import machine
from deployments.local.machine import PrivateRay, RayEnded


@pytest.mark.parametrize(
    ("fault", "raised"), [(Exception("The current node\ntimed out."), RayEnded), (OSError("full"), OSError)]
)
def test_ray_that_gives_up_is_started_again_and_a_fault_is_not(
    fault: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*_: object) -> None:
        raise fault

    monkeypatch.setattr(machine, "_start", start)
    monkeypatch.setattr(machine, "_adopt_orphans", lambda: None)
    monkeypatch.setattr(machine.tempfile, "mkdtemp", lambda **_: str(tmp_path / "ray"))
    (tmp_path / "ray").mkdir()
    with patch.dict(os.environ), pytest.raises(raised, match="node timed out|full"), PrivateRay(1):
        pass
    assert not (tmp_path / "ray").exists()
