"""Steps of a visitor of the page, and parts of it that tests look at."""

import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, expect

SCENES = Path(__file__).parents[2] / "serve" / "toy" / "scenes"
WAIT_MS = 60_000


def chromium(playwright: Playwright) -> Browser:
    """Launch the machine's own Chromium without its sandbox, which refuses to run as root, as in CI."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "apt-get install chromium"
    return playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def visit(page: Page, url: str) -> None:
    """Open the page, and wait until its button is enabled."""
    page.goto(url)
    expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)


def pick(page: Page, task: str) -> None:
    page.locator(f'#tasks input[value="{task}"]').check(force=True)


def ask(page: Page) -> None:
    """Click the button, and wait for the whole answer."""
    page.click("#go")
    answered(page)


def answered(page: Page) -> None:
    expect(page.locator("#share")).to_be_visible(timeout=WAIT_MS)


def column(page: Page, model: str) -> Any:
    return page.locator(f'.column[data-model="{model}"]')


def frames(page: Page, layer: str) -> list[tuple[str, list[float]]]:
    """Return the frames of a layer: (label, [x0, y0, x1, y1]), in pixels of the picture by their place on screen."""
    image = page.evaluate(
        """() => {
          const image = document.getElementById("picture"), at = image.getBoundingClientRect();
          const scale = Math.min(at.width / image.naturalWidth, at.height / image.naturalHeight);
          return {
            scale,
            left: at.left + (at.width - scale * image.naturalWidth) / 2,
            top: at.top + (at.height - scale * image.naturalHeight) / 2,
          };
        }"""
    )
    rects = page.evaluate(
        """(layer) => [...document.querySelectorAll(`g[data-layer="${layer}"] .frame`)].map((frame) => {
          const matrix = frame.getScreenCTM(), box = frame.getBBox();
          const one = new DOMPoint(box.x, box.y).matrixTransform(matrix);
          const other = new DOMPoint(box.x + box.width, box.y + box.height).matrixTransform(matrix);
          return [frame.dataset.label, one.x, one.y, other.x, other.y];
        })""",
        layer,
    )
    offset = [image["left"], image["top"]] * 2
    return [
        (label, [(at - start) / image["scale"] for at, start in zip(screen, offset, strict=True)])
        for label, *screen in rects
    ]
