"""`diptych ask`: one picture or film and one question to every model."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from serve.client.board import Board, placed_items
from serve.client.http_client import Failure, Misuse, Server
from serve.client.listing import toy_notes
from serve.media.video_caps import sniff

FIELDS = (
    *("models", "deadline_s", "quorum", "merge", "judge", "min_agreement", "temperature", "max_tokens", "seed", "lang"),
    *("multiple", "boxes", "reasoning_effort", "thinking_token_budget"),
)
OPTIONS = {"text": "question", "phrases": "labels", "json": "schema"}
"""The option for a task's text, by its kind."""
ENOUGH = 64 * 2**20  # the server says what is too large; this only makes `diptych ask /dev/zero` end


def ask(options: argparse.Namespace) -> int:
    """Ask, show and save the answer; return the exit status. Raises Failure where there is nothing to show."""
    task = options.task or ("vqa" if options.question else "caption")
    fields = _fields(task, options)
    if options.save is not None:
        _check_target(task, options.save, bool(options.boxes))
    picture = read_input(options.image)
    if options.save is not None and isinstance(picture, str):
        raise Misuse("--save draws into a picture that is here: download it and ask about the file.")
    film = options.video or (isinstance(picture, bytes) and sniff(picture) in ("mp4", "webm"))
    board = Board()
    with Server(options.server, options.api_key) as server:
        if options.json:
            response = server.ask(task, picture, fields, film=film)
            board.fill(response)
            print(_dumped(response))
        else:
            _show(server, board, (task, picture, fields), film)
    if options.save is not None and isinstance(picture, bytes):
        legend = save(options.save, picture, board, film=film)
        print(legend, file=sys.stderr if options.json else sys.stdout)
    return 0


def _show(server: Server, board: Board, question: tuple[str, bytes | str, dict[str, Any]], film: bool) -> None:
    """Show the replies side by side as they stream on a terminal, as the finished table in a file or a pipe."""
    console, cards = Console(), server.get("/v1/catalog")["data"]
    board.order = [card["id"] for card in cards]
    if sys.stdout.isatty():
        with Live(board, console=console, refresh_per_second=15):
            try:
                for event, body in server.events(*question, film=film):
                    board.take(event, body)
            finally:
                board.over = True
    else:
        board.fill(server.ask(*question, film=film))
        console.print(board)
    for note in toy_notes(cards, board.columns()):
        console.print(note, soft_wrap=True)


def read_input(name: str) -> bytes | str:
    """Return the bytes of an image or video file. A URL is returned as it is: the server fetches it."""
    if name.lower().startswith(("http://", "https://")):
        return name
    try:
        if name == "-":
            return sys.stdin.buffer.read(ENOUGH)
        with open(name, "rb") as file:
            return file.read(ENOUGH)
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}.") from None


def save(path: Path, picture: bytes, board: Board, *, film: bool = False) -> str:
    """Draw all boxes, masks or points into a copy of the picture. Return the legend: which colour is whose."""
    from serve.errors import ServeError
    from serve.media import image, video
    from serve.media.drawing import MERGED, Layer, colour_of, draw_layers
    from serve.media.lettering import Lettering

    layers, legend = [], []
    for column, name in enumerate(board.columns()):
        colour, value = colour_of(column)
        legend.append(f"{name} {colour}")
        layers.append(Layer(value, _places(board.replies.get(name))))
    layers.append(Layer(MERGED, _places(board.merged), bold=True))
    try:
        still = video.decode_video(picture).first_frame() if film else image.decode_image(picture)
        lettering = Lettering()
        draw_layers(still.pil(), layers, lettering).save(path)
    except ServeError as error:
        raise Failure(f"{path} was not written: {error.message}") from None
    except OSError as error:
        raise Failure(f"{path} was not written: {error.strerror or error}.") from None
    except ValueError:
        raise Failure(f"{path} was not written: the server sent a mask that is not one of this picture.") from None
    kinds = {kind for layer in layers for item in layer.items for kind in ("mask", "point") if kind in item}
    drawn = "Boxes and masks" if "mask" in kinds else "Points" if "point" in kinds else "Boxes"
    return f"{drawn} drawn into {path}: {', '.join(legend)}, merged red. {lettering.note()}".rstrip()


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that every task has as the fields of a form, where weights are JSON."""
    fields = {name: value for name in FIELDS if (value := getattr(options, name, None)) is not None}
    weights = getattr(options, "weights", None)
    return fields if weights is None else fields | {"weights": json.dumps(weights)}


def _fields(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the request's fields, those that were given."""
    if (
        options.task is None and options.labels is None and options.schema is None
    ):  # vqa with its question, or a caption
        return given(options) | ({"question": options.question} if options.question else {})

    def usage(field: str, words: str) -> str:
        return f"diptych ask {options.image} {words}" + f" --task {task}" * (task != "vqa")

    return given(options) | text_fields(task, options.question, options.labels, usage, options.schema)


def text_fields(
    task: str,
    text: str | None,
    phrases: str | None,
    usage: Callable[[str, str], str],
    schema: str | None = None,
) -> dict[str, Any]:
    """Return the field of a task's request for what the client writes; empty for a task without.

    text: what stands on the command line without an option, or after --question; phrases: after --labels; schema: after
    --schema, JSON or the name of a file with it.
    usage: (option, the example's words for it in quotes) -> a command line that gives it. Raises Misuse where the task
    needs a text and has none.
    """
    from serve.tasks import TASKS  # takes 0.2 s, so only where a task is named

    field = TASKS[task].text_field if task in TASKS else None  # the server refuses a task that it does not know
    kind = None if field is None else field.kind
    for option, only, content in (("--labels are", "phrases", phrases), ("--schema is", "json", schema)):
        if content is not None and kind != only:
            *others, last = (
                name for name, known in TASKS.items() if known.text_field and known.text_field.kind == only
            )
            takers = f"{', '.join(others)} and {last}" if others else last
            raise Misuse(f"{option} for {takers}, not for {task}.")
    if field is None:
        return {"question": text} if text else {}  # the server says that the task has none
    written = (phrases if kind == "phrases" else schema) or text or ""
    if kind == "json" and written and not written.lstrip().startswith("{"):
        written = _schema_file(written)
    if not (value := field.parse(written)):
        raise Misuse(f"{field.missing} {usage(OPTIONS[field.kind], repr(TASKS[task].written(TASKS[task].example)))}")
    return {field.name: value}


def _schema_file(name: str) -> str:
    given = read_input(name)
    try:
        return given.decode() if isinstance(given, bytes) else given
    except UnicodeDecodeError:
        raise Failure(f"{name} is no JSON schema: it is not UTF-8.") from None


def _check_target(task: str, path: Path, boxes: bool) -> None:
    """Raise Misuse where nothing could be drawn, or the folder is missing. boxes: they are asked for."""
    from serve.tasks import TASKS

    if task not in TASKS or (TASKS[task].places is None and not boxes):
        raise Misuse(f"--save draws boxes, masks and points, and {task} has none: add --task detect.")
    if not path.parent.is_dir():
        raise Misuse(f"{path}: there is no folder {path.parent}.")


def _places(reply: dict[str, Any] | None) -> Sequence[dict[str, Any]]:
    return placed_items((reply or {}).get("result"))


def _dumped(response: dict[str, Any]) -> str:
    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(response, indent=2, ensure_ascii=not readable)
