"""The `diptych` command against a real server on loopback, whose models say what they are told to."""

import dataclasses
import io
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from command import runner
from decoders import saved, weights
from filmed import animation, film
from served import listening

from serve import cli
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.client import http_client as client
from serve.engines.fake import FakeEngine
from serve.models import MODELS, paligemma_tasks
from serve.router import Router
from serve.worker import Worker

ROOT = Path(__file__).parents[1]


def engine(box: str) -> FakeEngine:
    """Answers a detection with one box, anything else with one word, in two pieces."""
    escape = ("[bold]", "red[/bold]\x1b[2J")
    return FakeEngine({"": ("r", "ed"), "detect": (box, " cat"), "bounding box": (box, ""), "escape": escape})


def worker(name: str, state: Any = "ready", step: str = "ready") -> Worker:
    box = "[0.25, 0.25, 0.75, 0.75]" if name == "toy-llava" else "<loc0256><loc0256><loc0767><loc0767>"
    ready = Worker(MODELS[name], engine(box))
    ready.mark(state, step)
    return ready


def serving(*workers: Worker) -> AbstractContextManager[str]:
    """A server's URL, while it runs."""
    return listening(create_app(Router(workers)))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(worker("toy-llava"), worker("toy-paligemma")) as url:
        yield url


@pytest.fixture
def nowhere() -> str:
    """An address of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    PIL.Image.new("RGB", (200, 200), "white").save(path)
    return path


@pytest.fixture
def diptych(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in this process."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("DIPTYCH_URL", raising=False)
    monkeypatch.delenv("DIPTYCH_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):  # loopback never goes through these
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return runner(capsys)


# --- ask ---


def test_replies_stand_side_by_side_above_the_merged_reply(diptych: Any, server: str, picture: Path) -> None:
    ran = diptych("ask", picture, "what colour?", "--server", server)
    assert (ran.status, ran.err) == (0, "")
    header = next(line for line in ran.out.splitlines() if "toy-llava" in line)
    assert header.index("toy-llava") < header.index("toy-paligemma")
    assert sum(line.count("red") for line in ran.out.splitlines()) >= 3
    assert "merged  red" in ran.out and "by vote, 100% agreement, from toy-llava, toy-paligemma" in ran.out
    assert ran.out.count("first word") == 2 and ran.out.count("2 tokens") == 2


def test_note_of_the_toys_is_printed(diptych: Any, server: str, picture: Path) -> None:
    for ran in (diptych("ask", picture, "--server", server), diptych("models", "--server", server)):
        assert "A toy, trained on drawn shapes" in ran.out
        assert "diptych serve --models llava-1.5-7b,paligemma-3b-mix-448" in ran.out


def test_ask_without_a_question_is_a_caption(diptych: Any, server: str, picture: Path) -> None:
    ran = diptych("ask", picture, "--server", server, "--json")
    assert json.loads(ran.out)["task"] == "caption"


def test_json_is_the_server_s_reply_and_nothing_else(diptych: Any, server: str, picture: Path) -> None:
    options = ("--task", "detect", "--json", "--server", server, "--save", picture.with_name("out.png"))
    ran = diptych("ask", picture, "cat; dog", *options)
    body = json.loads(ran.out)
    assert ran.status == 0 and body["object"] == "diptych.task" and body["task"] == "detect"
    assert body["image"] == {"width": 200, "height": 200} and len(body["replies"]) == 2
    assert "out.png" in ran.err


def test_every_option_reaches_the_server(monkeypatch: pytest.MonkeyPatch, diptych: Any, picture: Path) -> None:
    seen: list[Any] = []

    def ask(self: client.Server, task: str, data: bytes, fields: Any, film: bool) -> Any:
        seen.append((self.url, task, data, fields, film))
        return {"replies": [], "merged": None}

    monkeypatch.setattr(client.Server, "ask", ask)
    monkeypatch.setenv("DIPTYCH_URL", "http://127.0.0.1:81/")
    arguments = "--models a,b --deadline 2.5 --quorum 1 --merge vote --judge a --temperature 0.5 --max-tokens 9"
    arguments += " --min-agreement 0.7"
    arguments += " --seed -3 --lang de --weights a=2,b=0.5"
    assert diptych("ask", picture, "q", "--json", *arguments.split()).status == 0
    fields = {"models": ["a", "b"], "deadline_s": 2.5, "quorum": 1, "merge": "vote", "temperature": 0.5}
    fields |= {"max_tokens": 9, "seed": -3, "lang": "de", "question": "q", "judge": "a", "min_agreement": 0.7}
    fields |= {"weights": '{"a": 2.0, "b": 0.5}'}
    assert seen == [("http://127.0.0.1:81", "vqa", picture.read_bytes(), fields, False)]


@pytest.mark.parametrize("given", [("cat; a dog",), ("cat, a dog",), ("--labels", "cat;a dog")])
def test_phrases_to_find(diptych: Any, server: str, picture: Path, given: tuple[str, ...]) -> None:
    ran = diptych("ask", picture, *given, "--task", "detect", "--models", "toy-llava", "--json", "--server", server)
    assert [box["label"] for box in json.loads(ran.out)["merged"]["result"]["boxes"]] == ["cat", "a dog"]


def test_escapes_in_a_reply_do_not_reach_the_terminal(diptych: Any, server: str, picture: Path) -> None:
    ran = diptych("ask", picture, "escape", "--server", server)
    assert "\x1b" not in ran.out and "[bold]red[/bold]�[2J" in ran.out


def test_escapes_in_a_servers_error_do_not_reach_the_terminal(diptych: Any, picture: Path) -> None:
    with serving(worker("toy-llava", "failed", "\x1b[2J gone \u202e")) as url:
        ran = diptych("ask", picture, "q", "--server", url)
    assert ran.status == 1 and "�[2J gone �" in ran.err and "\x1b" not in ran.err


def test_a_model_that_failed_costs_its_column(diptych: Any, picture: Path) -> None:
    with serving(worker("toy-llava", "failed", "The weights are not there."), worker("toy-paligemma")) as url:
        ran = diptych("ask", picture, "q", "--server", url)
        assert ran.status == 0 and "merged  red" in ran.out
        assert "The weights are" in ran.out and "from toy-paligemma" in ran.out


def test_models_that_disagree_have_no_merged_answer(diptych: Any, picture: Path) -> None:
    blue = Worker(MODELS["toy-paligemma"], FakeEngine("blue"))
    blue.mark("ready", "ready")
    with serving(worker("toy-llava"), blue) as url:
        ran = diptych("ask", picture, "q", "--min-agreement", "0.6", "--server", url)
        assert ran.status == 0 and " red " in ran.out and " blue " in ran.out
        assert "merged  The models disagree: their agreement is 0.5, less than 0.6." in ran.out
        ran = diptych("ask", picture, "q", "--min-agreement", "60", "--server", url)
        assert ran.status == 1 and "min_agreement" in ran.err


def test_replies_on_a_narrow_terminal_are_stacked(
    diptych: Any, server: str, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ran = diptych("ask", picture, "q", "--server", server)
    lines = ran.out.splitlines()
    assert not any("toy-llava" in line and "toy-paligemma" in line for line in lines[:6])
    assert max(map(len, lines[:6])) <= 40


@pytest.mark.slow
def test_on_a_terminal_the_columns_fill_as_the_models_speak(server: str, picture: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "90", "TERM": "xterm"}
    command = [sys.executable, "-m", "serve.cli", "ask", str(picture), "what?", "--server", server]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                got = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not got:
                break
            output += got
    os.close(ours)
    text = output.decode()
    assert process.returncode == 0 and "Traceback" not in text
    assert "waiting for the first word" in text and "\x1b[?25h" in text  # live, and the cursor is back
    assert "merged" in text and "by vote" in text and "first word" in text


# --- the pictures people have ---


def photo(path: Path) -> Path:
    PIL.Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(path / "photo.jpg")
    return path / "photo.jpg"


def glass(path: Path) -> Path:
    PIL.Image.new("RGBA", (60, 40), (255, 0, 0, 90)).save(path / "glass.png")
    return path / "glass.png"


def rotated(path: Path) -> Path:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (60, 40), "red").save(path / "phone.jpg", exif=exif)
    return path / "phone.jpg"


def speck(path: Path) -> Path:
    PIL.Image.new("RGB", (1, 1), "red").save(path / "speck.png")
    return path / "speck.png"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size"), [(photo, (4000, 3000)), (glass, (60, 40)), (rotated, (40, 60)), (speck, (1, 1))]
)
def test_answer_is_drawn_into_the_pictures_people_have(
    diptych: Any, server: str, tmp_path: Path, make: Any, size: tuple[int, int]
) -> None:
    save = tmp_path / "out.png"
    ran = diptych("ask", make(tmp_path), "cat", "--task", "detect", "--server", server, "--save", save)
    assert (ran.status, ran.err) == (0, "") and "merged" in ran.out
    with PIL.Image.open(save) as drawn:
        assert drawn.size == size


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"A text file, renamed.\n", "diptych: image: The file is not a PNG, JPEG, WEBP or GIF image."),
        (b"", "diptych: image: The image is empty."),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 30_000_000, "diptych: "),
        (
            struct.pack(">8s I4s IIBBBBB I", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", 10**5, 10**5, 1, 0, 0, 0, 0, 0),
            "diptych: image: ",
        ),
    ],
    ids=["text", "empty", "30 MB", "too many pixels"],
)
def test_file_that_is_no_image_is_refused_in_a_sentence(
    diptych: Any, server: str, tmp_path: Path, data: bytes, says: str
) -> None:
    (tmp_path / "picture.png").write_bytes(data)
    ran = diptych("ask", tmp_path / "picture.png", "what?", "--server", server)
    assert (ran.status, ran.out) == (1, "") and ran.err.count("\n") == 1
    assert ran.err.startswith(says)


def test_a_picture_that_is_not_there(diptych: Any, server: str, tmp_path: Path) -> None:
    assert diptych("ask", tmp_path / "gone.png", "--server", server).err.endswith(
        "gone.png: No such file or directory.\n"
    )
    assert diptych("ask", tmp_path, "--server", server).err.endswith("Is a directory.\n")


def test_a_picture_by_url_is_for_the_server_to_fetch(diptych: Any, server: str, tmp_path: Path) -> None:
    ran = diptych("ask", "https://10.0.0.1/cat.png", "--server", server)
    assert ran.status == 1 and ran.err.startswith("diptych: image: The image's URL is not one")
    ran = diptych("ask", "https://10.0.0.1/cat.png", "cat", "--task", "detect", "--save", tmp_path / "x.png")
    assert ran.status == 2 and "download it" in ran.err


@pytest.fixture
def cinema() -> Iterator[str]:
    """A server with a model that was trained on films and one that was not."""
    seeing = worker("toy-llava")
    seeing.model = dataclasses.replace(seeing.model, videos=True)
    with serving(seeing, worker("toy-paligemma")) as url:
        yield url


@pytest.mark.parametrize(
    ("data", "options", "frames"),
    [(film(), (), 12), (film(12, "libvpx-vp9"), (), 12), (animation(), ("--video",), 12), (animation(), (), None)],
    ids=["mp4", "webm", "gif as film", "gif as picture"],
)
def test_film_is_sent_as_a_video(
    diptych: Any, cinema: str, tmp_path: Path, data: bytes, options: tuple[str, ...], frames: int | None
) -> None:
    (tmp_path / "film").write_bytes(data)  # by its content: names lie
    ran = diptych("ask", tmp_path / "film", "what happens?", "--json", "--server", cinema, *options)
    assert ran.status == 0, ran.err
    body = json.loads(ran.out)
    assert body["image"] == {"width": 64, "height": 48} and body.get("video", {}).get("frames") == frames
    assert [reply["model"] for reply in body["replies"]] == ["toy-llava", *["toy-paligemma"] * (frames is None)]


def test_film_without_a_model_for_films_is_refused_in_a_sentence(
    diptych: Any, server: str, cinema: str, tmp_path: Path
) -> None:
    (tmp_path / "film.mp4").write_bytes(film())
    ran = diptych("ask", tmp_path / "film.mp4", "what happens?", "--server", server)
    assert (ran.status, ran.err) == (1, "diptych: models: No served model can do vqa about a video.\n")
    ran = diptych("ask", tmp_path / "film.mp4", "q", "--server", cinema, "--models", "toy-paligemma")
    assert (ran.status, ran.err) == (1, "diptych: models: toy-paligemma takes images, not video.\n")
    (tmp_path / "film.mp4").write_bytes(film()[:900])
    ran = diptych("ask", tmp_path / "film.mp4", "q", "--server", cinema)
    assert ran.status == 1 and ran.err.startswith("diptych: video: The video is damaged or cut short")


def test_a_picture_from_stdin(diptych: Any, server: str, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    assert diptych("ask", "-", "--server", server).status == 0


# --- save ---


def test_saved_picture_has_the_boxes_at_their_places(diptych: Any, server: str, picture: Path) -> None:
    out = picture.with_name("out.png")
    ran = diptych("ask", picture, "cat", "--task", "detect", "--server", server, "--save", out)
    assert f"Boxes drawn into {out}: toy-llava blue, toy-paligemma orange, merged red." in ran.out.replace("\n", " ")
    with PIL.Image.open(out) as drawn:
        row = [drawn.getpixel((x, 130)) for x in range(200)]
        assert {at for at, colour in enumerate(row) if colour == (0xD5, 0x00, 0x1C)} <= {48, 49, 150, 151}
        assert row[49] == (0xD5, 0x00, 0x1C) and row[50] == (0xE6, 0x9F, 0x00)  # both models' frames, the later over it
        assert row[100] == row[30] == (255, 255, 255)


def test_masks_are_drawn_as_veils(diptych: Any, tmp_path: Path, picture: Path) -> None:
    decoder = saved(tmp_path, weights())
    model = dataclasses.replace(
        MODELS["toy-paligemma"], skills=paligemma_tasks.paligemma_skills(only=["segment"], decoder=decoder)
    )
    codes = "".join(f"<seg{code:03d}>" for code in range(16))
    segmenter = Worker(model, FakeEngine(f"<loc0256><loc0256><loc0767><loc0767>{codes} cat"))
    segmenter.mark("ready", "ready")
    out = picture.with_name("out.png")
    with serving(segmenter) as url:
        ran = diptych("ask", picture, "cat", "--task", "segment", "--server", url, "--save", out)
    assert ran.status == 0 and "Boxes and masks drawn into" in ran.out and "cat  50 50 150 150" in ran.out
    with PIL.Image.open(out) as drawn:
        tinted = sum(drawn.getpixel((x, y)) != (255, 255, 255) for x in range(60, 140) for y in range(60, 140))
    assert 0 < tinted < 80 * 80  # where exactly, is the decoder's business


def test_text_is_read(diptych: Any, server: str, picture: Path) -> None:
    ran = diptych("ask", picture, "--task", "ocr", "--server", server)
    assert ran.status == 0 and "by rover, 100% agreement" in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("q", "--save", "out.png"),
        ("cat", "--task", "detect", "--save", "out.txt"),
        ("cat", "--task", "detect", "--save", "no/such/folder/out.png"),
        ("--task", "detect"),
        (" ; ", "--task", "detect"),
        ("--task", "vqa"),
        ("q", "--labels", "cat"),
        ("q", "--deadline", "nan"),
        ("q", "--deadline", "soon"),
        ("q", "--quorum", "0"),
        ("q", "--server", "localhost:8000"),
        ("q", "--weights", "a"),
        ("q", "--weights", "a=-1"),
        ("q", "--nonsense"),
    ],
    ids=" ".join,
)
def test_misuse(diptych: Any, picture: Path, arguments: tuple[str, ...]) -> None:
    ran = diptych("ask", picture, *arguments)
    assert ran.status == 2 and ran.out == "" and ran.err


# --- refused, absent, starting ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("q", "--models", "toy-lava"),
            "models: The model 'toy-lava' is not served here. Served: toy-llava, toy-paligemma.",
        ),
        (("q", "--task", "sing"), "task: There is no task 'sing'."),
        (("q", "--task", "caption"), "question: "),
        (("q", "--merge", "dice"), "merge: vqa merges by vote"),
        (("q", "--deadline", "-1"), "deadline_s: "),
        (("q", "--quorum", "3"), "quorum: "),
        (("q", "--lang", "klingon"), "lang: "),
    ],
)
def test_a_refusal_names_the_parameter(
    diptych: Any, server: str, picture: Path, arguments: tuple[str, ...], says: str
) -> None:
    ran = diptych("ask", picture, *arguments, "--server", server)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"diptych: {says}") and ran.err.count("\n") == 1


def test_no_server(diptych: Any, nowhere: str, picture: Path) -> None:
    port = nowhere.rsplit(":", 1)[1]
    for flags in ((), ("--json",)):
        ran = diptych("ask", picture, "q", "--server", nowhere, *flags)
        expected = f"No Diptych answers at {nowhere}. Start one with: diptych serve --port {port} (or make serve)"
        assert (ran.status, ran.out, ran.err) == (1, "", f"diptych: {expected}\n")


def test_ask_of_a_starting_server_prints_its_steps(diptych: Any, picture: Path) -> None:
    with serving(worker("toy-llava", "starting", "loading"), worker("toy-paligemma", "failed", "no weights")) as url:
        ran = diptych("ask", picture, "q", "--server", url)
        assert ran.status == 1
        assert "still starting: toy-llava starting (loading), toy-paligemma failed (no weights)." in ran.err
        assert "toy-llava: loading" in diptych("models", "--server", url).out


def test_another_program_at_the_address(diptych: Any, picture: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:

        def answer() -> None:
            for body in (b"<html>", b'{"data": []}'):
                connection, _ = held.accept()
                connection.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        for _ in range(2):
            ran = diptych("ask", picture, "q", "--json", "--server", url)
            assert ran.status == 1 and "not as Diptych does" in ran.err
        thread.join()


def test_leaving_is_quiet(diptych: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.Server, "ask", leave)
    ran = diptych("ask", picture, "q", "--json")
    assert (ran.status, ran.out, ran.err) == (130, "", "")


# --- models, compare, serve ---


@pytest.mark.slow
def test_models_with_and_without_a_server(diptych: Any, server: str, nowhere: str) -> None:
    here, alone = diptych("models", "--server", server), diptych("models", "--server", nowhere)
    assert here.status == alone.status == 0
    for name in MODELS:
        row = next(line for line in here.out.splitlines() if line.strip().startswith(f"{name} "))
        assert ("ready" in row) == (name in ("toy-llava", "toy-paligemma"))
        assert f" {name} " in alone.out
    (captioner,) = [line for line in alone.out.splitlines() if " paligemma2-3b-ft-docci-448 " in line]
    assert "caption" in captioner and "vqa" not in captioner
    assert "(count)" in alone.out and "(vqa)" not in alone.out
    assert f"Served at {server}: ready." in here.out
    assert "No Diptych answers" in alone.out


def test_compare(diptych: Any) -> None:
    ran = diptych("compare", "llava-1.5-7b", "paligemma-3b-mix-448")
    assert ran.status == 0 and "7.06 B" in ran.out and "2.92 B" in ran.out
    assert "Organization *" in ran.out and "Modality *" not in ran.out
    shared = next(line for line in ran.out.splitlines() if line.startswith("Tasks they share"))
    assert all(f"({task})" in shared for task in ("vqa", "caption", "ocr", "detect"))
    printed = " ".join(ran.out.split())
    assert all(MODELS[name].card.overview[1] in printed for name in ("llava-1.5-7b", "paligemma-3b-mix-448"))


def test_compare_of_an_unknown_name_suggests_a_near_name(diptych: Any) -> None:
    ran = diptych("compare", "llava-1.5-7b", "paligemma-3b-448")
    assert ran.status == 1 and "paligemma-3b-mix-448" in ran.err and "diptych models" in ran.err


@pytest.mark.parametrize(
    ("short", "meant"),
    [("llava-1.5", "llava-1.5-7b"), ("paligemma", "paligemma-3b-mix-448"), ("llava-next", "llava-v1.6-mistral-7b")],
)
def test_compare_takes_the_short_names_that_the_page_takes(diptych: Any, short: str, meant: str) -> None:
    ran, whole = diptych("compare", short, "toy-llava"), diptych("compare", meant, "toy-llava")
    assert ran.status == 0 and ran.out == whole.out
    assert "A toy, trained" in ran.out


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ((), []),
        (("--models", "a,b", "--port", "9000"), ["--models=a,b", "--port=9000"]),
        (("--config", "gpu.yaml", "--host", "0.0.0.0"), ["--config=gpu.yaml", "--host=0.0.0.0"]),
    ],
)
def test_serve_becomes_the_deployment(
    diptych: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], flags: list[str]
) -> None:
    became: list[Any] = []

    def execv(path: str, command: list[str]) -> None:
        became.append((path, command))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    diptych("serve", *arguments)
    assert became == [(sys.executable, [sys.executable, "-m", "deployments", *flags])]


def test_help_names_every_command(diptych: Any) -> None:
    ran = diptych("--help")
    assert ran.status == 0 and all(name in ran.out for name in ("serve", "ask", "models", "compare"))


def test_asking_starts_quickly() -> None:
    """Import what `ask` needs before it asks: neither numpy nor Pillow, let alone an engine."""
    code = "import sys, serve.cli, serve.client.asking; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not {"numpy", "PIL", "pydantic", "torch", "vllm", "ray"} & set(loaded)


@pytest.mark.slow
def test_a_terminal_without_the_characters(server: str, picture: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    for arguments in (["models", "--server", server], ["ask", str(picture), "escape", "--server", server]):
        command = [sys.executable, "-m", "serve.cli", *arguments]
        ran = subprocess.run(command, capture_output=True, env=environment, check=True, cwd=ROOT)
        ran.stdout.decode("ascii")
        assert ran.stderr == b""


def test_the_question_may_come_after_the_options() -> None:
    options = cli.parsed(["ask", "x.png", "--task", "detect", "red circle"])
    assert (options.image, options.question, options.task) == ("x.png", "red circle", "detect")


@pytest.mark.parametrize("argv", [["ask", "x.png", "a", "b"], ["ask", "x.png", "--nonsense"], ["models", "x"]])
def test_unknown_argument_is_misuse(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.parsed(argv)
    assert left.value.code == 2


def test_serve_without_ray_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["serve"]) == 1
    assert "Serving needs ray and vllm: install diptych[cpu]" in capsys.readouterr().err


# --- keys ---


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A server that asks for alice's key."""
    router = Router([worker("toy-llava"), worker("toy-paligemma")])
    with listening(create_app(router, access=Access(keys=Keys(["alice:4lice"])))) as url:
        yield url


@pytest.mark.slow
def test_key_of_option_or_environment_is_sent(
    diptych: Any, guarded: str, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (("ask", picture), ("run", tmp_path, "--out", tmp_path / "out.jsonl"), ("models",)):
        refused = diptych(*command, "--server", guarded)
        assert refused.status == 1 and "A valid API key is needed" in refused.err
        assert diptych(*command, "--server", guarded, "--api-key", "4lice").status == 0
    monkeypatch.setenv("DIPTYCH_API_KEY", "4lice")
    assert diptych("ask", picture, "--server", guarded).status == 0


def test_a_key_that_no_header_can_hold_is_not_repeated(diptych: Any, guarded: str, picture: Path) -> None:
    for key in ("geheimß", "ge\nheim"):
        ran = diptych("ask", picture, "--server", guarded, "--api-key", key)
        assert ran.status == 2 and "printable ASCII" in ran.err and key not in ran.err


def test_new_key_is_accepted(diptych: Any) -> None:
    ran = diptych("keys", "add", "alice")
    entry = ran.err.splitlines()[-1]
    assert Keys([entry]).owner([(b"authorization", f"Bearer {ran.out.strip()}".encode())]) == "alice"
    assert diptych("keys", "add", "no name").status == 2
