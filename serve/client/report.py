"""`diptych report`: a record of `run` or `evaluate` as one HTML file that needs no server and no network.

The file is the page /report (serve/api/web/report.html) with its scripts and styles inside, allowed by their digests,
and the record and small pictures as data: an index that is read when it opens, and blocks that are read as they
are shown. Everything that came from a model or a file's name is data, never markup.
"""

import argparse
import base64
import collections
import concurrent.futures
import hashlib
import html
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
from rich.console import Console
from rich.progress import track

from serve.api.page_files import WEB, whole_page
from serve.client.board import PLACES, answer_text, first_field, placed_items
from serve.client.evaluation import folder as folders
from serve.client.evaluation import lines, toys
from serve.client.http_client import Failure, Misuse
from serve.media.image import undecoded_image
from serve.toy import world

Json = dict[str, Any]
STYLES = ("style.css", "report.css")
SCRIPTS = ("dom.js", "rle.js", "tones.js", "places.js", "report.js")
"""Modules that become one, each after those that it imports."""
SIDES = ((300, 640), (2000, 320))
"""Up to so many pictures, the longest side of a preview in pixels."""
SMALLEST_SIDE = 160
INDEX = 1000
"""Lines in a block of the index, which the page reads when it opens."""
LINES = 50
"""Lines in a block with their previews, which the page reads when it shows one; as the page counts them."""
MAX_WORDS = 200
"""Characters of an answer in the index."""
REPLY = ("model", "status", "result", "error", "latency_ms")
MERGED = ("result", "method", "agreement", "deviations", "error")


def report(options: argparse.Namespace) -> int:
    """Write the report; return 0. Raises Failure."""
    record: Path = options.record
    target: Path = options.to or record.with_suffix(".html")
    rows = sorted(((_row(line), line) for line in _read(record)), key=lambda pair: pair[0][2])
    answers = [line for _, line in rows]
    if not answers:
        raise Failure(f"{record} holds no answers.")
    if options.folder is not None and not options.folder.is_dir():
        raise Misuse(f"{options.folder}: there is no such folder.")
    side = options.side or next((side for most, side in SIDES if len(answers) <= most), SMALLEST_SIDE)
    pictures = [(row[0], _is_drawn(line)) for row, line in rows]
    missing = 0
    try:
        with target.open("w", encoding="utf-8", errors="replace") as out:  # a file's name may be no text
            head, tail = _page(f"{record.name}: where they disagree")
            out.write(head)
            for index in _blocks((row for row, _ in rows), INDEX):
                _write(out.write, "index", index)
            previews = _previews(pictures, options.folder, side)
            for block in _blocks(zip(map(trimmed, answers), previews, strict=True), LINES):
                missing += sum(not preview for _, preview in block)
                _write(out.write, "block", block)
            out.write(tail)
    except OSError as error:
        raise Failure(f"{target} was not written: {error.strerror or error}.") from None
    why = ": give the folder with them" if options.folder is None else ""
    without = f", {missing} without a picture{why}" if missing else ""
    print(f"{target}: {len(answers)} answers{without}.", file=sys.stderr)
    return 0


def _read(record: Path) -> list[Json]:
    """Return the lines of a record of `run`, or else of `evaluate`."""
    try:
        with record.open("rb") as file:
            key = "item" if file.read(8) == b'{"item":' else "file"
    except OSError as error:
        raise Failure(f"{record}: {error.strerror}.") from None
    return lines.read_lines(record, key)


def _row(line: Json) -> list[Any]:
    """Return what the page sorts and filters by: `add` in report.js makes the same of a line. Raises Failure."""
    name = str(line.get("picture") or line.get("file") or line.get("item"))
    try:
        return _fields(name, line)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise Failure(f"The line of {name[:200]!r} is no answer that `run` or `evaluate` has recorded.") from None


def _fields(name: str, line: Json) -> list[Any]:
    merged, replies = line.get("merged") or {}, line.get("replies") or []
    results = [merged.get("result"), line.get("truth"), *(reply.get("result") for reply in replies)]
    labels = dict.fromkeys(str(item["label"]) for result in results for item in placed_items(result))
    error = line.get("error") or merged.get("error")
    summary = str(error.get("message")) if error else _summary(merged.get("result") or {})
    states = {reply["model"]: reply["status"] for reply in replies}
    agreement = float(merged["agreement"]) if merged.get("result") is not None else -1.0
    return [name, line["task"], agreement, list(labels), summary, states, merged.get("deviations") or {}]


def _summary(result: Json) -> str:
    """Return a result as the page words it: a text, or how many boxes or points of each label."""
    field, answer = first_field(result)
    if field not in PLACES:
        return answer_text(answer)[:MAX_WORDS]
    counts = collections.Counter(str(item["label"]) for item in answer)
    parts = (f"{count} × {label}" if count > 1 else label for label, count in counts.items())
    return ", ".join(parts)[:MAX_WORDS] or "nothing found"


