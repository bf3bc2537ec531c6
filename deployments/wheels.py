"""Takes wheels to a machine without a network in pieces: vLLM's has 327 MB, torch's 527, and not every way takes that.

Here: `pip download --no-deps -r deployments/locks/gpu.txt -d wheels`, and `python3 deployments/wheels.py split wheels`.
There: `python3 deployments/wheels.py join wheels`, then PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/wheels make gpu-check.
Plain Python, no package needed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

MB = 1_000_000
READ = 4 * MB
SUMS = "pieces.sha256"
"""The file that names each piece and each whole file with its digest, as sha256sum writes it."""


class Damaged(Exception):
    """A piece that is missing or another than the one that was split off, in one sentence."""


def main() -> int:
    """Split or join. Return 0, or 1 where a piece is missing or damaged, with a sentence on stderr."""
    parser = argparse.ArgumentParser("wheels.py", description=__doc__)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=int, default=50, help="largest piece, in megabytes")
    options = parser.parse_args()
    try:
        if options.what == "split":
            split(options.folder, options.mb * MB)
        else:
            join(options.folder)
    except Damaged as error:
        print(f"diptych: {error}", file=sys.stderr)
        return 1
    return 0


def split(folder: Path, most: int) -> None:
    """Replace each file of more than `most` bytes by pieces NAME.000, NAME.001, ..."""
    sums = []
    for file in sorted(folder.iterdir()):
        if file.stat().st_size <= most or file.name == SUMS:
            continue
        sums.append(f"{digest(file)}  {file.name}")
        with file.open("rb") as whole:
            number = 0
            while part := whole.read(most):
                piece = folder / f"{file.name}.{number:03}"
                piece.write_bytes(part)
                sums.append(f"{hashlib.sha256(part).hexdigest()}  {piece.name}")
                number += 1
        print(f"{file.name}: {number} pieces")
        file.unlink()
    with (folder / SUMS).open("a") as lines:
        lines.writelines(f"{line}\n" for line in sums)


def join(folder: Path) -> None:
    """Put the pieces together again, and remove them. Raises Damaged before anything is removed."""
    if not (folder / SUMS).exists():
        raise Damaged(f"{folder} has no {SUMS}, which `split` writes beside the pieces.")
    sums = {name: sum for sum, name in (line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines())}
    for name, sum in sums.items():
        pieces = [folder / piece for piece in sums if piece.startswith(f"{name}.") and piece[-3:].isdigit()]
        if not pieces or (folder / name).exists():
            continue
        for piece in pieces:
            if not piece.exists() or digest(piece) != sums[piece.name]:
                raise Damaged(f"{piece.name} is {'damaged' if piece.exists() else 'missing'}: bring it again.")
        with (folder / f"{name}.part").open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        if digest(folder / f"{name}.part") != sum:
            raise Damaged(f"{name} is not the file that was split: bring its pieces again.")
        (folder / f"{name}.part").rename(folder / name)
        for piece in pieces:
            piece.unlink()
        print(name)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    total = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(READ):
            total.update(part)
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
