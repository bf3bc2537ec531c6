"""The README's table and examples are the program's own, and every path it links to is there."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve.models import MODELS
from serve.tasks import TASKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def table() -> str:
    lines = [f"| model | {' | '.join(TASKS)} | shown | parameters | licence |", f"|---|{'---|' * (len(TASKS) + 3)}"]
    for model in MODELS.values():
        can = " | ".join("yes" if task in model.skills else "" for task in TASKS)
        shown = " or ".join(["image"] * model.images + ["video"] * model.videos)
        lines.append(
            f"| `{model.name}` | {can} | {shown} | {model.card.parameters / 1e9:.3g}B | {model.card.licence} |"
        )
    return "\n".join(lines)


def test_the_table_is_the_programs_own() -> None:
    assert table() in README, f"Put this table into README.md:\n{table()}"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def shown(language: str, begins: str) -> tuple[list[str], str]:
    """The command in the README that begins so, and what the block after it says that it prints."""
    found = re.search(rf"```sh\n({re.escape(begins)}.*)\n```\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return shlex.split(found[1]), found[2]


def without_times(reply: Any) -> Any:
    """A reply without what changes from call to call, and from one kind of CPU to another."""
    if isinstance(reply, dict):
        changing = {"id", "latency_ms", "ttft_ms", "confidence"}
        return {name: without_times(value) for name, value in reply.items() if name not in changing}
    return [without_times(item) for item in reply] if isinstance(reply, list) else reply


@pytest.mark.engine
def test_the_reply_is_what_curl_prints(server: str) -> None:
    command, printed = shown("json", "curl ")
    command[-1] = command[-1].replace("http://127.0.0.1:8000", server)
    ran = subprocess.run([command[0], "-sS", *command[1:]], cwd=ROOT, capture_output=True, check=True)
    assert without_times(json.loads(ran.stdout)) == without_times(json.loads(printed))


@pytest.mark.engine
def test_the_columns_are_what_ask_prints(server: str, tmp_path: Path) -> None:
    command, printed = shown("", ".venv/bin/diptych ask ")
    command[-1] = str(tmp_path / command[-1])
    environment = {**os.environ, "COLUMNS": "80", "DIPTYCH_URL": server}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    def words(text: str) -> list[str]:
        return re.findall(r"[a-z_-]*[a-z]", text)

    assert words(ran.stdout)[: len(words(printed))] == words(printed)
