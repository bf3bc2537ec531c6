"""Shared results and evaluations in a browser: from an answer to its page, from a number to its items; access."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from served import listening, picture, router
from visiting import ask, pick, visit

from serve.api.app import create_app
from serve.api.evaluation_runs import RunFolder
from serve.api.evaluation_starts import Bounds
from serve.api.shared_results import ResultFile
from serve.engines.fake import FakeEngine

pytestmark = pytest.mark.browser

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PIXEL = "data:image/webp;base64,UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAwA0JaQAA3AA/vuUAAA="


def write_runs(folder: Path) -> None:
    """Write two runs of one labelled set of four pictures: one model is right, one has no answer to one."""
    folder.mkdir()
    score = {"value": 75.0, "low": 25.0, "high": 100.0}
    cost = {"seconds": 0.5, "first_word_s": 0.1, "prompt_tokens": 60, "completion_tokens": 2,
            "price": {"input": 1.0, "output": 2.0, "currency": "EUR"}, "price_per_1000": 0.064,
            "energy_wh_per_1000": 12.34}  # fmt: skip
    for at in (1, 2):
        row: dict[str, Any] = {"merged": False, "failed": 0, "cost": cost, "measures": {"accuracy": score}}
        first = row | {"name": "toy-llava", "measures": {"accuracy": score | {"value": 70.0 + at}}}
        second = row | {"name": "toy-paligemma", "failed": 1, "cost": cost | {"price_per_1000": None, "price": None}}
        gain = {"value": 3.0, "low": -1.0, "high": 5.0}
        task = {
            "task": "vqa", "items": 4, "pictures": 4, "left_out": 0, "measures": {"accuracy": False},
            "rows": [first, second, row | {"name": "merged", "merged": True}],
            "gains": [{"row": "merged", "measure": "accuracy", "best": "toy-llava", "gain": gain}],
            "best": {"accuracy": ["merged"]},
        }  # fmt: skip
        run = {"name": f"run-{at}", "at": 1.8e9 + at, "target": "toy", "labelled_set": "abc", "tasks": [task]}
        (folder / f"run-{at}.json").write_text(json.dumps(run))
        (folder / f"run-{at}.jsonl").write_text("".join(json.dumps(line(number)) + "\n" for number in range(4)))


def line(number: int) -> dict[str, Any]:
    answer = {"model": "toy-llava", "status": "ok", "result": {"answer": "a <b>cat</b>"}, "latency_ms": 20.0}
    silent = {"model": "toy-paligemma", "status": "error", "error": {"message": "Gone."}, "latency_ms": 5.0}
    other = silent if number == 1 else answer | {"model": "toy-paligemma"}
    merged = {"result": {"answer": "a cat"}, "method": "vote", "agreement": 1 - number / 4, "deviations": {}}
    size = {"width": 64, "height": 48}
    return {"item": f"toy/vqa/{number}", "task": "vqa", "image": size, "merged": merged, "replies": [answer, other],
            "truth": {"answers": ["a cat"]}, "preview": PIXEL}  # fmt: skip


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[str]:
    write_runs(tmp_path / "runs")
    results = ResultFile(tmp_path / "results.db", days=30, max_mb=20)
    engines = FakeEngine("a red circle"), FakeEngine("<loc0100><loc0100><loc0500><loc0500> red circle")
    with listening(create_app(router(*engines), results=results, evaluations=RunFolder(tmp_path / "runs"))) as url:
        yield url


def shoot(page: Page, name: str) -> None:
    """Save a picture where SHARING_SHOTS names a folder."""
    if folder := os.environ.get("SHARING_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_answer_is_shared_and_a_number_leads_to_its_items(
    browser: Browser, sharing: str, width: int, scheme: Any
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if "Security Policy" in line.text else None)

    def look(state: str) -> None:
        shoot(page, f"{state}-{width}-{scheme}")
        if page.evaluate("document.documentElement.scrollWidth") > width:
            problems.append(f"{state} is wider than the screen")
        for violation in Axe().run(page, options={"runOnly": TAGS}).response["violations"]:
            problems.append(f"{state}: {violation['id']}: {[node['html'][:120] for node in violation['nodes']]}")

    visit(page, sharing)
    pick(page, "vqa")
    ask(page)
    page.locator("#cost summary").click()
    expect(page.locator("#cost tbody tr")).to_have_count(2)
    look("answered")
    page.click("#publish")
    expect(page.locator("#shared")).to_contain_text("copied")
    address = page.evaluate("navigator.clipboard.readText()")
    page.goto(address)
    expect(page.locator("#merged.done")).to_be_visible()
    expect(page.locator(".column.done")).to_have_count(2)
    # Playwright's wait_for_function evaluates text again and again, which the page's policy refuses
    expect(page.locator("#picture")).not_to_have_js_property("naturalWidth", 0)
    look("result")
    page.click("#embed")
    expect(page.locator("#sheet-body pre")).to_contain_text(f'<iframe src="{address}/card"')
    page.goto(f"{address}/card")
    assert page.evaluate("document.querySelector('img').naturalWidth") == 1200
    look("card")
    page.goto(address)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete")
    expect(page.locator("#state")).to_have_text("The result is deleted.")
    expect(page.locator("#bench")).to_be_hidden()
    page.goto(f"{sharing}/evaluations")
    expect(page.locator("#runs table")).to_have_count(1)
    expect(page.locator("#runs")).to_contain_text("2 runs: 71.0 to 72.0")
    expect(page.locator("#runs")).to_contain_text("0.06 EUR")
    expect(page.locator("#runs")).to_contain_text("12.3 Wh")
    look("evaluations")
    page.locator("#runs a[href*=silent]").nth(1).click()
    expect(page.locator("#count")).to_have_text("1 of 4")
    expect(page.locator(".tile image[href^='data:image/webp']")).to_have_count(1)
    expect(page.locator(".tile-name")).to_have_text("toy/vqa/1")
    context.close()
    assert not problems


def test_labelled_folder_is_evaluated_from_the_page_and_a_wrong_one_explained(page: Page, tmp_path: Path) -> None:
    (tmp_path / "colours" / "sub").mkdir(parents=True)
    (tmp_path / "colours" / "sub" / "ä.png").write_bytes(picture())
    labels = {"image": "sub/ä.png", "question": "which colour?", "answer": "red"}
    (tmp_path / "colours" / "labels.jsonl").write_text(json.dumps(labels))
    (tmp_path / "runs").mkdir()
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as archive:
        archive.writestr("../labels.jsonl", "{}")
    runs = RunFolder(tmp_path / "runs", Bounds(mb=1, pictures=10, minutes=1, kept=10, kept_mb=1))
    with listening(create_app(router(), evaluations=runs)) as url:
        page.goto(f"{url}/evaluations")
        expect(page.locator("#bounds")).to_contain_text("At most 1 MiB, 10 pictures")
        expect(page.locator("#go")).to_be_disabled()
        page.set_input_files("#zip", tmp_path / "outside.zip")
        page.click("#go")
        expect(page.locator("#trouble")).to_contain_text("a path that is not one inside a folder")
        page.set_input_files("#folder", tmp_path / "colours")
        expect(page.locator("#chosen")).to_contain_text("colours, 0.0 MiB")
        page.select_option("#task", "vqa")
        page.click("#go")
        expect(page.locator("#started li").first).to_contain_text("done, 1 of 1")
        expect(page.locator("#trouble")).to_be_hidden()
        expect(page.locator("#runs table")).to_have_count(1)
        expect(page.locator("#runs")).to_contain_text("100.0")
        shoot(page, "begin")
        violations = Axe().run(page, options={"runOnly": TAGS}).response["violations"]
        assert not violations and page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.set_viewport_size({"width": 390, "height": 800})
        shoot(page, "begin-390")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_page_of_evaluations_goes_on_after_a_failure(page: Page, sharing: str) -> None:
    page.route("**/v1/evaluations", lambda route: route.abort())
    page.goto(f"{sharing}/evaluations")
    expect(page.locator("#state")).to_have_text("The server does not answer.")
    page.unroute("**/v1/evaluations")
    expect(page.locator("#state")).to_contain_text("2 runs")


def test_missing_result_is_explained(page: Page, sharing: str) -> None:
    page.goto(f"{sharing}/r/none")
    expect(page.locator("#state[data-kind=failed]")).to_contain_text("There is no such result")
