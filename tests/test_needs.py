"""A test with a need runs where `-m` names the need, and is skipped with a sentence elsewhere."""

import tomllib
from pathlib import Path

import pytest
from needs import IMPORTED, NEEDS, reason_to_skip

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("marks", "expression"),
    [
        (set(), ""),
        ({"asyncio", "slow"}, ""),
        ({"ray"}, "ray"),
        ({"ray", "engine", "browser"}, "engine and not browser"),  # pytest itself leaves those out
        ({"engine"}, "ray or engine or browser or cluster"),
    ],
)
def test_without_need_or_with_a_named_need_is_run(marks: set[str], expression: str) -> None:
    assert reason_to_skip(marks, expression) is None


@pytest.mark.parametrize("expression", ["", "not slow", "engines"])
def test_with_a_need_that_is_not_named_is_skipped_with_the_command(expression: str) -> None:
    assert reason_to_skip({"engine", "asyncio"}, expression) == (
        "It needs engine, and runs where it is asked for by marker: pytest -m engine"
    )
    assert "ray and engine" in str(reason_to_skip({"engine", "ray"}, expression))


def test_every_need_is_a_marker_that_make_knows() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [text.split(":")[0] for text in options["markers"]] == [*NEEDS, "slow"]
    assert f"NEEDS := {' or '.join(NEEDS)}\n" in (ROOT / "Makefile").read_text()


def test_collecting_imports_no_package_that_takes_seconds(pytestconfig: pytest.Config) -> None:
    slow = {"torch", "transformers", "vllm", "ray", "schemathesis", "pandas", "matplotlib"}
    assert not slow & pytestconfig.stash[IMPORTED], "each worker would import it: tests/lazy_module.py does so later"
