"""The menu of the pages: one list, the same on each, of what the operator has set up."""

import re
from pathlib import Path

import pytest
from served import calling, router

from serve.api.app import create_app
from serve.api.evaluation_runs import RunFolder
from serve.api.shared_results import ResultFile
from serve.arena.store import VoteStore

TITLES = {
    "/": "Ask",
    "/arena": "Arena",
    "/evaluations": "Evaluations",
    "/report": "Report",
    "/compare/toy-llava-vs-toy-paligemma": "Compare",
    "/docs": "API",
}


def menu(page: str) -> tuple[list[str], list[str]]:
    """Return the titles of a page's menu, and those that are marked as the page itself."""
    (links,) = re.findall(r"<nav[^>]*>(.*?)</nav>", page, re.DOTALL)
    entries = re.findall(r"<a ([^>]*)>([^<]*)</a>", links)
    return [title for _, title in entries], [title for attributes, title in entries if "aria-current" in attributes]


@pytest.mark.parametrize("everything", [True, False])
async def test_every_page_has_the_same_menu_and_marks_itself(everything: bool, tmp_path: Path) -> None:
    votes = VoteStore(tmp_path / "votes.db")
    results = ResultFile(tmp_path / "results.db", days=1, max_mb=1)
    extras = {"votes": votes, "evaluations": RunFolder(tmp_path), "results": results} if everything else {}
    absent = () if everything else ("Arena", "Evaluations")
    expected = [title for title in TITLES.values() if title not in absent]
    async with calling(create_app(router(), **extras)) as client:  # type: ignore[arg-type]
        for path, title in TITLES.items():
            if title not in absent:
                assert menu((await client.get(path)).text) == (expected, [title]), path
        if everything:
            assert menu((await client.get("/r/abc")).text) == (expected, [])
    votes.close()
