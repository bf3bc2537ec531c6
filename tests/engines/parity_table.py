"""The table of parity: rows of every test that compares vLLM with transformers, printed at the end and kept."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

HEAD = ("architecture", "dtype", "runner", "token ids", "top-20 log-prob error", "greedy", "staggered", "preempted")
FILE = "DIPTYCH_PARITY_TABLE"
"""The variable that names the file: `make gpu-check` reads what was compared in time."""
rows: list[tuple[str, ...]] = [HEAD]


def record(row: tuple[str, ...]) -> None:
    """Add a row, and write the rows so far."""
    rows.append((*row, *[""] * (len(HEAD) - len(row))))
    if FILE in os.environ:
        Path(os.environ[FILE]).write_text(json.dumps(rows))


def show(request: pytest.FixtureRequest, title: str, table: Sequence[tuple[str, ...]]) -> None:
    """Print a table to the terminal, past pytest's capture."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{title}")
        for row in table:
            print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
