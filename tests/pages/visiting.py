"""What a visitor of the page does, and what the page then shows."""

import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, expect

SCENES = Path(__file__).parents[2] / "serve" / "toy" / "scenes"
WAIT_MS = 60_000


def chromium(playwright: Playwright) -> Browser:
    """The machine's own, without its sandbox: CI runs as root, which that refuses."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "apt-get install chromium"
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def visit(page: Page, url: str) -> None:
    """Open it, until it can be asked."""
    page.goto(url)
    expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)


def pick(page: Page, task: str) -> None:
    page.locator(f'#tasks input[value="{task}"]').check(force=True)


def ask(page: Page) -> None:
    """Click, and wait for the whole answer."""
    page.click("#go")
    answered(page)


def answered(page: Page) -> None:
    expect(page.locator("#share")).to_be_visible(timeout=WAIT_MS)


def column(page: Page, model: str) -> Any:
    return page.locator(f'.column[data-model="{model}"]')


def frames(page: Page, layer: str) -> list[tuple[str, list[float]]]:
    """What is drawn of one layer: (label, [x0, y0, x1, y1] in the picture's pixels, from where it is on the screen)."""
    found: list[tuple[str, list[float]]] = []
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
    for label, *screen in rects:
        offset = [image["left"], image["top"]] * 2
        found.append((label, [(at - start) / image["scale"] for at, start in zip(screen, offset, strict=True)]))
    return found
