"""The README's table is the program's own, and every path it links to is there."""

import re
from pathlib import Path

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
