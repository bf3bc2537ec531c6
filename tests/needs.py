"""Markers of tests that need more than Python: which of them run where `pytest -m` did not ask for them."""

import re
from collections.abc import Set

import pytest

NEEDS = ("ray", "engine", "browser", "cluster")
"""The markers in pyproject.toml that stand for a need."""
IMPORTED = pytest.StashKey[frozenset[str]]()
"""In the config's stash: the modules that collecting imported."""


def reason_to_skip(marks: Set[str], expression: str) -> str | None:
    """Return the sentence that a test with these markers is skipped with under `-m expression`, None where it runs.

    It runs where it has no need, or where the expression names one of its needs: `pytest FILE` starts nothing unasked.
    """
    needs = [need for need in NEEDS if need in marks]
    if not needs or set(needs) & set(re.findall(r"\w+", expression)):
        return None
    return f"It needs {' and '.join(needs)}, and runs where it is asked for by marker: pytest -m {needs[-1]}"
