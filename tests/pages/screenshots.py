"""Takes pictures of the page's main states over a running server: `python tests/pages/screenshots.py URL FOLDER`.

The two of the READMEs come from here: `make screenshots` against `make serve`. Needs Chromium, as the tests do.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from visiting import WAIT_MS, ask, chromium, pick, visit

WIDTHS = {390: 844, 1024: 768, 1920: 1080}
README_PICTURES = {"detect-1920-light": "page.png", "compare-1024-dark": "compare.png"}
"""The pictures that READMEs show, with their names there. They are at most 1200 pixels wide."""


def states(page: Page, url: str, take: Callable[[str], None]) -> None:
    visit(page, url)
    take("first")
    ask(page)
    take("caption")
    pick(page, "detect")
    ask(page)
    take("detect")
    pick(page, "segment")
    page.fill("#text", "green triangle")
    ask(page)
    take("segment")
    page.locator("#merged button", has_text="Raw").click()
    take("raw")
    page.goto(f"{url}/compare/llava-1.5-vs-paligemma")
    expect(page.locator("#table table")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#toys")).to_be_visible(timeout=WAIT_MS)
    take("unserved")
    page.goto(f"{url}/compare/toy-llava-vs-toy-paligemma")
    expect(page.locator("#go")).to_be_enabled(timeout=WAIT_MS)
    take("compare")
    page.goto(f"{url}/docs")
    expect(page.locator(".route").first).to_be_visible()
    take("docs")


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        for width, height in WIDTHS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
                page = context.new_page()

                def take(state: str, page: Page = page, end: str = f"{width}-{scheme}") -> None:
                    page.mouse.move(0, 0)  # nothing is pointed at
                    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
                    page.wait_for_timeout(400)
                    path = folder / f"{state}-{end}.png"
                    page.screenshot(path=path, full_page=state not in ("first", "raw"))
                    if path.stem in README_PICTURES:
                        _small(path, Path(__file__).parent / "shown" / README_PICTURES[path.stem])

                states(page, url, take)
                context.close()
        browser.close()


def _small(path: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((1200, 4000), Image.Resampling.LANCZOS)
    picture.save(to, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
