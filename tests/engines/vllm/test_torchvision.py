import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.engines.vllm import torchvision


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torchvision and a torchaudio of our own, found before any real one."""
    for name in ("torchvision", "torchaudio"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("real = True")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torchvision, "declare", lambda: calls.append("declared"))
    return calls


@pytest.mark.parametrize("works", [True, False])
def test_only_a_broken_torchvision_gets_its_operators_declared(
    works: bool, package: Path, declared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(torchvision, "loads", lambda folder, library: tried.append(folder) or works)
    assert torchvision.Finder().find_spec("torchvision") is None  # found by whoever finds it ordinarily
    assert tried == [package / "torchvision"]
    assert declared == ([] if works else ["declared"])


def test_broken_torchaudio_is_replaced_by_an_empty_module(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision, "loads", lambda folder, library: False)
    spec = torchvision.Finder().find_spec("torchaudio")
    assert spec is not None and isinstance(spec.loader, torchvision.Empty)
    monkeypatch.setattr(torchvision, "loads", lambda folder, library: True)
    assert torchvision.Finder().find_spec("torchaudio") is None
    assert torchvision.Finder().find_spec("json") is None


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_children_inherit_the_repair_and_keep_their_own_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.theirs = True")
    path = os.pathsep.join([torchvision.CHILDREN, str(tmp_path)])
    code = "import sys; print([type(f).__name__ for f in sys.meta_path][0], sys.theirs, 'torch' in sys.modules)"
    assert child(code, PYTHONPATH=path) == "Finder True False"


def test_repair_is_idempotent_and_extends_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    torchvision.repair()
    torchvision.repair()
    assert os.environ["PYTHONPATH"] == os.pathsep.join([torchvision.CHILDREN, "/theirs"])
    assert sum(type(finder).__name__ == "Finder" for finder in sys.meta_path) == 1


@pytest.mark.engine
def test_torchvision_imports_here_and_in_a_child() -> None:
    assert child("import torchvision.ops; print('ok')", PYTHONPATH=torchvision.CHILDREN) == "ok"
