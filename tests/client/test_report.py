"""`diptych report`: one file, all that came from outside as data, the most disagreement first."""

import base64
import hashlib
import html.parser
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from command import runner

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def line(file: str, agreement: float | None, text: str = "red", **more: Any) -> dict[str, Any]:
    """Return a line of `run`; without an agreement, one with an error."""
    first = {"file": file, "task": "caption", "asked": {}}
    if agreement is None:
        return first | {"error": {"message": text, "code": "engine_error"}}
    reply = {
        "model": "toy-llava", "status": "ok", "result": {"caption": text}, "text": text, "error": None,
        "latency_ms": 4.0, "usage": {"completion_tokens": 1}, "confidence": 0.5,
    }  # fmt: skip
    merged = {"result": {"caption": text}, "method": "medoid", "agreement": agreement, "deviations": {"toy-llava": 0.5}}
    return first | {"image": {"width": 32, "height": 24}, "merged": merged, "replies": [reply]} | more


@pytest.fixture
def diptych(capsys: pytest.CaptureFixture[str]) -> Any:
    return runner(capsys)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(body) + "\n" for body in lines))
    return path


class Parts(html.parser.HTMLParser):
    """The scripts and styles of a page as (attributes, text), and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem == "style":
            self.styles.append(data)


def data(parts: Parts, kind: str) -> list[Any]:
    blocks = [json.loads(text) for attributes, text in parts.scripts if attributes.get("class") == kind]
    return [value for block in blocks for value in block]


def shown_lines(parts: Parts) -> list[Any]:
    return [line for line, _ in data(parts, "block")]


def previews(parts: Parts) -> list[str]:
    return [preview for _, preview in data(parts, "block")]


def test_report_holds_every_line_in_order_of_disagreement_with_its_picture(diptych: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    PIL.Image.new("RGB", (900, 600), "red").save(folder / "a.jpg")
    PIL.Image.new("RGB", (9, 6), "red").save(tmp_path / "outside.png")
    (folder / "b.png").write_text("no picture")
    names = ["a.jpg", "b.png", "c.png", "../outside.png"]
    lines = [line(name, agreement) for name, agreement in zip(names, (0.9, 0.2, None, 1.0), strict=True)]
    ran = diptych("report", write(tmp_path / "out.jsonl", lines), folder)
    assert ran.status == 0 and "4 answers, 3 without a picture" in ran.err
    parts = Parts((tmp_path / "out.html").read_text())
    assert [entry["file"] for entry in shown_lines(parts)] == ["c.png", "b.png", "a.jpg", "../outside.png"]
    rows = data(parts, "index")
    assert [row[0] for row in rows] == ["c.png", "b.png", "a.jpg", "../outside.png"]
    assert rows[1][1:] == ["caption", 0.2, [], "red", {"toy-llava": "ok"}, {"toy-llava": 0.5}] and rows[0][2] == -1
    assert "usage" not in shown_lines(parts)[1]["replies"][0]
    pictures = previews(parts)
    assert [bool(preview) for preview in pictures] == [False, False, True, False]
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(pictures[2].removeprefix("data:image/webp;base64,"))))
    assert picture.size == (640, 427)


def test_nothing_from_outside_is_markup_and_only_own_scripts_may_run(diptych: Any, tmp_path: Path) -> None:
    record = write(tmp_path / f"{'<b>'}out.jsonl", [line(EVIL + ".png", 0.5, EVIL), line("c", None, EVIL)])
    assert diptych("report", record, "--to", tmp_path / "r.html").status == 0
    text = (tmp_path / "r.html").read_text()
    parts = Parts(text)
    assert not [tag for tag, attributes in parts.tags if "onerror" in attributes or tag in ("b", "img", "link")]
    assert not [attributes for tag, attributes in parts.tags if "src" in attributes]
    own = [text for attributes, text in parts.scripts if attributes.get("type") != "application/json"]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digests = re.findall(r"'sha256-([^']*)'", policy)
    assert digests == [
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (*own, *parts.styles)
    ]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'") and len(own) == 2
    assert shown_lines(parts)[1]["replies"][0]["result"]["caption"] == EVIL
    assert not re.search(r"^(import|export) ", own[1], re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:const|let|function) (\w+)", own[1], re.MULTILINE)
    assert len(names) > 40 and len(set(names)) == len(names)  # they share one scope


def test_odd_names_and_a_picture_with_a_broken_head_leave_the_report_whole(diptych: Any, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    PIL.Image.new("RGB", (9, 6)).save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    broken = whole.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")  # the description is in place of the width
    assert broken != whole
    (tmp_path / "a.jpg").write_bytes(broken)
    names = ["a.jpg", "a\0.png", "\udcff.png", f"toy/{'9' * 5000}"]
    record = write(tmp_path / os.fsdecode(b"\xff.jsonl"), [line(name, 0.5) for name in names])
    ran = diptych("report", record, tmp_path)
    assert ran.status == 0 and "4 answers, 4 without" in ran.err


def test_scenes_of_an_evaluation_are_drawn_again_with_their_truth(diptych: Any, tmp_path: Path) -> None:
    lines = []
    for name in ("toy/20000000", "toy/text/20000001", "toy/x"):
        body = line(name, 0.5, picture=name, truth={"captions": ["red"]})
        item = f"toy/caption/{name.rpartition('/')[2]}"
        lines.append({"item": item, **{key: body[key] for key in body if key != "file"}})
    ran = diptych("report", write(tmp_path / "out.jsonl", lines), "--side", 64)
    assert ran.status == 0 and "3 answers, 1 without" in ran.err
    parts = Parts((tmp_path / "out.html").read_text())
    assert [bool(preview) for preview in previews(parts)] == [True, True, False]
    assert shown_lines(parts)[0]["truth"] == {"captions": ["red"]}


@pytest.mark.parametrize("key", ["file", "item"])
def test_picture_in_a_folder_called_toy_is_no_drawn_scene(diptych: Any, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "in"
    (folder / "toy").mkdir(parents=True)
    PIL.Image.new("RGB", (9, 6), "red").save(folder / "toy" / "7", "PNG")
    PIL.Image.new("RGB", (9, 6), "red").save(folder / "toy" / "a.png")
    lines = [line("toy/7", 0.5), line("toy/a.png", 0.6), line("toy/8", 0.7)]
    if key == "item":
        lines = [
            {"item": f"toy/labels.jsonl/caption/{at}", "picture": body.pop("file"), **body}
            for at, body in enumerate(lines)
        ]
    assert diptych("report", write(tmp_path / "out.jsonl", lines), folder).status == 0
    first, second, missing = previews(Parts((tmp_path / "out.html").read_text()))
    for preview in (first, second):
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(preview.removeprefix("data:image/webp;base64,"))))
        assert picture.size == (9, 6)
    assert missing == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.jsonl",), "No such file"),
        (("out.jsonl", "nowhere"), "no such folder"),
        (("empty.jsonl",), "no answers"),
        (("half.jsonl",), "The line of 'a' is no answer"),
        (("nan.jsonl",), "numbers that are not finite"),
        (("deep.jsonl",), "line 1: this is not a record"),
    ],
)
def test_unusable_record_is_refused(diptych: Any, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    write(tmp_path / "out.jsonl", [line("a", 0.5)])
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "half.jsonl", [line("a", 0.5, merged={"result": {"boxes": [{"box": [0, 0, 1, 1]}]}})])
    write(tmp_path / "nan.jsonl", [line("a", float("nan"))])
    (tmp_path / "deep.jsonl").write_text('{"file": "a", "task": ' + 100_000 * "[" + "\n")
    ran = diptych("report", *(tmp_path / argument for argument in arguments))
    assert ran.status in (1, 2) and words in ran.err
