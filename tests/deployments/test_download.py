"""Tests the download of a config's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import download
from serve.errors import ModelError


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the hub, and collect what is fetched."""
    hubs: list[str] = []

    def locate(hub: str, *_: Any, **__: Any) -> Path:
        hubs.append(hub)
        if "paligemma" in hub:
            raise ModelError("Its licence must be accepted.")
        return Path(hub)

    monkeypatch.setattr(download, "locate", locate)
    return hubs


def config(tmp_path: Path, *models: dict[str, Any]) -> str:
    args = {"models": list(models), "gateway": {"listen": {"port": 8000}}}
    app = {"name": "diptych", "route_prefix": "/", "import_path": "deployments.app:build", "args": args}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [app]}))
    return str(file)


def test_models_without_a_checkpoint_download_nothing(
    tmp_path: Path, located: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    remote = {"name": "far", "remote": "https://example.com/v1", "model": "m"}
    simulated = {"name": "llava-1.5-13b", "simulate": {}}
    file = config(tmp_path, {"name": "llava-1.5-7b", "num_gpus": 1}, simulated, {"name": "rapidocr"}, remote)
    assert download.main(["--config", file]) == 0
    assert located == ["llava-hf/llava-1.5-7b-hf"]
    assert capsys.readouterr().err == ""


def test_checkpoint_that_is_missing_is_named(
    tmp_path: Path, located: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, {"name": "paligemma-3b-mix-448"}, {"name": "llava-1.5-7b"})
    assert download.main(["--config", file]) == 1
    assert len(located) == 2
    assert capsys.readouterr().err == "paligemma-3b-mix-448: Its licence must be accepted.\n"
