"""Named sets of `diptych evaluate` that are made of what packages ship.

They are tried on stand-ins in the packages' layout, and on the real packages where they are installed: Python's in the
environment, Debian's in / or where DIPTYCH_PACKAGES says."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from served_folder import ROOT

from serve.cli import parser
from serve.client.evaluation import emoji, packages, stamps, things, written
from serve.client.evaluation.evaluate import DRAWN
from serve.client.evaluation.items import Item
from serve.client.http_client import Failure
from serve.media import masks
from serve.media.image import decode_image
from serve.toy.varied.names import plural_name

COMMANDS = {
    "emoji": "apt-get install fonts-noto-color-emoji",
    "stamps": "apt-get install tuxpaint-stamps-default lomiri-wallpapers-16.04",
    "words": "apt-get install pango1.0-tools",
    "captcha": "pip install captcha",
    "digits": "pip install scikit-learn",
}
STAMPS = {
    "animals/birds/duck": ("A duck.", (250, 0, 0)),
    "animals/birds/drake": ("A drake.", (0, 250, 0)),
    "animals/mammals/fox": ("A fox.", (0, 0, 250)),
    "food/fruit/orange": ("An orange.", (250, 250, 0)),
    "food/fruit/orange2": ("An orange.", (250, 250, 0)),
    "household/rubberduck": ("A rubber duck!", (250, 0, 250)),
    "vehicles/auto/truck": ("A pickup truck.", (0, 250, 250)),
}
UNUSED = {
    "animals/birds/cartoon/tux": "A penguin.",
    "food/vegetables/broccoli": "Eat your broccoli!",
    "clothes/pants": "A pair of pants.",
    "town/gate": "A gate.",
}
CAPTCHA = """
import io, secrets
import PIL.Image
class ImageCaptcha:
    def __init__(self, width, height):
        self.size = width, height
    def generate(self, chars):
        picture, out = PIL.Image.new("RGB", self.size), io.BytesIO()
        for _ in range(50):
            at = secrets.choice(range(self.size[0])), secrets.randbelow(self.size[1])
            picture.putpixel(at, (secrets.randbits(8), 0, 0))
        picture.save(out, "PNG")
        return out
"""
DIGITS = """
import types
import numpy as np
def load_digits():
    target = np.arange(200) % 10
    return types.SimpleNamespace(target=target, images=np.ones((200, 8, 8)) * target[:, None, None] + 1)
