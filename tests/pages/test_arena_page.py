"""The arena's page over fake engines: a duel without names, a vote by mouse or key, names, the board; access; sizes."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from served import LLAVA, listening, router
from visiting import pick

from serve.api.app import create_app
from serve.arena.store import VoteStore
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.models.instructed import instructed_skills
from serve.router import Router
from serve.worker import Worker

pytestmark = pytest.mark.browser

WORDS = {
    "": "a red circle",
    "detect": "<loc0100><loc0100><loc0500><loc0500> blue circle",
    "bounding": "[0.1, 0.2, 0.5, 0.6]",
}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[str]:
    store = VoteStore(tmp_path / "votes.db")
    with listening(create_app(router(FakeEngine(WORDS), FakeEngine(WORDS)), votes=store)) as url:
        yield url
    store.close()


@contextlib.contextmanager
def dueling(page: Page, url: str, task: str) -> Iterator[None]:
    page.goto(f"{url}/arena")
    expect(page.locator("#go")).to_be_enabled()
    pick(page, task)
    if task == "detect":
        page.fill("#text", "blue circle")
    page.click("#go")
    expect(page.locator("[data-choice=tie]")).to_be_enabled()
    yield


def shoot(page: Page, name: str) -> None:
    """Save a picture where ARENA_SHOTS names a folder."""
    if folder := os.environ.get("ARENA_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_names_come_after_the_vote_alone(page: Page, arena: str) -> None:
    bodies: list[str] = []
    page.on("response", lambda response: bodies.append(response.text()) if "duels" in response.url else None)
    with dueling(page, arena, "caption"):
        assert "toy-" not in page.locator("#duel").inner_text()
        expect(page.locator("#left .said")).to_have_text("A red circle")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#duel h2").first).to_contain_text("toy-")
        assert {*page.locator("#duel h2").all_inner_texts()} == {"toy-llava", "toy-paligemma"}
        expect(page.locator("#right.chosen")).to_be_visible()
        expect(page.locator("#board tbody tr")).to_have_count(2)
        expect(page.locator("#cautions")).to_contain_text("fewer than 30 duels")
        page.click("#go")
        expect(page.locator("[data-choice=tie]")).to_be_enabled()
        expect(page.locator(".chosen")).to_have_count(0)
        page.click("[data-choice=both_bad]")
        expect(page.locator("#board tbody tr").first).to_contain_text("2")
    assert bodies and not any("toy-" in text for text in bodies)


def test_picture_that_is_changed_while_the_models_answer_ends_the_duel(page: Page, tmp_path: Path) -> None:
    store, slow = VoteStore(tmp_path / "votes.db"), [FakeEngine("a red circle", first_delay_s=1.0) for _ in range(2)]
    with listening(create_app(router(*slow), votes=store)) as url:
        page.goto(f"{url}/arena")
        expect(page.locator("#go")).to_be_enabled()
        for change in ("#scenes button[data-scene=portrait]", "#tasks input[value=vqa]"):
            page.click("#go")
            expect(page.locator("#left .body")).to_have_text("waits for both answers")
            page.locator(change).click(force=True)
            expect(page.locator("#trouble")).to_contain_text("changed meanwhile")
            expect(page.locator("[data-choice=tie]")).to_be_disabled()
            expect(page.locator("#duel h2")).to_have_text(["Left", "Right"])
    store.close()


def test_key_that_is_held_since_before_the_answers_or_moves_in_a_text_casts_no_vote(page: Page, tmp_path: Path) -> None:
    skills = instructed_skills(MODELS[LLAVA].converse)
    engine = FakeEngine('{"background": "red", "shapes": []}', first_delay_s=0.5)
    workers = [Worker(dataclasses.replace(MODELS[name], skills=skills), engine) for name in (LLAVA, f"{LLAVA}-b")]
    for worker in workers:
        worker.mark("ready", "ready")
    store = VoteStore(tmp_path / "votes.db")
    with listening(create_app(Router(workers), votes=store)) as url:
        page.goto(f"{url}/arena")
        expect(page.locator("#go")).to_be_enabled()
        pick(page, "extract")
        page.click("#go")
        expect(page.locator("#left .body")).to_have_text("waits for both answers")
        page.keyboard.down("ArrowDown")  # as someone who scrolls meanwhile
        expect(page.locator("[data-choice=tie]")).to_be_enabled()
        page.keyboard.down("ArrowDown")
        page.keyboard.up("ArrowDown")
        page.locator("#text").press("ArrowLeft")
        expect(page.locator("[data-choice=tie]")).to_be_enabled()
        expect(page.locator("#duel h2")).to_have_text(["Left", "Right"])
        page.locator("#left .body").press("ArrowLeft")
        expect(page.locator("#left.chosen")).to_be_visible()
    store.close()


def test_boxes_are_drawn_into_both_pictures(page: Page, arena: str) -> None:
    with dueling(page, arena, "detect"):
        expect(page.locator("#left svg .frame")).to_have_count(page.locator("#left .found li").count())
        expect(page.locator("#right svg")).to_be_visible()
        shoot(page, "boxes")


def test_refusal_is_shown_in_the_servers_words(page: Page, arena: str) -> None:
    page.goto(f"{arena}/arena")
    expect(page.locator("#go")).to_be_enabled()
    pick(page, "vqa")
    page.fill("#text", " ")
    page.click("#go")
    expect(page.locator("#trouble")).to_contain_text("question")


def test_first_page_links_to_an_open_arena(page: Page, arena: str) -> None:
    page.goto(arena)
    page.click("#to-arena")
    expect(page.locator("h1")).to_have_text("Two answers, no names. Which is better?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_page_is_accessible_and_fits_its_screen(browser: Browser, arena: str, scheme: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    violations: list[str] = []
    with dueling(page, arena, "detect" if width == 1280 else "caption"):
        for state in ("duel", "voted"):
            if state == "voted":
                page.click("[data-choice=left]")
                expect(page.locator("#board tbody tr")).to_have_count(2)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for violation in Axe().run(page, options={"runOnly": TAGS}).response["violations"]:
                nodes = [node["html"][:120] for node in violation["nodes"]]
                violations.append(f"{state}: {violation['id']}: {nodes}")
            shoot(page, f"{state}-{width}-{scheme}")
    context.close()
    assert not violations
