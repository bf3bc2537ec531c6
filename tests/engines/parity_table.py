"""The table of parity: rows of every test that compares vLLM with transformers, printed at the end and kept."""

import json
import os
from pathlib import Path

HEAD = ("architecture", "dtype", "runner", "token ids", "top-20 log-prob error", "greedy", "staggered", "preempted")
FILE = "DIPTYCH_PARITY_TABLE"
"""The variable that names the file: `make gpu-check` reads what was compared in time."""
rows: list[tuple[str, ...]] = [HEAD]


def record(row: tuple[str, ...]) -> None:
    """Add a row, and write the rows so far."""
    rows.append((*row, *[""] * (len(HEAD) - len(row))))
    if FILE in os.environ:
        Path(os.environ[FILE]).write_text(json.dumps(rows))