def trimmed(line: Json) -> Json:
    """Return what the page shows of a line."""
    kept: Json = {
        name: line[name]
        for name in ("file", "item", "picture", "task", "asked", "image", "truth", "error")
        if name in line
    }
    if line.get("merged"):
        kept["merged"] = {name: line["merged"][name] for name in MERGED if name in line["merged"]}
    kept["replies"] = [
        {name: reply[name] for name in REPLY if reply.get(name) is not None}
        | ({"text": reply.get("text", "")} if reply["status"] != "ok" else {})
        for reply in line.get("replies") or []
    ]
    return kept


def _previews(pictures: Sequence[tuple[str, bool]], folder: Path | None, side: int) -> Iterator[str]:
    """Yield a data URL of each picture made small, in order; an empty text where there is no such picture.

    pictures: names, and whether each is that of a drawn scene.
    """
    console = Console(stderr=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = pool.map(lambda picture: _preview(picture[0], picture[1], folder, side), pictures)
        yield from track(ahead, "", len(pictures), console=console, transient=True, disable=not console.is_terminal)


def _preview(name: str, drawn: bool, folder: Path | None, side: int) -> str:
    return _data_url(_scene(name) if drawn else _file(name, folder, side), side)


def preview_of(data: bytes, side: int) -> str:
    """Return a data URL of a picture made small; an empty text where it cannot be read."""
    try:
        return _data_url(_upright(data, side), side)
    except Exception:  # Pillow raises errors of any kind for a broken picture
        return ""


def _data_url(picture: PIL.Image.Image | None, side: int) -> str:
    if picture is None:
        return ""
    picture.thumbnail((side, side), PIL.Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=65, method=0)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _file(name: str, folder: Path | None, side: int) -> PIL.Image.Image | None:
    """Return a picture of the folder, upright, as RGB; None where there is none that can be read."""
    if folder is None:
        return None
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder.resolve()):
            return None
        return _upright(folders.content(path), side)
    except Exception:  # Pillow raises errors of any kind for a broken picture
        return None


def _upright(data: bytes, side: int) -> PIL.Image.Image:
    undecoded_image(data)  # its size and structure, before Pillow decodes it
    picture = PIL.Image.open(io.BytesIO(data))
    picture.draft("RGB", (2 * side, 2 * side))  # of a JPEG as many pixels as are needed
    return PIL.ImageOps.exif_transpose(picture).convert("RGB")


def _is_drawn(line: Json) -> bool:
    """Return whether a line is about a scene that `evaluate toy` drew. A folder's pictures may be called alike."""
    name = str(line.get("picture"))
    return name.startswith("toy/") and line.get("item") == f"toy/{line['task']}/{name.rpartition('/')[2]}"


def _scene(name: str) -> PIL.Image.Image | None:
    """Draw the scene that `evaluate toy` asked about."""
    *_, number = name.split("/")
    if not number.isdecimal() or len(number) > 9:
        return None
    return world.draw(world.scene(int(number), text=True if "/text/" in name else None), toys.SCALE)


def _blocks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(values)
    while block := list(itertools.islice(rest, size)):
        yield block


def _write(write: Callable[[str], object], kind: str, values: list[Any]) -> None:
    """Write values as JSON in an element that holds data: no letter of it ends the element. Raises Failure."""
    try:
        text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    except ValueError:
        raise Failure("The record has numbers that are not finite.") from None
    write(f'<script type="application/json" class="{kind}">{text}</script>\n')


def _page(title: str) -> tuple[str, str]:
    """Return the page up to its data, and the rest."""
    theme, style = (WEB / "theme.js").read_text(), "".join((WEB / name).read_text() for name in STYLES)
    script = "\n".join(map(_joined, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_digest(theme)} {_digest(script)}; style-src {_digest(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    own = f"<style>{style}</style>\n<script>{theme}</script>"
    page = re.sub(r"<!--page-->.*?<!--/page-->", lambda _: "", whole_page("report.html"), flags=re.DOTALL)
    page = re.sub(r"<title>.*?</title>", lambda _: f"<title>{html.escape(title)}</title>\n{own}", page)
    policy_tag = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n  {policy_tag}')
    head, end = page.split("</body>")
    return head, f'<script type="module">{script}</script>\n</body>{end}'


def _joined(name: str) -> str:
    """Return a module without its imports and exports, for one script with the modules that it imports."""
    text = (WEB / name).read_text(encoding="utf-8")
    return re.sub(r"^export ", "", re.sub(r"^import .*;\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
