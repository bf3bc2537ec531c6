"""Lists this machine's NVIDIA GPUs by nvidia-smi, which starts no CUDA context and comes with the driver."""

import shutil
import subprocess
from dataclasses import dataclass

MIB = 1 << 20
FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version", "compute_cap")


@dataclass(frozen=True)
class Gpu:
    """A GPU. total, free: bytes of memory. capability: as (9, 0) for Hopper."""

    index: int
    name: str
    total: int
    free: int
    driver: str
    capability: tuple[int, int]


def query(*arguments: str) -> list[list[str]]:
    """Return the rows of nvidia-smi's answer; none where there is no driver or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        command = [program, *arguments, "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [[field.strip() for field in line.split(",")] for line in lines if line.strip()]


def gpus() -> list[Gpu]:
    """Return the GPUs of this machine; [] where there is none."""
    return [_gpu(row) for row in query(f"--query-gpu={','.join(FIELDS)}") if len(row) == len(FIELDS)]


def _gpu(row: list[str]) -> Gpu:
    index, name, total, free, driver, capability = row
    major, _, minor = capability.partition(".")
    return Gpu(int(index), name, _bytes(total), _bytes(free), driver, (_number(major), _number(minor)))


def _bytes(mebibytes: str) -> int:
    return _number(mebibytes) * MIB


def _number(text: str) -> int:
    """Return a number; 0 for nvidia-smi's "[N/A]"."""
    return int(text) if text.isdigit() else 0
