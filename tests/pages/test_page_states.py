"""Tests the page over fake engines: streaming, failures, stopping, hostile words, speed, access."""

import contextlib
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Browser, Dialog, Page, expect
from served import LLAVA, PALIGEMMA, listening, picture, router, served, until
from visiting import WAIT_MS, answered, ask, column, pick

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.models.instructed import instructed_skills
from serve.models.reasoning import THINK, Reasoning
from serve.router import Router
from serve.worker import Worker

pytestmark = pytest.mark.browser


def four(**settings: Any) -> tuple[FastAPI, list[FakeEngine]]:
    names = ["toy-llava", "toy-llava-b", "toy-paligemma", "toy-paligemma-b"]
    engines = [FakeEngine(**settings) for _ in names]
    workers = [Worker(MODELS[name], engine) for name, engine in zip(names, engines, strict=True)]
    for worker in workers:
        worker.mark("ready", "ready")
    return create_app(Router(workers)), engines


@contextlib.contextmanager
def opened(page: Page, app: FastAPI, path: str = "/") -> Iterator[str]:
    with listening(app) as url:
        page.goto(url + path)
        yield url
        page.goto("about:blank")  # the page polls /ready: it ends before the server does


@contextlib.contextmanager
def visiting(page: Page, app: FastAPI, path: str = "/") -> Iterator[str]:
    with opened(page, app, path) as url:
        expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)
        yield url


def test_words_stream_in_and_a_slow_column_delays_no_other(page: Page) -> None:
    slow = FakeEngine(" ".join(["slow"] * 60), delay_s=0.05)
    with visiting(page, served(FakeEngine("a red circle"), slow)):
        page.click("#go")
        expect(column(page, LLAVA).locator(".said")).to_have_text("a red circle")
        expect(column(page, PALIGEMMA).locator(".speech")).to_contain_text("slow slow")
        assert "done" not in column(page, PALIGEMMA).get_attribute("class")
        first = column(page, PALIGEMMA).locator(".speech").inner_text()
        page.wait_for_function(
            "(before) => document.querySelectorAll('.speech')[0].textContent.length > before", arg=len(first)
        )
        expect(page.locator("#merged.waiting")).to_be_visible()
        answered(page)
        expect(page.locator("#merged.done")).to_be_visible()
        expect(column(page, PALIGEMMA).locator(".facts")).to_contain_text("tokens/s")


def test_stop_button_stops_the_engines(page: Page) -> None:
    engines = [FakeEngine(" ".join(["on"] * 100_000), delay_s=0.01) for _ in range(2)]
    with visiting(page, served(*engines), "/?task=chat"):
        pick(page, "caption")
        page.click("#go")
        expect(page.locator(".column .speech").first).to_contain_text("on on")
        assert sum(engine.speaking for engine in engines) == 2
        page.click("#stop")
        expect(page.locator(".failure").first).to_have_text("Stopped.")
        assert until(lambda: sum(engine.speaking for engine in engines) == 0)
        assert sum(engine.aborted for engine in engines) == 2
        expect(page.locator("#go")).to_be_enabled()


def test_reply_is_not_drawn_over_another_picture_that_was_chosen_meanwhile(page: Page) -> None:
    slow = FakeEngine("[0.25, 0.25, 0.75, 0.75]", delay_s=1.0)
    with visiting(page, served(slow, FakeEngine("<loc0256><loc0256><loc0767><loc0767> red circle")), "/?task=detect"):
        page.click("#go")
        portrait = page.locator("#scenes button[data-scene=portrait]")
        portrait.click()
        expect(portrait).to_have_attribute("aria-pressed", "true")
        answered(page)
        expect(page.locator("#overlay .layer")).to_have_count(0)
        expect(page.locator("#overlay")).to_have_attribute("viewBox", "0 0 480 640")
        page.locator("#asked button").first.click()
        expect(page.locator("#overlay .layer")).not_to_have_count(0)
        expect(page.locator("#overlay")).to_have_attribute("viewBox", "0 0 640 480")


def test_dead_engine_fails_its_column_in_words_alone(page: Page) -> None:
    with visiting(page, served(FakeEngine("a red circle"), FakeEngine("a red circle", delay_s=0.1, die_after=2))):
        ask(page)
        failed = column(page, PALIGEMMA)
        assert failed.get_attribute("data-status") == "error"
        expect(failed.locator(".failure")).to_contain_text("died")
        expect(column(page, LLAVA).locator(".said")).to_have_text("a red circle")
        expect(page.locator("#merged .facts")).to_contain_text("of toy-llava")


