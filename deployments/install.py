"""Makes .venv and fills it once: `make serve` and `make test` call this first. Plain Python, no package needed.

DEVICE=front is a machine of gateways alone, without torch and engines. On a CPU torch comes first: its CPU build
(2.13.0+cpu) from wherever pip is told to look, else from PyTorch's own CPU index, which also has the matching
torchvision. The files of those two differ between sources, so their hashes are not checked. Where only a GPU build of
torchvision is available, serve/engines/vllm/torchvision.py makes it work with a CPU torch. Everything else is installed
from locks/*.txt, with hashes: by uv where it can reach the packages, else by pip, which supports more ways (mirrors in
its configuration, proxies). A stamp in .venv records what was installed, so that a second call does nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deployments" / "locks"
ASIDE = ROOT / "build" / "triton"
"""Triton for one test: in the environment of a CPU, vLLM would find it and complain."""
TORCH, TORCHVISION = "torch==2.13.0+cpu", "torchvision==0.28.0+cpu"
INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = {"cpu": 5, "gpu": 20, "front": 2}
OUT_OF_REACH = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "Temporary failure in name resolution",
    "Failed to establish a new connection",
    "Could not fetch URL",
    "ProxyError",
    "SSLError",
    "ReadTimeoutError",
)


class InstallError(Exception):
    """The installation is impossible. Its message says why and what to do, in one sentence."""


def main() -> int:
    """Install what is missing. Return 0, or 1 where that is impossible, with a sentence on stderr."""
    parser = argparse.ArgumentParser("install.py")
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    parser.add_argument("--ocr", action="store_true", default=bool(os.environ.get("OCR")), help="also RapidOCR")
    parser.add_argument("--device", choices=tuple(DISK_GB), default=os.environ.get("DEVICE") or found_device())
    parser.add_argument("--packages", action="store_true", help="without Diptych itself, as a layer of an image")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    options = parser.parse_args()
    try:
        again = other_python()
        if again is not None:
            return subprocess.call([again, *sys.argv])
        install(options.venv, options.device, options.dev, options.ocr, options.packages)
    except InstallError as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    return 0


def install(venv: Path, device: str, dev: bool, ocr: bool = False, packages: bool = False) -> None:
    """Install the locked packages into `venv`, and Diptych unless `packages` is set. Raises InstallError."""
    program, tests = Stamp(venv, device, LOCKS / f"{device}.txt"), Stamp(venv, "dev", LOCKS / "dev.txt")
    reader = Stamp(venv, "ocr", LOCKS / "ocr.txt")
    aside = Stamp(ASIDE, "triton", LOCKS / "triton.txt")
    wants_triton = dev and device == "cpu" and not aside.holds()
    wants_reader = ocr and not reader.holds()
    if program.holds() and (tests.holds() or not dev) and not wants_triton and not wants_reader:
        return
    began = time.monotonic()
    if platform.system() != "Linux":
        raise InstallError(f"vLLM runs on Linux only, and this is {platform.system()}. On Windows use WSL 2.")
    pip = Pip(venv)
    if not program.holds():
        if device != "front":
            check_machine(device)
        again = pip.log.exists()
        if not again:
            check_disk(venv, DISK_GB[device])
        make(venv)
        what = "Bringing up to date" if again else "Setting up (once, some minutes)"
        print(f"{what}: {show(venv)} for {device.upper()}. Details: {show(pip.log)}", flush=True)
        if device == "cpu":
            torch(pip)
        pip.install_lock("packages, hash by hash", device)
        if packages:
            return
        pip.install("Diptych itself", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        program.set()
    if dev and not tests.holds():
        pip.install_lock("what the tests need", "dev")
        tests.set()
    if wants_triton:
        triton_aside(pip)
        aside.set()
    if wants_reader:
        pip.install_lock("RapidOCR", "ocr")
        reader.set()
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)


def torch(pip: Pip) -> None:
    """Install the CPU builds of torch and torchvision from the nearest source that has them."""
    if pip.try_install("torch", "--no-deps", TORCH):
        if pip.try_install("torchvision", "--no-deps", TORCHVISION):
            return
    else:
        pip.install("torch from PyTorch's CPU index", "--no-deps", "--index-url", INDEX, TORCH)
    if not pip.try_install("torchvision from PyTorch's CPU index", "--no-deps", "--index-url", INDEX, TORCHVISION):
        pip.install_lock("torchvision", "torchvision")


def triton_aside(pip: Pip) -> None:
    """Install Triton outside the environment. Where it cannot be had, the test that interprets it is skipped."""
    lock = ("--no-deps", "--require-hashes", "-r", str(LOCKS / "triton.txt"))
    shutil.rmtree(str(ASIDE), ignore_errors=True)
    if not pip.try_install(f"Triton, into {show(ASIDE)}, for a test", "--no-compile", "--target", str(ASIDE), *lock):
        print(f"  which is out of reach: that test is skipped. To try again: rm -r {show(ASIDE)}", flush=True)
    ASIDE.mkdir(parents=True, exist_ok=True)


class Pip:
    """Runs the pip of one environment; its output goes to a file."""

    def __init__(self, venv: Path) -> None:
        self.python = venv / "bin" / "python"
        self.log = venv / "install.log"

    def try_install(self, what: str, *arguments: str) -> bool:
        """Run `pip install` and return whether it succeeded: a source that lacks a package is no error."""
        print(f"  {what}", flush=True)
        return self._runs("pip", "install", "--retries", "1", "--timeout", "30", *arguments)

    def install_lock(self, what: str, name: str) -> None:
        """Install the packages of locks/NAME.txt, by uv if possible. Raises InstallError with what to do."""
        locked = ("--no-deps", "--require-hashes", "-r")
        lock = str(LOCKS / f"{name}.txt")
        if self._runs("pip", "install", "--retries", "1", *locked, str(LOCKS / "uv.txt")):
            print(f"  {what}", flush=True)
            if self._runs("uv", "pip", "install", "--system-certs", "--python", str(self.python), *locked, lock):
                return
        self.install(what, *locked, lock)

    def install(self, what: str, *arguments: str) -> None:
        """Run `pip install`. Raises InstallError with what to do."""
        if not self.try_install(what, *arguments):
            raise InstallError(reason(what, self.log.read_bytes()[self.began :].decode(errors="replace"), self.log))

    def _runs(self, module: str, *arguments: str) -> bool:
        command = [str(self.python), "-m", module, *arguments]
        with self.log.open("ab") as log:
            self.began = log.tell()
            return subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, cwd=str(ROOT)) == 0


class Stamp:
    """A file in the environment that records which version of a lock is installed there."""

    def __init__(self, venv: Path, name: str, lock: Path) -> None:
        self.file = venv / f"installed-{name}"
        project = ROOT / "pyproject.toml"  # not in an image's layer of packages
        self.digest = hashlib.sha256(
            lock.read_bytes() + (project.read_bytes() if project.exists() else b"")
        ).hexdigest()

    def holds(self) -> bool:
        return self.file.exists() and self.file.read_text() == self.digest

    def set(self) -> None:
        self.file.write_text(self.digest)


def reason(what: str, output: str, log: Path) -> str:
    """Return why pip failed, from its output, in one sentence."""
    if "No space left on device" in output:
        return f"The disk is full: {what} could not be installed. Free some space and run it again."
    if any(sign in output for sign in OUT_OF_REACH):
        return (
            f"pip cannot reach its package index, so {what} could not be installed. Check the network, or tell pip of "
            f"a mirror (PIP_INDEX_URL), and run it again. Details: {show(log)}"
        )
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        return f"A downloaded file is not the one that was locked: {what} was not installed. Details: {show(log)}"
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return f"{what} could not be installed: {errors[0][7:] if errors else 'pip failed'}. Details: {show(log)}"


def make(venv: Path) -> None:
    """Create an empty environment where there is none or a broken one."""
    python = venv / "bin" / "python"
    if python.exists() and quiet(str(python), "-m", "pip", "--version"):
        return
    created = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if created.returncode != 0:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InstallError(
            f"Python's venv module is incomplete here. On Debian or Ubuntu: apt install python{version}-venv. "
            f"({' '.join((created.stdout + created.stderr).split())[:200]})"
        )


def check_machine(device: str) -> None:
    """Raise InstallError where the machine lacks what engines need when they start, and pip does not install.

    torch.compile builds C++ for a CPU and Triton C for a GPU, each a module of Python's; vLLM's CPU kernels link
    libnuma. Without one of them an engine is installed, and dies when it warms up.
    """
    missing = {}
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing["a C++ compiler"] = "g++"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing["Python's headers"] = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    if device == "cpu" and not has_library("libnuma.so.1"):
        missing["libnuma"] = "libnuma1"
    if missing:
        raise InstallError(
            f"This machine lacks {', '.join(missing)}, which vLLM wants when it starts a model. "
            f"On Debian or Ubuntu: apt install {' '.join(missing.values())}"
        )


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def check_disk(venv: Path, wanted_gb: int) -> None:
    """Raise InstallError where the installation would not fit."""
    free = shutil.disk_usage(str(venv.parent)).free / 1e9
    if free < wanted_gb:
        raise InstallError(f"Too little disk: {wanted_gb} GB wanted in {show(venv.parent)}, {free:.1f} GB free.")


def other_python() -> str | None:
    """Return a supported Python to use in place of this one; None for this one. Raises InstallError without any."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return None
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        python = shutil.which(f"python3.{minor}")
        if python and quiet(python, "-c", ""):
            return python
    raise InstallError(
        f"Python 3.{OLDEST[1]} to 3.{NEWEST[1]} is needed, and this is {platform.python_version()}. "
        "Install one, or name it: make PYTHON=/path/to/python3.11 serve"
    )


def found_device() -> str:
    """Return "gpu" where an NVIDIA driver answers, else "cpu". DEVICE=cpu or gpu decides otherwise."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    return "gpu" if quiet("nvidia-smi", "-L") else "cpu"


def show(path: Path) -> str:
    return os.path.relpath(str(path))


def quiet(*command: str) -> bool:
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


if __name__ == "__main__":
    sys.exit(main())
