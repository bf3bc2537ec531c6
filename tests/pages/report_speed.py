"""Measures the report of many pictures in Chromium: `python tests/pages/report_speed.py [NUMBER] [FOLDER]`.

It makes a record of NUMBER pictures (10,000) with four models' boxes, drawn scenes as pictures, writes the report into
FOLDER (a temporary one), opens it, scrolls through all of it, and prints how long opening took and the longest task
(PerformanceObserver's longtask, from 50 ms) while it scrolled, jumped, filtered and walked.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright
from visiting import chromium

from serve.client import report
from serve.toy import world

MODELS = ("toy-llava", "toy-llava-b", "toy-paligemma", "toy-paligemma-b")
SCENES = 500
OBSERVE = """
window.tasks = [];
new PerformanceObserver((seen) => tasks.push(...seen.getEntries().map((entry) => entry.duration)))
  .observe({ type: "longtask", buffered: true });
"""
SCROLL = """async ([from, to, steps]) => {
  for (let step = 0; step <= steps; step++) {
    scrollTo({ top: (from + (to - from) * step / steps) * document.documentElement.scrollHeight, behavior: "instant" });
    await new Promise(requestAnimationFrame);
  }
}"""


BY_HAND = """async ([pixels, steps]) => {
  for (let step = 0; step <= steps; step++) {
    scrollTo({ top: step * pixels, behavior: "instant" });
    await new Promise(requestAnimationFrame);
  }
}"""


def write_record(path: Path, count: int) -> None:
    """Write the lines of a run of `detect` over scenes, each model's boxes a little apart."""
    draw = random.Random(1)
    scenes = [world.scene(20_600_000 + at) for at in range(SCENES)]
    with path.open("w") as file:
        for at in range(count):
            file.write(json.dumps(_line(at, scenes[at % SCENES], draw)) + "\n")


def _line(at: int, scene: world.Scene, draw: random.Random) -> dict[str, Any]:
    width, height = round(scene.size[0] * 2), round(scene.size[1] * 2)
    agreement = draw.random()

    def boxes(apart: float) -> dict[str, Any]:
        sides = (width, height) * 2
        corners = [
            [round(edge * side + draw.uniform(-apart, apart), 2) for edge, side in zip(shape.box, sides, strict=True)]
            for shape in scene.shapes
        ]
        labels = [shape.name for shape in scene.shapes]
        return {
            "boxes": [{"label": label, "box": box, "score": 0.9} for label, box in zip(labels, corners, strict=True)]
        }

    replies = [
        {
            "model": name,
            "status": "ok",
            "result": boxes(20 * (1 - agreement)),
            "text": "",
            "error": None,
            "latency_ms": 40.0,
        }
        for name in MODELS
    ]
    merged = {
        "result": boxes(2), "method": "weighted_box_fusion", "agreement": agreement, "models": list(MODELS),
        "deviations": dict.fromkeys(MODELS, 1 - agreement),
    }  # fmt: skip
    image = {"width": width, "height": height}
    return {
        "file": f"{at:05d}.png",
        "task": "detect",
        "asked": {},
        "image": image,
        "merged": merged,
        "replies": replies,
    }


def measure(page: Page, path: Path) -> None:
    page.add_init_script(OBSERVE)
    began = time.perf_counter()
    page.goto(path.as_uri())
    expect(page.locator("#state[data-kind=ready]")).to_be_visible(timeout=60_000)
    expect(page.locator(".tile image[href]").first).to_be_attached()
    print(f"open, with the first pictures drawn: {time.perf_counter() - began:.2f} s")
    _longest(page, "while it opened")
    page.evaluate(BY_HAND, [150, 400])
    _longest(page, "while it scrolled 400 times by 150 pixels")
    for name, steps in (("scrolled through", 600), ("scrolled through fast", 100), ("jumped", 20)):
        page.evaluate(SCROLL, [0, 1, steps])
        _longest(page, f"while it {name} in {steps} steps")
    page.fill("#words", "7")
    page.wait_for_timeout(500)
    page.select_option("#sort", "name")
    page.wait_for_timeout(500)
    _longest(page, "while it was searched and sorted")
    page.evaluate(SCROLL, [0, 1, 100])
    _longest(page, "while it scrolled, sorted by name")
    page.locator(".tile button").first.click()
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    _longest(page, "while 50 pictures were walked through")


def _longest(page: Page, when: str) -> None:
    page.wait_for_timeout(300)
    tasks: list[float] = page.evaluate("tasks.splice(0)")
    print(f"{when}: {len(tasks)} tasks of 50 ms or more, the longest {max(tasks, default=0):.0f} ms")


def main(count: int, folder: Path) -> None:
    pictures = folder / "scenes"
    pictures.mkdir(parents=True, exist_ok=True)
    for at in range(count):  # as many files as pictures: each is read and made small
        name = pictures / f"{at:05d}.png"
        if at < SCENES:
            world.draw(world.scene(20_600_000 + at), 2.0).save(name)
        elif not name.exists():
            name.hardlink_to(pictures / f"{at % SCENES:05d}.png")
    write_record(folder / "record.jsonl", count)
    began = time.perf_counter()
    report.report(argparse.Namespace(record=folder / "record.jsonl", folder=pictures, to=None, side=None))
    size = (folder / "record.html").stat().st_size / 2**20
    print(f"report of {count} pictures: {size:.1f} MB, written in {time.perf_counter() - began:.1f} s")
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        measure(browser.new_page(viewport={"width": 1280, "height": 900}), folder / "record.html")
        browser.close()


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    if len(sys.argv) > 2:
        main(number, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(number, Path(temporary))