"""
PANGO_VIEW = f"""#!{sys.executable}
import sys
import PIL.Image, PIL.PngImagePlugin
options = dict(part[2:].split("=", 1) for part in sys.argv[1:] if "=" in part)
notes = PIL.PngImagePlugin.PngInfo()
notes.add_text("text", options["text"])
PIL.Image.new("RGB", (200, 100), options["background"]).save(options["output"], pnginfo=notes)
"""


def items_of(name: str, task: str, count: int = 3) -> list[Item]:
    return DRAWN[name][1]([task], count, 0)


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Make an empty folder the only root of Debian packages, and forget those of other tests."""
    monkeypatch.setattr(packages, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv(packages.UNPACKED, str(tmp_path))
    caches = (stamps.stamp_phrases, stamps._stamp, stamps._photograph, emoji._glyph)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def stamp_folder(unpacked: Path) -> Path:
    """Write stamps, rectangles of 60 by 40 with a faint glow around them, and dark photographs."""
    for key, (description, color) in {**STAMPS, **{key: (text, (9, 9, 9)) for key, text in UNUSED.items()}}.items():
        file = unpacked / stamps.STAMPS / f"{key}.txt"
        write_files(file.parent, {file.name: f"{description}\nde.utf8=Ein Ding.\n"})
        stamp = PIL.Image.new("RGBA", (80, 60), (*color, 40))
        stamp.paste((*color, 255), (10, 10, 70, 50))
        stamp.save(file.with_suffix(".png"))
    (unpacked / stamps.BACKGROUNDS).mkdir()
    for name in stamps.PHOTOGRAPHS:
        PIL.Image.new("RGB", (400, 200), (40, 40, 40)).save(unpacked / stamps.BACKGROUNDS / name)
    return unpacked


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put stand-ins of the Python packages before the real ones."""
    names = ("captcha", "captcha.image", "sklearn", "sklearn.datasets")
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sources = {"captcha/image.py": CAPTCHA, "sklearn/datasets.py": DIGITS}
    write_files(tmp_path, {"captcha/__init__.py": "", "sklearn/__init__.py": "", **sources})
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_package_is_named_with_its_command(name: str, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("captcha.image", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Failure, match=COMMANDS[name]):
        items_of(name, next(iter(DRAWN[name][0])))


@pytest.mark.slow
def test_stamps_have_the_boxes_and_masks_of_their_pixels(stamp_folder: Path) -> None:
    colors = {description[:-1].split(" ", 1)[1]: color for description, color in STAMPS.values()}
    numbers = set()
    for item in items_of("stamps", "segment", 8):
        pixels = decode_image(item.load()).pixels.astype(int)
        for label in item.fields["labels"]:
            covered = np.zeros(pixels.shape[:2], bool)
            for box in (box for box in item.truth["boxes"] if box["label"] == label):
                x0, y0, x1, y1 = map(int, box["box"])
                mask = masks.decode(masks.Rle(**box["mask"]))
                assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0.9 * (x1 - x0) * (y1 - y0)
                assert (x1 - x0) == pytest.approx(1.5 * (y1 - y0), abs=3)
                assert things.SIDES[0] - 2 <= x1 - x0 <= things.SIDES[1]  # without the glow
                covered |= mask
            drawn = np.abs(pixels - colors[label]).max(axis=2) < 90  # edges are blended
            assert (covered != drawn).mean() < 0.005
        numbers.add(len(item.truth["boxes"]))
    assert len(numbers) > 2


@pytest.mark.slow
def test_answers_and_captions_agree_with_the_boxes(stamp_folder: Path) -> None:
    answers = set()
    rows = zip(*(items_of("stamps", task, 20) for task in ("detect", "caption", "count", "vqa")), strict=True)
    for detect, caption, count, vqa in rows:
        assert detect.picture == vqa.picture
        labels = [box["label"] for box in detect.truth["boxes"]]
        (text,) = caption.truth["captions"]
        assert all(label in text or plural_name(label) in text for label in labels)
        assert text.count(" and ") + text.count(", ") == len(set(labels)) - 1
        wanted = count.fields["question"].removeprefix("How many ").removesuffix(" are there?")
        assert count.truth["count"] == [plural_name(label) for label in labels].count(wanted)
        if vqa.truth["kind"] == "exists":
            _, label = vqa.fields["question"].removeprefix("Is there ").removesuffix("?").split(" ", 1)
            assert vqa.truth["answers"] == ["yes" if label in labels else "no"]
            answers |= {*vqa.truth["answers"]}
    assert answers == {"yes", "no"}


def test_stamps_that_could_be_taken_for_each_other_are_in_no_picture_together(stamp_folder: Path) -> None:
    assert set(stamps.stamp_phrases()) == {f"{key}.png" for key in STAMPS}  # no cartoon, no story, no pair
    pictures = [{STAMPS[thing.key[:-4]][0] for thing in stamps.STAMP_SET.place(seed)[0]} for seed in range(100)]
    ducks = [picture & {"A duck.", "A drake.", "A rubber duck!"} for picture in pictures]
    assert len(set.union(*ducks)) == 3 and {"A drake.", "A rubber duck!"} in ducks
    assert all(len(some) < 2 or "A duck." not in some for some in ducks)


@pytest.mark.slow
def test_stamps_are_evaluated_on_a_server(diptych: Any, server: str, stamp_folder: Path) -> None:
    ran = diptych("evaluate", "stamps", "--n", 2, "--server", server, "--json")
    assert ran.status == 0, ran.err
    assert {report["task"] for report in json.loads(ran.out)} == set(things.TASK_NAMES)
    ran = diptych("evaluate", "stamps", "--task", "ocr", "--server", server)
    assert ran.status == 1 and "stamps has no questions for ocr, only for vqa" in ran.err


def test_captcha_is_the_same_for_the_same_seed(site: None) -> None:
    first, again = items_of("captcha", "ocr"), items_of("captcha", "ocr")
    assert [item.truth for item in first] == [item.truth for item in again]
    assert [item.load() for item in first] == [item.load() for item in reversed(again)][::-1]
    assert len({item.load() for item in first}) == 3
    assert sys.modules["captcha.image"].secrets is __import__("secrets")  # the package is as it was


def test_digits_are_in_the_order_of_the_text(site: None) -> None:
    for item in items_of("digits", "ocr"):
        middle, step = (written.MARGIN + 4) * written.CELL, 9 * written.CELL
        paper = decode_image(item.load()).pixels[middle, middle : -written.MARGIN * written.CELL : step, 0]
        inks = (255 - paper.astype(int)) * 16 / 255
        assert "".join(str(round(ink) - 1) for ink in inks) == item.truth["text"] and len(inks) >= 3


@pytest.mark.slow
def test_words_are_drawn_by_the_program(unpacked: Path) -> None:
    licence = "Permission to copy and distribute verbatim copies is granted. No 12 x y."
    write_files(unpacked, {"usr/bin/pango-view": PANGO_VIEW, "usr/share/common-licenses/GPL-3": licence})
    for item in items_of("words", "ocr"):
        assert PIL.Image.open(io.BytesIO(item.load())).info["text"] == item.truth["text"]
        assert set(item.truth["text"].lower().split()) <= {"copy", "and", "distribute", "verbatim", "copies", "granted"}
    write_files(unpacked, {"usr/bin/pango-view": "#!/bin/sh\necho no fonts >&2\nexit 1\n"})
    with pytest.raises(Failure, match="pango-view drew nothing: no fonts"):
        items_of("words", "ocr")[0].load()


@pytest.mark.parametrize("name", COMMANDS)
def test_real_package_gives_the_same_pictures_twice(name: str) -> None:
    for task in DRAWN[name][0]:
        try:
            first, again = items_of(name, task), items_of(name, task)
        except Failure as failure:
            pytest.skip(str(failure))
        assert [(item.fields, item.truth, item.load()) for item in first] == [
            (item.fields, item.truth, item.load()) for item in again
        ]
        for item in first:
            assert decode_image(item.load()).pixels.std() > 5
            for box in item.truth.get("boxes", []):
                x0, y0, x1, y1 = box["box"]
                assert max(x1 - x0, y1 - y0) == pytest.approx(np.mean(things.SIDES), abs=56)
    assert name != "stamps" or len(stamps.stamp_phrases()) > 200


def test_named_sets_are_in_the_help_and_the_readme(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parser().parse_args(["evaluate", "--help"])
    assert f"FOLDER|{'|'.join(DRAWN)}" in capsys.readouterr().out
    readme = (ROOT / "serve/client/evaluation/README.md").read_text()
    rows = {line.split("`")[1]: line for line in readme.splitlines() if line.startswith("| `")}
    for name, (tasks, _) in DRAWN.items():
        assert rows[name].split("|")[3].strip() == ", ".join(tasks) and COMMANDS.get(name, "") in rows[name]
