"""Tests the page in a real browser over the real toys."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import PIL.Image
import pytest
from playwright.sync_api import Browser, Page, expect
from running import Running, until
from visiting import SCENES, WAIT_MS, answered, ask, column, frames, pick, visit

from serve.media.masks import Rle, decode

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.browser]

TOYS = ["toy-llava", "toy-paligemma"]


def api(server: str, task: str, scene: str, **fields: str) -> dict:
    files = {"image": (SCENES / f"{scene}.png").read_bytes()}
    return httpx.post(f"{server}/v1/tasks/{task}", files=files, data=fields, timeout=60).json()


def test_two_clicks_show_two_models_descriptions(page: Page, server: str) -> None:
    visit(page, server)
    expect(page.locator("#state")).to_have_text("toy-llava and toy-paligemma are ready.")
    expect(page.locator("#toys")).to_contain_text("diptych serve --models llava-1.5-7b,paligemma-3b-mix-448")
    page.locator('[data-scene="night"]').click()
    ask(page)
    truth = json.loads((SCENES / "scenes.json").read_text())["night.png"]["shapes"]
    for model in TOYS:
        for shape in truth:
            expect(column(page, model).locator(".said")).to_contain_text(shape["label"])
    expect(page.locator("#merged .said")).to_contain_text(truth[0]["label"])
    expect(page.locator("#merged .agreement")).to_contain_text("% agreement")


def test_uploaded_picture_is_read(page: Page, server: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.jpg"
    PIL.Image.open(SCENES / "number.png").convert("RGB").save(own, quality=95)
    visit(page, server)
    page.set_input_files("#file", own)
    expect(page.locator("#picture")).to_have_attribute("alt", "Your picture, mine.jpg")
    pick(page, "ocr")
    ask(page)
    text = json.loads((SCENES / "scenes.json").read_text())["number.png"]["text"]
    expect(page.locator("#merged .said")).to_have_text(text)
    page.click("#copy-link")
    expect(page.locator("#shared")).to_contain_text("your own picture does not travel")


def test_drawn_boxes_are_those_of_the_api(page: Page, server: str) -> None:
    visit(page, f"{server}/?task=detect&scene=three")
    page.fill("#text", "blue square; green triangle")
    ask(page)
    expected = api(server, "detect", "three", labels="blue square; green triangle")
    layers = {
        **{reply["model"]: reply["result"] for reply in expected["replies"]},
        "merged": expected["merged"]["result"],
    }
    assert layers["merged"]["boxes"]
    for layer, result in layers.items():
        drawn = frames(page, layer)
        assert [label for label, _ in drawn] == [box["label"] for box in result["boxes"]]
        for (_, box), true in zip(drawn, result["boxes"], strict=True):
            assert box == pytest.approx(true["box"], abs=0.1)
    item = page.locator("#merged .found li").first
    item.hover()
    expect(page.locator('#overlay [data-item="merged/0"]')).to_have_class("item lit")
    page.locator('#layers input[value="toy-llava"]').uncheck()
    expect(page.locator('g[data-layer="toy-llava"]')).to_be_hidden()


def test_painted_mask_is_that_of_the_api(page: Page, server: str) -> None:
    visit(page, f"{server}/?task=segment&scene=three&labels=blue+square")
    ask(page)
    expected = api(server, "segment", "three", labels="blue square")
    painted = page.evaluate(
        """async () => {
          const image = new Image();
          image.src = document.querySelector('g[data-layer="merged"] image').getAttribute("href");
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.width, image.height];
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const pixels = context.getImageData(0, 0, image.width, image.height).data;
          const alphas = [...pixels].filter((value, at) => at % 4 === 3);
          return [image.width, image.height, alphas.map((alpha) => alpha > 0)];
        }"""
    )
    (box,) = expected["merged"]["result"]["boxes"]
    true = decode(Rle(**box["mask"]))
    assert painted[:2] == [640, 480] and painted[2] == true.reshape(-1).tolist()


def test_copied_link_restores_the_question(page: Page, server: str) -> None:
    visit(page, server)
    page.locator('[data-scene="circles"]').click()
    pick(page, "vqa")
    page.fill("#text", "how many circles are there?")
    page.locator('#models input[value="toy-llava"]').uncheck()
    ask(page)
    expect(page.locator(".column")).to_have_count(1)
    page.click("#copy-link")
    link = page.evaluate("navigator.clipboard.readText()")
    other = page.context.new_page()
    visit(other, link)
    expect(other.locator("#text")).to_have_value("how many circles are there?")
    expect(other.locator('#tasks input[value="vqa"]')).to_be_checked()
    expect(other.locator('#models input[value="toy-llava"]')).not_to_be_checked()
    expect(other.locator('[data-scene="circles"]')).to_have_attribute("aria-pressed", "true")
    assert other.url == link


def test_curl_python_and_saved_files_have_the_same_answer(page: Page, server: str, tmp_path: Path) -> None:
    visit(page, f"{server}/?task=detect&scene=three&labels=blue+square%3B+it%27s")
    ask(page)
    page.click("#copy-curl")
    line = page.evaluate("navigator.clipboard.readText()")
    shell = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shell.returncode == 0 and "event: merged" in shell.stdout and shell.stdout.endswith("data: [DONE]\n\n")
    page.click("#copy-python")
    program = page.evaluate("navigator.clipboard.readText()")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert re.findall(r"^(\S+): ", run.stdout, re.MULTILINE) == ["merged", *TOYS]
    with page.expect_download() as coming:
        page.click("#save-json")
    saved = json.loads(Path(coming.value.path()).read_text())
    expected = api(server, "detect", "three", labels="blue square; it's")
    assert (
        saved["merged"] == expected["merged"]
        and saved["usage"] == expected["usage"]
        and saved["image"] == expected["image"]
    )
    assert [reply["text"] for reply in saved["replies"]] == [reply["text"] for reply in expected["replies"]]
    with page.expect_download() as coming:
        page.click("#save-png")
    image = PIL.Image.open(coming.value.path())
    assert image.width == 1600 and len(image.convert("RGB").getcolors(2**24) or []) > 50


def test_keyboard_alone_can_ask(page: Page, server: str) -> None:
    visit(page, server)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "task":
            break
    page.keyboard.press("ArrowLeft")
    expect(page.locator('#tasks input[value="vqa"]')).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("is there a circle?")
    page.keyboard.press("Control+Enter")
    answered(page)
    expect(page.locator("#merged .said")).to_have_text("yes")
    expect(page.locator("#heard")).to_contain_text("Merged, 100 % agreement: yes")


def test_compare_page_shows_models_side_by_side(page: Page, server: str) -> None:
    page.goto(f"{server}/compare/llava-1.5-vs-paligemma")
    expect(page.locator("#title")).to_have_text("llava-1.5-7b vs paligemma-3b-mix-448")
    table = page.locator("#table table")
    expect(table.locator("tbody tr")).to_have_count(11 + 9)
    expect(table.locator("tr.differs th", has_text="Organization")).to_contain_text("differs")
    assert not [cell for cell in table.locator("td").all_inner_texts() if not cell.strip()]
    expect(page.locator("#skills")).to_contain_text(
        "Tasks they share: Question answering, Captioning, Reading (OCR), Detection"
    )
    expect(page.locator("#skills")).to_contain_text("None of them is served here")
    expect(page.locator("#bench")).to_be_hidden()
    page.locator("#picker summary").click()
    page.fill("#find", "toy")
    for name in ("llava-1.5-7b", "paligemma-3b-mix-448"):
        page.locator(f'#choices input[value="{name}"]').evaluate("(box) => { box.checked = false; }")
    for name in TOYS:
        page.locator(f'#choices input[value="{name}"]').check()
    page.click("#compare")
    expect(page.locator("#title")).to_have_text("toy-llava vs toy-paligemma", timeout=WAIT_MS)
    expect(page.locator('#tasks input[value="chat"]')).to_have_count(0)
    expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)
    ask(page)
    expect(page.locator(".column.done")).to_have_count(2)


def test_phone_needs_no_sideways_scrolling(browser: Browser, server: str) -> None:
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    visit(page, f"{server}/?task=detect&scene=three")
    page.locator("#go").tap()
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#photograph")).to_be_visible()
    page.goto(f"{server}/compare/toy-llava-vs-toy-paligemma")
    expect(page.locator("#table table")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.close()


def test_docs_page_loads_from_its_own_server_only(page: Page, server: str) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"{server}/docs")
    expect(page.locator(".route").first).to_be_visible()
    page.locator("summary", has_text="POST /v1/tasks/vqa").click()
    expect(page.locator(".route[open]")).to_contain_text("question")
    assert all(url.startswith(server) for url in urls)


def test_killed_engine_fails_its_own_column_and_recovers(page: Page, serving: Running) -> None:
    """Stop the engine first, so that it is in the middle of its answer when it is killed."""
    visit(page, f"{serving.url}/?task=caption&scene=night")
    engine = serving.engine("toy-paligemma")
    os.kill(engine, signal.SIGSTOP)
    try:
        page.click("#go")
        expect(column(page, "toy-llava").locator(".said")).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#merged.waiting")).to_be_visible()
        assert column(page, "toy-paligemma").get_attribute("data-status") is None
    finally:
        os.kill(engine, signal.SIGKILL)
    answered(page)
    expect(column(page, "toy-paligemma").locator(".failure")).not_to_be_empty()
    assert column(page, "toy-paligemma").get_attribute("data-status") == "error"
    expect(page.locator("#merged .facts")).to_contain_text("of toy-llava")
    assert until(lambda: serving.state("toy-paligemma") != "ready", WAIT_MS / 1000)
    expect(page.locator("#state")).to_contain_text("Starting: toy-paligemma", timeout=WAIT_MS)
    assert until(lambda: serving.state("toy-paligemma") == "ready", 5 * WAIT_MS / 1000)
    expect(page.locator("#state")).to_have_text("toy-llava and toy-paligemma are ready.", timeout=WAIT_MS)
