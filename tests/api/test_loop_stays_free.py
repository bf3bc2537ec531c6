"""Inputs that are expensive to parse do not block the event loop."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from asgi_calls import call
from loop_work import loop_stays_free
from served import LLAVA, URL, message, plain, served

from serve.api.metrics import Metrics

FREE_S = 0.15
N = 60_000
BOUNDARY = "b0"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}

HEADS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "cookie of backslashes": ("/health", b"", {"cookie": 'a="' + "\\" * N + '"'}),
    "cookie of octals": ("/v1/models", b"", {"cookie": 'a="' + "\\101" * (N // 4) + '"'}),
    "many cookies": ("/v1/models", b"", {"cookie": "a=b;" * (N // 4)}),
    "many fields": ("/health", b"a&" * (N // 2), {}),
    "names one after the other": ("/v1/compare", b"models=" + b"a," * 4000, {}),
    "names that all differ": ("/v1/compare", b"models=" + b",".join(b"%d" % i for i in range(1500)), {}),
    "a name near many": ("/v1/compare", b"models=" + b"llava-onevision-" * 500, {}),
    "names near many": ("/v1/compare", b"models=" + b",".join(b"paligemma2-3b-%d" % i for i in range(60)), {}),
    "escapes": ("/v1/compare", b"models=" + b"%2c%3b" * 1300, {}),
    "slashes": ("/compare/" + "/" * N, b"", {}),
    "names in the path": ("/compare/" + "-vs-".join("llava" for _ in range(N // 9)), b"", {}),
    "folders": ("/web/" + "a/" * (N // 2), b"", {}),
    "ups": ("/scenes/" + "../" * (N // 3), b"", {}),
    "a model's name": ("/v1/models/" + "a/" * (N // 2), b"", {}),
    "tags": ("/web/app.js", b"", {"if-none-match": '"a",' * (N // 4)}),
    "ranges": ("/web/app.js", b"", {"range": "bytes=" + "0-1," * (N // 4)}),
}


@pytest.mark.parametrize("name", list(HEADS))
async def test_hostile_heads_do_not_block_the_loop(name: str) -> None:
    path, query, headers = HEADS[name]
    app = plain()
    await call(app, "/health", method="GET")
    async with loop_stays_free(FREE_S):
        reply = await call(app, path, method="GET", query=query, headers=headers)
    assert reply.status < 500 and len(reply.body) < 64 * 1024


async def test_openapi_document_does_not_block_the_loop() -> None:
    app = served()  # whose document no test has asked for
    await call(app, "/health", method="GET")
    async with loop_stays_free(FREE_S):
        replies = await asyncio.gather(*(call(app, "/openapi.json", method="GET") for _ in range(3)))
    assert [reply.status for reply in replies] == [200] * 3 and "paths" in json.loads(replies[0].body)


async def test_metrics_are_written_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    text = Metrics.text
    monkeypatch.setattr(Metrics, "text", lambda metrics: [threads.append(threading.get_ident()), text(metrics)][1])
    replies = await asyncio.gather(*(call(plain(), "/metrics", method="GET") for _ in range(3)))
    assert {reply.status for reply in replies} == {200} and b'state="ready"} 1.0' in replies[0].body
    assert len(threads) == 3 and threading.get_ident() not in threads


async def test_long_query_is_refused() -> None:
    reply = await call(plain(), "/v1/compare", method="GET", query=b"models=" + b"a" * 9000)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("count", [65, 100, 1500])
async def test_comparison_of_too_many_models_is_refused(count: int) -> None:
    query = b"models=" + b",".join(b"%d" % i for i in range(count))
    reply = await call(plain(), "/v1/compare", method="GET", query=query)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["param"]) == (400, "models") and "64" in error["message"]
    again = await call(plain(), "/v1/compare", method="GET", query=b"models=" + b"toy-llava," * (count // 2))
    assert again.status == 200  # one model, however often it is named


def text_part(name: str, value: bytes) -> bytes:
    return f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def task(**fields: object) -> bytes:
    return json.dumps({"image": URL, "question": "what?"} | fields).encode()


def chat(**fields: object) -> bytes:
    return json.dumps({"model": LLAVA, "messages": [message()]} | fields).encode()


TASK, DETECT, CHAT = "/v1/tasks/vqa", "/v1/tasks/detect", "/v1/chat/completions"
LARGE = 20 * 2**20
BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {  # made when they are sent: 200 MB in all
    "labels in a form": (DETECT, lambda: form(text_part("labels", b"a," * 500_000))),
    "many commas": (DETECT, lambda: form(text_part("labels", b"," * 1_000_000))),
    "models in a form": (TASK, lambda: form(text_part("models", b"a;" * 500_000))),
    "a list in JSON": (DETECT, lambda: form(text_part("labels", json.dumps(["a"] * 200_000).encode()))),
    "deep JSON": (DETECT, lambda: form(text_part("labels", b"[" * 1_000_000))),
    "weights": (TASK, lambda: form(text_part("weights", b'{"a":1,' * 100_000))),
    "a question": (TASK, lambda: form(text_part("question", b"\\" * 1_000_000), text_part("image", URL.encode()))),
    "an image as text": (TASK, lambda: form(text_part("image", b"data:image/png;base64," + b"A A " * 250_000))),
    "many parts": (TASK, lambda: form(*[text_part(f"a{i}", b"x" * 10_000) for i in range(64)])),
    "blanks in base64": (TASK, lambda: task(image="data:image/png;base64," + "QUJ " * (LARGE // 4))),
    "blanks in a chat's": (
        CHAT,
        lambda: chat(messages=[message(image="data:image/png;base64," + "Q\nU\r" * (LARGE // 4))]),
    ),
    "padding": (TASK, lambda: task(image="data:image/png;base64," + "=" * LARGE)),
    "no base64": (TASK, lambda: task(image="data:image/png;base64," + "\\" * LARGE)),
    "a long URL": (TASK, lambda: task(image="https://" + "a." * (LARGE // 2))),
    "a head without end": (CHAT, lambda: chat(messages=[message(image="data:" + "a" * LARGE)])),
    "escapes": (TASK, lambda: b'{"question": "' + b"\\u00e9" * (LARGE // 6) + b'"}'),
    "weights in JSON": (TASK, lambda: task(weights={f"m{i}": 1 for i in range(50_000)})),
    "unknown fields": (TASK, lambda: task(**{f"m{i}": 1 for i in range(50_000)})),
    "many models": (TASK, lambda: task(models=["toy-llava"] * 100_000)),
    "wrong models": (TASK, lambda: task(models=list(range(100_000)))),
    "messages": (CHAT, lambda: chat(messages=[{"role": "user", "content": "a"}] * 50_000)),
    "parts": (CHAT, lambda: chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 50_000}])),
    "numbers": (TASK, lambda: task(seed="1" * 100) + b" " * 10 + b"1" * 1_000_000),
    "one number": (TASK, lambda: b'{"seed": ' + b"1" * LARGE + b"}"),
}


def pieces(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), 65536):
        yield body[at : at + 65536]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BODIES))
async def test_hostile_bodies_do_not_block_the_loop(name: str) -> None:
    path, make = BODIES[name]
    body = make()
    headers = FORM if body.startswith(b"--") else {"content-type": "application/json"}
    app = plain()
    await call(app, path, iter([b"{}"]))
    async with loop_stays_free(FREE_S):
        reply = await call(app, path, pieces(body), headers=headers)
    assert 400 <= reply.status < 500 and len(reply.body) < 2000, reply.body[:300]


@pytest.mark.parametrize("seed", [2, 3, 5])
async def test_hostile_content_types_do_not_block_the_loop(seed: int) -> None:
    draw = random.Random(seed)
    kind = (
        FORM["content-type"]
        + "; "
        + "".join(draw.choice(['a="b', ";", "\\", "=", '"', "x*0=y;"]) for _ in range(20_000))
    )
    async with loop_stays_free(FREE_S):
        reply = await call(plain(), TASK, iter([form()]), headers={"content-type": kind})
    assert reply.status == 400