def test_merged_card_says_that_the_models_disagree(page: Page) -> None:
    with visiting(page, served(FakeEngine("red"), FakeEngine("blue")), "/?task=vqa&min_agreement=0.57"):
        expect(page.locator("#least")).to_have_value("57")
        ask(page)
        sentence = "The models disagree: their agreement is 0.5, less than 0.57."
        expect(page.locator("#merged .failure")).to_have_text(sentence)
        expect(page.locator("#asked .quiet").first).to_have_text(sentence)
        expect(column(page, PALIGEMMA).locator(".said")).to_have_text("blue")
        expect(column(page, PALIGEMMA).locator(".facts")).not_to_contain_text("off the merged answer")
        page.fill("#least", "50")
        ask(page)
        assert "min_agreement=0.5&" in page.url
        expect(page.locator("#merged .said")).to_contain_text("red")


def test_html_in_a_reply_is_shown_as_text(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script><b>bold</b>"
    with visiting(page, served(FakeEngine(hostile), FakeEngine(hostile))):
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        ask(page)
        expect(column(page, LLAVA).locator(".said")).to_have_text(hostile)
        assert page.locator("#answers img, #answers b, #answers script").count() == 0
        column(page, LLAVA).get_by_role("button", name="Raw").click()
        expect(page.locator("#sheet")).to_contain_text(hostile)
        assert page.locator("#sheet b, #sheet script").count() == 0


NUMBERS = """() => [...document.querySelectorAll(".found .quiet")].map(({ firstChild: text }) =>
  [...text.data.matchAll(/[0-9]+/g)].map(({ 0: digits, index }) => {
    const range = document.createRange();
    range.setStart(text, index);
    range.setEnd(text, index + digits.length);
    return range.getBoundingClientRect().left;
  }))"""


def test_numbers_beside_a_label_that_is_read_from_the_right_keep_their_order(page: Page) -> None:
    engines = FakeEngine("[0.10, 0.20, 0.50, 0.60]"), FakeEngine("<loc0100><loc0200><loc0500><loc0600> قطة")
    with visiting(page, served(*engines), "/?task=detect&labels=قطة"):
        ask(page)
        starts = page.evaluate(NUMBERS)
        assert max(map(len, starts)) == 4 and all(line == sorted(line) for line in starts), starts


def test_copied_commands_read_the_picture_by_its_name_and_keep_the_least_agreement(page: Page, tmp_path: Path) -> None:
    path = tmp_path / 'Screenshot, 10.00 "мой" (1).png'
    path.write_bytes(picture())
    with visiting(page, served(FakeEngine("a red circle"), FakeEngine("a blue square")), "/?min_agreement=0.9"):
        page.set_input_files("#file", path)
        expect(page.locator("#picture")).to_have_attribute("alt", re.compile("Screenshot"))
        ask(page)
        answers = []
        for button, program in ("#copy-curl", ["sh", "-c"]), ("#copy-python", [sys.executable, "-c"]):
            page.click(button)
            expect(page.locator("#shared")).to_contain_text("curl" if "curl" in button else "Python")
            line = page.evaluate("navigator.clipboard.readText()")
            run = subprocess.run([*program, line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            answers.append(run.stdout)
            assert run.returncode == 0, run.stderr
        assert all("The models disagree" in answer for answer in answers)


def test_saved_files_have_the_name_of_the_picture_and_whole_sentences_without_spaces(page: Page) -> None:
    sentence = FakeEngine("这是一张红色圆圈的图片" * 20)
    with visiting(page, served(sentence, sentence), "/?scene=night"):
        ask(page)
        for kind in ("json", "png"):
            with page.expect_download() as coming:
                page.click(f"#save-{kind}")
            assert coming.value.suggested_filename == f"diptych-caption-night.{kind}"
        image = PIL.Image.open(coming.value.path()).convert("L")
        edge = image.crop((image.width - 40, 0, image.width, image.height))
        assert edge.getextrema() == (image.getpixel((0, 0)),) * 2 and image.height > 700


def test_link_to_the_question_leaves_boxes_over_the_picture(page: Page) -> None:
    with visiting(page, served(FakeEngine("[0.25, 0.25, 0.75, 0.75]")), "/?task=detect"):
        ask(page)
        before = page.locator("#overlay .layer").count()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.locator(".skip").press("Enter")
        expect(page).to_have_url(re.compile("#ask$"))
        with page.expect_response("**/ready"):
            pass
        expect(page.locator("#overlay .layer")).to_have_count(before)
        assert before and not any("scenes" in url for url in requests)


def test_another_picture_takes_the_answers_about_the_first_one_away(page: Page) -> None:
    with visiting(page, served()):
        ask(page)
        page.click("#scenes button[data-scene=portrait]")
        expect(page.locator("#merged")).to_be_hidden()
        expect(page.locator("#share")).to_be_hidden()
        expect(page.locator("#columns > *, #cost > *")).to_have_count(0)
        expect(page.locator("#again")).to_be_disabled()
        page.locator("#asked button").first.click()
        expect(page.locator("#merged.done")).to_be_visible()
        expect(page.locator("#columns > *")).to_have_count(2)
        expect(page.locator("#again")).to_be_enabled()


def test_again_button_and_list_of_questions(page: Page) -> None:
    with visiting(page, served()):
        ask(page)
        page.click("#again")
        answered(page)
        expect(page.locator("#asked li")).to_have_count(2)
        pick(page, "vqa")
        page.fill("#text", "what colour is it?")
        ask(page)
        page.locator("#asked li button").last.click()
        expect(page.locator('#tasks input[value="caption"]')).to_be_checked()
        expect(page.locator("#merged.done")).to_be_visible()


def test_server_states_have_their_sentences(page: Page, tmp_path: Path) -> None:
    state, trouble = page.locator("#state"), page.locator("#trouble")
    with listening(create_app(router(ready=False))) as url:
        page.goto(url)
        expect(state).to_contain_text("Models are loading. Starting: toy-llava")
    expect(state).to_have_text("The server does not answer. Asking it again every two seconds.", timeout=10_000)
    failing = router(ready=False)
    for name, worker in failing.routes.items():
        assert isinstance(worker, Worker)
        worker.mark("failed", f"no memory for {name}")
    with opened(page, create_app(failing)):
        expect(state).to_have_text(
            "No model can answer. toy-llava: no memory for toy-llava; toy-paligemma: no memory for toy-paligemma"
        )
    sleeping = router(ready=False)
    for worker, stands in zip(sleeping.routes.values(), ("ready", "asleep"), strict=True):
        assert isinstance(worker, Worker)
        worker.mark(stands, "it starts when it is asked")  # type: ignore[arg-type]
    with opened(page, create_app(sleeping)):
        expect(state).to_have_text("1 of 2 models ready. Wakes when it is asked: toy-paligemma")
        expect(page.locator("#models label[data-state=asleep]")).to_have_count(1)
    note, large = tmp_path / "words.txt", tmp_path / "large.png"
    note.write_text("not a picture")
    large.write_bytes(b"\0" * (21 * 2**20))
    with visiting(page, served(), "/?task=fly&models=gpt-9"):
        expect(trouble).to_have_text("No model that is served here can do fly. Not served here: gpt-9.")
        page.set_input_files("#file", note)
        expect(trouble).to_have_text("words.txt is not a picture that this browser can show.")
        page.set_input_files("#file", large)
        expect(trouble).to_have_text("large.png has 21.0 MB; a picture may have 20.")


def test_refusal_is_shown_in_the_servers_words(page: Page, tmp_path: Path) -> None:
    tiny = tmp_path / "odd.gif"
    PIL.Image.new("RGB", (4000, 4)).save(tiny)
    with visiting(page, served()):
        page.set_input_files("#file", tiny)
        pick(page, "detect")
        page.fill("#text", ";")
        page.click("#go")
        expect(page.locator("#trouble")).to_contain_text("labels")
        expect(page.locator(".failure")).to_have_count(2)


def test_broken_connection_is_shown_in_a_sentence(page: Page) -> None:
    with visiting(page, served(FakeEngine("a red circle"))):
        page.route("**/v1/tasks/*", lambda route: route.abort())
        page.click("#go")
        expect(page.locator("#trouble")).to_have_text("The server went away while it answered.")
        expect(page.locator("#go")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_states_have_no_accessibility_violation(browser: Browser, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    violations: list[str] = []

    def look(state: str) -> None:
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        for violation in Axe().run(page, options={"runOnly": tags}).response["violations"]:
            violations.append(f"{state}: {violation['id']}: {[node['html'][:120] for node in violation['nodes']]}")

    boxes = FakeEngine("red circle [0.1, 0.1, 0.5, 0.5]")
    with visiting(page, served(boxes, FakeEngine("<loc0100><loc0100><loc0500><loc0500> red circle"))) as url:
        look("first")
        pick(page, "detect")
        page.fill("#text", "red circle")
        ask(page)
        look("answered")
        page.locator(".column button", has_text="Raw").first.click()
        look("raw")
        page.goto(f"{url}/compare/toy-llava-vs-paligemma")
        expect(page.locator("#table table")).to_be_visible()
        page.locator("#picker summary").click()
        look("compare")
        page.goto(f"{url}/docs")
        page.locator("summary").first.click()
        look("docs")
    context.close()
    assert not violations


def test_eight_hundred_pieces_a_second_are_drawn_together(page: Page) -> None:
    """Show four columns of 200 deltas a second. It prints long tasks: those of 50 ms or more (W3C Long Tasks)."""
    app, engines = four(replies=" ".join(["word"] * 1000), delay_s=0.003)  # and two more of the machinery's own
    page.add_init_script(
        """window.long = []; window.shifts = window.draws = 0;
        new PerformanceObserver((list) => window.long.push(...list.getEntries().map((entry) => entry.duration)))
          .observe({type: "longtask", buffered: true});
        new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
        }).observe({type: "layout-shift", buffered: true});
        document.addEventListener("DOMContentLoaded", () => new MutationObserver(() => window.draws++)
          .observe(document.body, {subtree: true, childList: true, characterData: true}));"""
    )
    with visiting(page, app):
        pick(page, "caption")
        for tried in range(1, 4):  # half a second after a click what moves is no shift: a busy machine needs longer
            page.evaluate("() => { window.long.length = window.shifts = window.draws = 0; }")
            pieces = seconds = 0.0
            # a caption ends at its limit of words: five, for a longer measure
            for button in ("#go" if tried == 1 else "#again", *["#again"] * 4):
                page.click(button)
                expect(page.locator("#share")).to_be_hidden()
                answered(page)
                rates = [
                    re.search(r"(\d+) tokens/s . (\d+) tokens", facts)
                    for facts in page.locator(".column .facts").all_inner_texts()
                ]
                pieces += sum(int(rate[2]) for rate in rates if rate)
                seconds += max(int(rate[2]) / int(rate[1]) for rate in rates if rate)
            long, shifts, draws = page.evaluate("[window.long, window.shifts, window.draws]")
            if shifts < 0.01:
                break
    numbers = f"{pieces:.0f} pieces in {seconds:.1f} s, {pieces / seconds:.0f} a second in four columns: "
    numbers += f"{len(long)} long tasks, {sum(long):.0f} ms in all; {draws} draws; layout shift {shifts:.4f}"
    print(numbers)
    assert len(engines[0].prompts) == 5 * tried and pieces > 1500
    assert draws < pieces / 2, numbers
    assert shifts < 0.01, numbers


def test_first_visit_weighs_under_100_kb_without_a_model(page: Page) -> None:
    sizes: dict[str, int] = {}

    def weigh(response: Any) -> None:
        if response.ok and "/v1/" not in response.url and not response.url.endswith(("/ready", "/three.png")):
            sizes[response.url] = len(response.body())

    with listening(create_app(router(ready=False))) as url:
        page.on("requestfinished", lambda request: weigh(request.response()))
        page.goto(url, wait_until="networkidle")
        expect(page.locator("h1")).to_be_visible()
        page.goto("about:blank")
    assert any(name.endswith("app.js") for name in sizes) and sum(sizes.values()) < 100_000, sizes
    print(f"first visit: {sum(sizes.values())} bytes in {len(sizes)} files, the scene it shows apart")


def test_wrong_key_is_prompted_for_again(page: Page) -> None:
    prompts: list[str] = []
    answers = ["wrong", "4lice"]

    def answer(dialog: Dialog) -> None:
        prompts.append(dialog.message)
        dialog.accept(answers.pop(0))

    page.on("dialog", answer)
    app = create_app(router(), access=Access(keys=Keys(["alice:4lice"]), page="open"))
    with visiting(page, app):
        ask(page)
        expect(page.locator("#merged.done")).to_be_visible()
    assert len(prompts) == 2 and "API key" in prompts[0]


def test_key_with_an_invisible_space_is_accepted(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept("\u200b4lice\u2009"))
    with visiting(page, create_app(router(), access=Access(keys=Keys(["alice:4lice"]), page="open"))):
        ask(page)
        expect(page.locator("#merged.done")).to_be_visible()


def test_browser_without_storage_has_the_key_for_the_page(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept("4lice"))
    for name in ("sessionStorage", "localStorage"):  # as Chromium does where cookies are blocked
        page.add_init_script(
            f"Object.defineProperty(window, '{name}', {{ get() {{ throw new DOMException('', 'SecurityError'); }} }})"
        )
    with visiting(page, create_app(router(), access=Access(keys=Keys(["alice:4lice"]), page="open"))):
        ask(page)
        expect(page.locator("#merged.done")).to_be_visible()


def test_refusal_to_list_the_models_is_shown_in_the_servers_words(page: Page) -> None:
    refusal = '{"error": {"message": "At most 60 requests a minute.", "code": "rate_limit", "param": null}}'
    page.route("**/v1/models", lambda route: route.fulfill(status=429, content_type="application/json", body=refusal))
    with opened(page, served()):
        expect(page.locator("#state")).to_contain_text("At most 60 requests a minute.")
        page.unroute("**/v1/models")
        expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)


def test_declined_key_is_not_prompted_for_again(page: Page) -> None:
    prompts: list[str] = []

    def decline(dialog: Dialog) -> None:
        prompts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", decline)
    with opened(page, create_app(router(), access=Access(keys=Keys(["alice:4lice"]), page="open"))):
        expect(page.locator("#state")).to_contain_text("A valid API key is needed")
        for _ in range(2):  # the page goes on trying
            with page.expect_response("**/v1/models"):
                pass
    assert len(prompts) == 1


def test_reasoning_is_folded_and_opened_by_the_keyboard(page: Page) -> None:
    slow = FakeEngine(["<think>", "Round", " and", " red.", "</think>", "a red", " circle"], delay_s=0.15)
    thinking = dataclasses.replace(MODELS[LLAVA], reasoning=Reasoning((THINK,)))
    workers = [Worker(thinking, slow), Worker(MODELS[PALIGEMMA], FakeEngine("a red circle"))]
    for worker in workers:
        worker.mark("ready", "ready")
    with visiting(page, create_app(Router(workers))):
        page.click("#go")
        fold = column(page, LLAVA).locator("details")
        expect(fold.locator("p")).to_contain_text("Round and")
        expect(fold.locator("p")).to_be_hidden()
        answered(page)
        expect(column(page, LLAVA).locator(".said")).to_have_text("a red circle")
        expect(column(page, PALIGEMMA).locator("details")).to_have_count(0)
        fold.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(fold.locator("p")).to_be_visible()
        expect(fold.locator("p")).to_have_text("Round and red.")
        violations = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
        assert not violations, violations


def test_schema_is_written_on_lines_and_its_object_is_drawn_as_text(page: Page) -> None:
    skills = instructed_skills(MODELS[LLAVA].converse)
    worker = Worker(dataclasses.replace(MODELS[LLAVA], skills=skills), FakeEngine('{"shop": "<b>Roll</b>"}'))
    worker.mark("ready", "ready")
    with visiting(page, create_app(Router([worker]))):
        pick(page, "extract")
        expect(page.locator("#text")).to_have_value(re.compile('"background"'))
        page.fill("#text", '{"type": "object",\n "properties": {"shop": {"type": "string"}}}')
        page.click("#go")
        expect(page.locator("#merged pre")).to_have_text('{\n  "shop": "<b>Roll</b>"\n}')
        expect(column(page, LLAVA).locator("pre")).to_have_text('{\n  "shop": "<b>Roll</b>"\n}')
        assert "schema=" in page.url
        page.fill("#text", '{"type": "object", "properties": {"shop": {"not": {}}}}')
        page.click("#go")
        expect(page.locator("#trouble")).to_contain_text("not is not supported in a schema")
