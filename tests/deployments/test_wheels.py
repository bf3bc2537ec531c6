"""Wheels in pieces: what is joined is what was split, and a piece that is missing or damaged is named."""

import random
from pathlib import Path

import pytest

from deployments import wheels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a large wheel in four pieces and a small one."""
    (tmp_path / "large-1.0-py3.whl").write_bytes(random.Random(1).randbytes(3500))
    (tmp_path / "small-1.0-py3.whl").write_bytes(b"small")
    wheels.split(tmp_path, 1000)
    return tmp_path


def test_joined_wheel_is_the_one_that_was_split(folder: Path) -> None:
    pieces = sorted(file.name for file in folder.iterdir())
    large = [f"large-1.0-py3.whl.{number:03}" for number in range(4)]
    assert pieces == [*large, wheels.SUMS, "small-1.0-py3.whl"]
    for _ in range(2):  # a second time changes nothing
        wheels.join(folder)
    assert (folder / "large-1.0-py3.whl").read_bytes() == random.Random(1).randbytes(3500)
    assert not any(file.name in large for file in folder.iterdir())


def test_missing_and_damaged_pieces_are_named(folder: Path) -> None:
    piece = folder / "large-1.0-py3.whl.002"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    with pytest.raises(wheels.Damaged, match=r"whl\.002 is damaged"):
        wheels.join(folder)
    piece.unlink()
    with pytest.raises(wheels.Damaged, match=r"whl\.002 is missing"):
        wheels.join(folder)
    assert (folder / "large-1.0-py3.whl.000").exists()


def test_folder_without_sums_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wheels.Damaged, match=r"has no pieces\.sha256"):
        wheels.join(tmp_path)
