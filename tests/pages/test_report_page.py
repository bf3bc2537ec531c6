"""The report in a browser: as a file without a server, and as the page of a server; keys, filters, access, sizes."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from served import listening, served

from serve.client.report import report
from serve.media.masks import Window, encode_in

pytestmark = pytest.mark.browser

COUNT = 120
SIZE = (160, 120)
EVIL = "<img src=x onerror=\"document.title='bad'\">"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def line(at: int) -> dict[str, Any]:
    """Return a line of `run`: the agreement falls with the number, the tenth has no answer, the last has evil words."""
    first = {"file": f"deep/{at:03d}.png", "task": "segment", "asked": {"labels": ["cat", EVIL]}}
    if at == 10:
        return first | {"error": {"message": "It took too long."}}
    label = EVIL if at == COUNT - 1 else "cat" if at % 2 else "dog"
    mask = encode_in(np.ones((40, 60), bool), Window(20, 30, 80, 70), SIZE[::-1]).model_dump()
    box = {"label": label, "box": [20, 30, 80, 70], "score": 0.9, "mask": mask}
    apart = {**box, "box": [25, 35, 85, 75]}
    replies = [
        {"model": "toy-llava", "status": "ok", "result": {"boxes": [apart]}, "latency_ms": 20.0, "text": ""},
        {"model": "toy-paligemma", "status": "error", "error": {"message": "Gone."}, "latency_ms": 5.0, "text": "hm"}
        if at % 3 == 0
        else {"model": "toy-paligemma", "status": "ok", "result": {"boxes": [box]}, "latency_ms": 20.0, "text": ""},
    ]
    merged = {
        "result": {"boxes": [box]}, "method": "mask_vote", "agreement": 1 - at / COUNT,
        "deviations": {"toy-llava": at / COUNT, "toy-paligemma": 0.0},
    }  # fmt: skip
    image = {"width": SIZE[0], "height": SIZE[1]}
    return first | {"image": image, "merged": merged, "replies": replies, "truth": {"boxes": [box]}}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "in" / "deep").mkdir(parents=True)
    for at in range(COUNT):
        PIL.Image.new("RGB", SIZE, (at, 200 - at, 90)).save(folder / "in" / "deep" / f"{at:03d}.png")
    path = folder / "out.jsonl"
    path.write_text("".join(json.dumps(line(at)) + "\n" for at in range(COUNT)))
    report(argparse.Namespace(record=path, folder=folder / "in", to=None, side=None))
    return path


def names(page: Page) -> list[str]:
    """Return the names on the tiles, in order of their places."""
    return page.evaluate(
        "[...document.querySelectorAll('.tile')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
        ".map((tile) => tile.querySelector('.tile-name').textContent)"
    )


def shoot(page: Page, name: str) -> None:
    """Save a picture where REPORT_SHOTS names a folder."""
    if folder := os.environ.get("REPORT_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def opened(page: Page, record: Path) -> None:
    page.goto(record.with_suffix(".html").as_uri())
    expect(page.locator("#state[data-kind=ready]")).to_be_visible()
    expect(page.locator(".tile image[href^='data:image/webp']").first).to_be_attached()


def test_file_lists_disagreement_first_and_has_tiles_for_the_screen_alone(page: Page, record: Path) -> None:
    opened(page, record)
    listed = names(page)
    assert listed[:3] == ["deep/010.png", "deep/119.png", "deep/118.png"] and len(listed) < 60
    expect(page.locator("#count")).to_have_text("120 of 120")
    page.locator(".tile button").first.focus()
    page.keyboard.press("End")
    expect(page.locator(".tile button:focus .tile-name")).to_have_text("deep/000.png")
    page.select_option("#sort", "name")
    expect(page.locator(".tile-name").first).to_have_text("deep/000.png")
    page.fill("#words", "11")
    expect(page.locator("#count")).to_have_text("11 of 120")
    page.fill("#words", "")
    expect(page.locator("#count")).to_have_text("120 of 120")
    page.select_option("#label", "dog")
    page.select_option("#model", "toy-paligemma")
    page.select_option("#how", "silent")
    expect(page.locator("#count")).to_have_text("20 of 120")
    page.fill("#from", "90")
    page.locator("#from").blur()
    expect(page.locator("#count")).to_have_text("3 of 120")


def test_picture_shows_every_layer_and_keys_walk_on(page: Page, record: Path) -> None:
    opened(page, record)
    page.locator(".tile button").nth(1).click()
    expect(page.locator("#item-title")).to_have_text("deep/119.png")
    expect(page.locator("#item-place")).to_contain_text("2 of 120")
    for layer in ("merged", "truth", "toy-llava", "toy-paligemma"):
        expect(page.locator(f'#item-stage g[data-layer="{layer}"] path.frame')).to_have_count(1)
        expect(page.locator(f'#item-stage g[data-layer="{layer}"] image[href^="data:image/png"]')).to_have_count(1)
        expect(page.locator(f'#answers [data-model="{layer}"]')).to_contain_text(EVIL)
    page.locator("#layers .chip", has_text="toy-llava").click()
    expect(page.locator('#item-stage g[data-layer="toy-llava"]')).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#item-title")).to_have_text("deep/118.png")
    expect(page.locator('#item-stage g[data-layer="toy-llava"]')).to_be_hidden()
    page.keyboard.press("k")
    page.keyboard.press("k")
    expect(page.locator("#answers .failure")).to_have_text("It took too long.")
    page.keyboard.press("Escape")
    expect(page.locator(".tile button:focus .tile-name")).to_have_text("deep/010.png")
    assert page.title() != "bad" and page.locator("img").count() == 0


def test_page_of_a_server_reads_a_record_and_its_pictures_without_sending_anything(page: Page, record: Path) -> None:
    with listening(served()) as url:
        page.goto(f"{url}/report")
        expect(page.locator("#open")).to_be_visible()
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        page.set_input_files("#record", record)
        expect(page.locator("#state[data-kind=ready]")).to_be_visible()
        assert names(page)[0] == "deep/010.png"
        page.set_input_files("#folder", record.parent / "in")
        expect(page.locator(".tile image[href^='blob:']").first).to_be_attached()
        assert "POST" not in sent


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_report_is_accessible_and_fits_its_screen(browser: Browser, record: Path, scheme: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=False)
    page = context.new_page()
    opened(page, record)
    violations: list[str] = []
    for state in ("gallery", "picture"):
        if state == "picture":
            page.locator(".tile button").nth(1).click()
            expect(page.locator("#item-stage image[href^='data:image/png']")).to_have_count(4)
        shoot(page, f"{state}-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for violation in Axe().run(page, options={"runOnly": TAGS}).response["violations"]:
            nodes = [node["html"][:120] for node in violation["nodes"]]
            violations.append(f"{state}: {violation['id']}: {nodes}")
    context.close()
    assert not violations
