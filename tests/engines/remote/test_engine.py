"""The engine of a model on another server, against a server on loopback that also misbehaves in many ways."""

import asyncio
import base64
import io
import json
import logging
import pickle
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_server
import httpcore
import numpy as np
import PIL.Image
import pytest
from chat_server import (
    KEY,
    ChatServer,
    Script,
    breaks_after,
    delta,
    endless_head,
    endless_line,
    event,
    events,
    flood,
    hang_up,
    never_end,
    replies_with,
    speaks,
    streams,
    wait,
)

from serve.engines.base import Piece, Prompt, ReasoningOptions, Sampling
from serve.engines.remote import engine as remote_engine
from serve.engines.remote import image_files
from serve.engines.remote.engine import RemoteBusy, RemoteEngine, _retry_after
from serve.engines.remote.image_files import ImageFiles
from serve.errors import BadRequest, ModelError, Overloaded, ServeError
from serve.media.budget import Budget
from serve.media.decoding import MediaDecoder
from serve.media.fetch.address import parse
from serve.media.image import Image, undecoded_image
from serve.models.base import Turn
from serve.models.remote import chat_messages
from tests.media.fetch.certificate import certified

FIELDS = remote_engine.DEFAULT_FIELDS
NO_LOGPROBS = Sampling(logprobs=False)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_KEY", KEY)


@asynccontextmanager
async def connected(server: ChatServer, **options: Any) -> AsyncIterator[RemoteEngine]:
    url = parse(options.pop("url", server.url))
    assert url is not None
    files = options.pop("files", None) or ImageFiles(MediaDecoder(Budget(2**27)))
    engine = RemoteEngine("gpt", "gpt-x", url, files, **{"key_env": "GPT_KEY", **options})
    try:
        yield engine
    finally:
        await engine.stop()


def png(width: int = 8, height: int = 6) -> bytes:
    return encoded("PNG", width, height)


def encoded(kind: str, width: int = 8, height: int = 6, **options: Any) -> bytes:
    """Return a file of a picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def rotated(degrees_code: int = 6) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = degrees_code
    return encoded("JPEG", exif=exif)


def prompt(image: bytes | None = None, sampling: Sampling = NO_LOGPROBS, text: str = "what?") -> Prompt:
    turns = [Turn("system", "Be brief."), Turn("user", text, has_image=image is not None)]
    return Prompt(chat_messages(turns), None if image is None else undecoded_image(image), sampling)


async def pieces(engine: RemoteEngine, wanted: Prompt | None = None) -> list[Piece]:
    return [piece async for piece in engine.generate(wanted or prompt())]


async def failure(engine: RemoteEngine, wanted: Prompt | None = None) -> ServeError:
    """Return the error of a request, which has no cause and no word of the server's."""
    with pytest.raises(ServeError) as caught:
        await pieces(engine, wanted)
    error = caught.value
    assert KEY not in str(error) + repr(error) + repr(vars(error)) and "repeats" not in error.message
    assert len(error.message) < 200 and error.message.startswith(("gpt", "The image", "The request"))
    assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
    return error


def sent_image(server: ChatServer) -> tuple[str, bytes]:
    """Return the media type and the file of the last request's image."""
    (part, _) = server.bodies[-1]["messages"][-1]["content"]
    head, _, data = part["image_url"]["url"].partition(",")
    return head, base64.b64decode(data, validate=True)


async def test_reply_is_streamed_with_the_servers_counts() -> None:
    file = png()
    async with chat_server.chat_server(speaks("two ", "shapes")) as server, connected(server) as engine:
        got = await pieces(engine, prompt(file, text='how "many"?'))
        assert "".join(piece.text for piece in got) == "two shapes"
        assert got[-1] == Piece("", (), "stop", 7, 2) and all(piece.finish_reason is None for piece in got[:-1])
        (body,), (head,) = server.bodies, server.heads
        assert body == {
            "model": "gpt-x",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": body["messages"][1]["content"][0]["image_url"]},
                        {"type": "text", "text": 'how "many"?'},
                    ],
                },
            ],
            "stream": True,
            "max_tokens": 64,
            "temperature": 0.0,
            "stream_options": {"include_usage": True},
        }
        assert sent_image(server) == ("data:image/png;base64", file)
        assert f"Authorization: Bearer {KEY}\r\n" in head and "transfer-encoding" not in head.lower()


async def test_text_arrives_before_the_reply_ends() -> None:
    first, *rest = events(["two ", "shapes"])
    async with (
        chat_server.chat_server(streams(first, rest[0], 30.0)) as server,
        connected(server) as engine,
    ):
        generation = engine.generate(prompt())
        assert (await anext(generation)).text == "two "
        await generation.aclose()
        await server.wait_closed()  # so that the server stops working for nobody


async def test_connection_is_used_again_and_not_shared_by_two_requests() -> None:
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        for _ in range(3):
            await pieces(engine)
        assert server.connections == 1
        await asyncio.gather(pieces(engine), pieces(engine))
        assert server.connections == 2


async def test_request_on_a_kept_connection_that_is_closed_is_sent_again() -> None:
    async with chat_server.chat_server(speaks("yes"), hang_up, speaks("no")) as server, connected(server) as engine:
        await pieces(engine)
        assert (await pieces(engine))[0].text == "no"
        assert len(server.bodies) == 3 and server.connections == 2


async def test_line_ends_comments_and_splits_do_not_matter() -> None:
    data = b": hello\r\n\r\nevent: x\r\n" + b"".join(events(["gr\u00fcn ", "\u2713"])).replace(b"\n", b"\r\n")
    async with (
        chat_server.chat_server(streams(*(data[at : at + 1] for at in range(len(data))))) as server,
        connected(server) as engine,
    ):
        assert "".join(piece.text for piece in await pieces(engine)) == "gr\u00fcn \u2713"


async def test_reply_without_counts_or_done_is_whole_after_its_finish_reason() -> None:
    parts = event(delta("yes")), event(delta(None, "length"))
    async with chat_server.chat_server(streams(*parts)) as server, connected(server) as engine:
        assert (await pieces(engine))[-1] == Piece("", (), "length", 0, 0)
    async with chat_server.chat_server(breaks_after(*parts)) as server, connected(server) as engine:
        assert (await pieces(engine))[-1].finish_reason == "length"


async def test_logprobs_are_sent_and_read() -> None:
    fields = [*FIELDS, "logprobs"]
    async with (
        chat_server.chat_server(speaks("yes", logprob=-0.5)) as server,
        connected(server, fields=fields) as engine,
    ):
        got = await pieces(engine, prompt(sampling=Sampling(top_logprobs=3)))
        assert [(token.text, token.logprob) for piece in got for token in piece.tokens] == [("yes", -0.5)]
        assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 3)


@pytest.mark.parametrize("half", ["\ufffd", "\\xf0\\x9f", "bytes:\\xf0\\x9f"])
async def test_tokens_that_are_parts_of_a_character_make_up_the_text(half: str) -> None:
    chunks = []
    for text, names in [("", [half]), ("😀", [half]), ("é 7", [half, half, " 7"]), (" x", [" x"])]:
        chunk = delta(text, None, -1.0)
        alone = [{"token": name, "logprob": -0.5, "top_logprobs": []} for name in names]
        chunk["choices"][0]["logprobs"]["content"] = alone
        chunks.append(event(chunk))
    ending = [event(delta(None, "stop")), event(b"[DONE]")]
    async with (
        chat_server.chat_server(streams(*chunks, *ending)) as server,
        connected(server, fields=[*FIELDS, "logprobs"]) as engine,
    ):
        got = await pieces(engine, prompt())
        assert "".join(piece.text for piece in got) == "😀é 7 x"
        assert [token.text for piece in got for token in piece.tokens] == ["", "😀", "", "", "é 7", " x"]


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (Sampling(temperature=0.7, top_p=0.9, seed=-1), {"temperature": 0.7, "top_p": 0.9, "seed": -1}),
        (Sampling(temperature=0.7, top_p=0), {"temperature": 0.0}),
        (Sampling(stop=("\n", "."), presence_penalty=1.0), {"stop": ["\n", "."], "presence_penalty": 1.0}),
        (Sampling(json_schema='{"type":"object"}'), {"response_format": {"type": "json_object"}}),
        (
            Sampling(json_schema='{"type":"array"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "reply", "schema": {"type": "array"}, "strict": True},
                }
            },
        ),
    ],
)
async def test_sampling_is_sent_by_openais_names(sampling: Sampling, sent: dict[str, Any]) -> None:
    sampling = Sampling(**{**vars(sampling), "logprobs": False})
    always = {"model", "messages", "stream", "stream_options", "max_tokens"}
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        await pieces(engine, prompt(sampling=sampling))
        given = {name: value for name, value in server.bodies[0].items() if name not in always}
        assert given == {"temperature": 0.0} | sent


CLOSED = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (CLOSED, True),
        ({**CLOSED, "properties": {"a": CLOSED}}, True),
        ({**CLOSED, "properties": {"a": {"type": "object"}}}, False),
        ({**CLOSED, "required": []}, False),
        ({"properties": {}, "$defs": {"a": CLOSED}}, False),
    ],
)
async def test_schema_is_sent_as_strict_where_every_object_is_closed_and_whole(
    schema: dict[str, Any], strict: bool
) -> None:
    sampling = Sampling(logprobs=False, json_schema=json.dumps(schema))
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        await pieces(engine, prompt(sampling=sampling))
        sent = server.bodies[0]["response_format"]["json_schema"]
        assert (sent["schema"], sent["strict"]) == (schema, strict)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(ignore_eos=True, logprobs=False), "ignore_eos"),
        (Sampling(logprobs=True), "logprobs"),
        (Sampling(seed=3, logprobs=False), "seed"),
        (Sampling(temperature=0.5, logprobs=False), "temperature"),
    ],
)
async def test_field_that_the_server_does_not_take_is_refused_by_name(sampling: Sampling, field: str) -> None:
    async with (
        chat_server.chat_server(speaks("yes")) as server,
        connected(server, fields=["max_completion_tokens"]) as engine,
    ):
        error = await failure(engine, prompt(sampling=sampling))
        assert isinstance(error, BadRequest) and error.param == field and server.bodies == []
        await pieces(engine)  # at their defaults they are left out
        assert set(server.bodies[0]) == {"model", "messages", "stream", "max_completion_tokens"}


FAILURES: dict[str, tuple[Script, type[ServeError], str, str]] = {
    "unauthorized": (replies_with(401), ModelError, "remote_key", "refuses its key (401)"),
    "forbidden": (replies_with(403), ModelError, "remote_key", "refuses its key (403)"),
    "not found": (replies_with(404), ModelError, "remote_not_found", "does not know its model, or this path (404)"),
    "bad request": (replies_with(400), BadRequest, "remote_refused", "refuses this request (400)"),
    "unprocessable": (replies_with(422, "what?"), BadRequest, "remote_refused", "(422)"),
    "too large": (replies_with(413), BadRequest, "too_large", "The image is larger"),
    "context": (
        replies_with(400, {"error": {"message": KEY, "param": "messages", "code": "context_length_exceeded"}}),
        BadRequest,
        "context_length_exceeded",
        "longer than gpt's context",
    ),
    "context of vLLM": (
        replies_with(400, {"error": {"message": KEY, "param": "input_tokens", "code": 400}}),
        BadRequest,
        "context_length_exceeded",
        "longer than gpt's context",
    ),
    "field": (
        replies_with(400, {"error": {"message": KEY, "param": "max_tokens", "code": "unsupported_parameter"}}),
        ModelError,
        "remote_field",
        "does not take max_tokens",
    ),
    "length": (
        replies_with(400, {"error": {"message": KEY, "param": "max_tokens", "code": 400}}),
        ModelError,
        "remote_length",
        "refuses a reply as long as max_tokens allows, which may be longer than its context",
    ),
    "param of its own": (
        replies_with(400, {"error": {"message": KEY, "param": KEY, "code": KEY}}),
        BadRequest,
        "remote_refused",
        "refuses this request",
    ),
    "busy": (replies_with(429), Overloaded, "overloaded", "takes no more requests for now (429)"),
    "busy with a time": (replies_with(429, headers="retry-after: 7\r\n"), RemoteBusy, "overloaded", "(429)"),
    "unavailable with a time": (replies_with(503, headers="retry-after: 7\r\n"), RemoteBusy, "overloaded", "(503)"),
    "server error": (replies_with(500), ModelError, "remote_failed", "failed (500)"),
    "bad gateway": (replies_with(502, "x" * 10**6), ModelError, "remote_failed", "failed (502)"),
    "teapot": (replies_with(299), ModelError, "remote_failed", "failed (299)"),
    "redirect": (
        replies_with(307, headers="location: http://127.0.0.1:1/v1\r\n"),
        ModelError,
        "remote_failed",
        "redirects to another place, which is not followed (307)",
    ),
    "no stream": (replies_with(200, {"choices": []}), ModelError, "remote_failed", "no stream of events"),
    "compressed": (
        streams(*events(["a"]), headers="content-encoding: gzip\r\n"),
        ModelError,
        "remote_failed",
        "compressed",
    ),
    "garbage": (streams(b"data: {{{\n\n"), ModelError, "remote_failed", "no chat completion's chunk"),
    "wrong types": (streams(event({"choices": [{"delta": {"content": 3}}]})), ModelError, "remote_failed", "chunk"),
    "deep": (streams(b"data: " + b"[" * 100_000 + b"\n\n"), ModelError, "remote_failed", "chunk"),
    "no utf-8": (
        streams(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'),
        ModelError,
        "remote_failed",
        "chunk",
    ),
    "half a surrogate": (
        streams(b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'),
        ModelError,
        "remote_failed",
        "chunk",
    ),
    "huge counts": (
        streams(event({"choices": [], "usage": {"prompt_tokens": 10**30}})),
        ModelError,
        "remote_failed",
        "chunk",
    ),
    "error in the stream": (
        streams(event(delta("a")), event({"error": {"message": KEY}})),
        ModelError,
        "remote_failed",
        "reported an error in the middle",
    ),
    "filtered": (streams(event(delta("a", "content_filter"))), ModelError, "withheld", "content filter"),
    "half a stream": (streams(event(delta("a"))), ModelError, "engine_dead", "closed the connection in the middle"),
    "reset": (breaks_after(event(delta("a"))), ModelError, "engine_dead", "closed the connection in the middle"),
    "no response": (hang_up, ModelError, "engine_dead", "closed the connection in the middle"),
    "silent": (wait, ModelError, "remote_failed", "sent nothing for 0.2 s"),
    "silent after its head": (streams(whole=False), ModelError, "remote_failed", "sent nothing for 0.2 s"),
    "silent stream": (streams(event(delta("a")), 1.0), ModelError, "remote_failed", "sent nothing for 0.2 s"),
    "endless text": (never_end, ModelError, "remote_failed", "characters for one reply"),
    "endless comments": (flood, ModelError, "remote_failed", "sent more than 4 MB for one reply"),
    "endless line": (endless_line, ModelError, "remote_failed", "an event that is too long"),
    "endless head": (endless_head, ModelError, "engine_dead", "closed the connection"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
async def test_failure_of_the_server_is_a_bounded_error_without_its_words(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, kind, code, message = FAILURES[name]
    monkeypatch.setattr("serve.engines.remote.event_stream.MAX_BYTES", 4 * 2**20)
    monkeypatch.setattr("serve.engines.remote.event_stream.MAX_TEXT", 10_000)
    caplog.set_level(logging.DEBUG)
    async with (
        chat_server.chat_server(script) as server,
        connected(server, silence_s=0.2 if "silent" in name else 5.0) as engine,
    ):
        error = await failure(engine, prompt(png()))
        assert (type(error), error.code) == (kind, code) and message in error.message
        assert error.param in (None, "image", "question")
        await engine.stop()
        await server.wait_closed()
    assert KEY not in caplog.text


async def test_server_that_cannot_be_reached_is_an_error(unused_tcp_port_factory: Callable[[], int]) -> None:
    server = ChatServer(port=unused_tcp_port_factory())
    async with connected(server) as engine:
        error = await failure(engine)
        assert (error.code, error.message) == ("remote_unreachable", "gpt's server cannot be reached.")
        with pytest.raises(ModelError, match="cannot be reached"):
            await engine.check()


async def no_address(host: str, port: int) -> list[str]:
    raise OSError("no such name")


async def test_host_without_an_address_is_an_error() -> None:
    async with connected(ChatServer(), url="https://nowhere.example/v1", resolve=no_address) as engine:
        assert (await failure(engine)).code == "remote_unreachable"


async def test_private_host_that_the_operator_named_is_reached() -> None:
    async def private(host: str, port: int) -> list[str]:
        assert host == "inside.example"
        return ["127.0.0.1"]

    async with (
        chat_server.chat_server(speaks("yes")) as server,
        connected(server, url=f"http://inside.example:{server.port}/v1", resolve=private) as engine,
    ):
        assert (await pieces(engine))[0].text == "yes"


async def test_key_is_not_sent_without_tls_to_a_public_address() -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "8.8.8.8"]

    async with chat_server.chat_server(speaks("yes")) as server:
        url = f"http://api.example:{server.port}/v1"
        async with connected(server, url=url, resolve=public) as engine:
            assert "a key is sent over https only" in (await failure(engine)).message and server.connections == 0
        async with connected(server, url=url, resolve=public, key_env=None) as engine:
            assert (await pieces(engine))[0].text == "yes" and "Authorization" not in server.heads[0]


@pytest.mark.parametrize(
    ("value", "why"), [(None, "is not set"), ("", "is not set"), (f"{KEY}\r\nx: y", "has letters"), ("ключ", "letters")]
)
async def test_missing_or_malformed_key_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None, why: str
) -> None:
    if value is None:
        monkeypatch.delenv("GPT_KEY")
    else:
        monkeypatch.setenv("GPT_KEY", value)
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        error = await failure(engine)
        assert error.code == "remote_key" and "GPT_KEY" in error.message and why in error.message
        with pytest.raises(ModelError, match="GPT_KEY"):
            await engine.check()
        assert server.connections == 0


async def test_key_is_kept_in_no_attribute() -> None:
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        await pieces(engine)
        assert KEY not in repr(engine) + repr(vars(engine)) and KEY.encode() not in pickle.dumps(engine.url)


async def test_check_is_satisfied_by_any_answer_but_failure_and_refusal_of_the_key() -> None:
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        for status in (200, 404, 405, 429):
            server.models = replies_with(status)
            await engine.check()
        for status, why in ((401, "refuses its key"), (500, "failed"), (503, "failed")):
            server.models = replies_with(status)
            with pytest.raises(ModelError, match=why):
                await engine.check()


async def test_late_check_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "CHECK_S", 0.05)
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        server.models = streams(5.0)
        with pytest.raises(ModelError, match="did not answer within 0.05 s"):
            await engine.check()


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("retry-after", "7", 7.0),
        ("retry-after", "0.5", 0.5),
        ("retry-after-ms", "250", 0.25),
        ("retry-after", "soon", None),
        ("retry-after", "-3", None),
        ("retry-after", "9" * 400, None),
        ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("retry-after", "Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_time_to_wait_is_read(name: str, value: str, seconds: float | None) -> None:
    assert _retry_after({name.encode(): value}) == seconds


def test_time_to_wait_may_be_a_date() -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    wait_s = _retry_after({b"retry-after": date})
    assert wait_s is not None and 98 < wait_s <= 100


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_clients_file_is_sent_unchanged(kind: str) -> None:
    file = encoded(kind)
    async with chat_server.chat_server(speaks("yes")) as server, connected(server) as engine:
        await pieces(engine, prompt(file))
        assert sent_image(server) == (f"data:image/{kind.lower()};base64", file)


@pytest.mark.parametrize("size", [0, 1, 2, image_files.LOSSLESS_PIXELS])
def test_body_has_the_size_that_its_head_declares(size: int) -> None:
    from serve.engines.remote.chat_request import Body

    async def whole(body: Body) -> bytes:
        return b"".join([part async for part in body.parts()])

    body = Body(b"before ", bytes(size), b" after")
    data = asyncio.run(whole(body))
    assert len(data) == body.size and base64.b64decode(data[7:-6], validate=True) == bytes(size)


@pytest.mark.parametrize(
    ("file", "types", "kind"),
    [
        (encoded("GIF"), None, "png"),
        (encoded("WEBP", lossless=True), ["png", "jpeg"], "png"),
        (encoded("PNG"), ["jpeg"], "jpeg"),
        (rotated(), None, "jpeg"),
        (rotated(), ["png"], "png"),
    ],
    ids=["gif", "webp", "png", "rotated", "rotated as png"],
)
async def test_other_file_is_sent_upright_in_a_type_that_the_server_takes(
    file: bytes, types: list[str] | None, kind: str
) -> None:
    options = {} if types is None else {"image_types": types}
    files = ImageFiles(MediaDecoder(Budget(2**27)))
    async with chat_server.chat_server(speaks("yes")) as server, connected(server, files=files, **options) as engine:
        await pieces(engine, prompt(file))
        head, data = sent_image(server)
    assert head == f"data:image/{kind};base64"
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert picture.format == kind.upper() and not picture.getexif()
        got = np.asarray(picture.convert("RGB")).astype(int)
    wanted = undecoded_image(file).pixels.astype(int)
    assert got.shape == wanted.shape and np.abs(got - wanted).max() <= (0 if kind == "png" else 12)
    assert files.decoder.budget.held == 0 and not files._encoded


async def test_file_is_encoded_once_for_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = image_files._write
    monkeypatch.setattr(image_files, "_write", lambda pixels, kind: (written.append(kind), write(pixels, kind))[1])
    files = ImageFiles(MediaDecoder(Budget(2**27)))
    image = Image(np.zeros((6, 8, 3), np.uint8))
    wanted = Prompt(chat_messages([Turn("user", "what?", has_image=True)]), image, NO_LOGPROBS)
    async with (
        chat_server.chat_server(speaks("yes")) as server,
        connected(server, files=files) as first,
        connected(server, files=files) as second,
    ):
        await asyncio.gather(pieces(first, wanted), pieces(second, wanted))
        assert written == ["png"] and len(server.bodies) == 2
    assert files.decoder.budget.held == 0 and not files._encoded


async def test_file_that_has_no_room_in_memory_is_refused() -> None:
    files = ImageFiles(MediaDecoder(Budget(2**10)))
    async with chat_server.chat_server(speaks("yes")) as server, connected(server, files=files) as engine:
        wanted = Prompt(chat_messages([Turn("user", "what?", has_image=True)]), Image(np.zeros((6, 8, 3), np.uint8)))
        with pytest.raises(ServeError, match="more memory"):
            await pieces(engine, wanted)
        assert files.decoder.budget.held == 0 and not files._encoded and server.connections == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's context for a certificate of api.example, and a client's that trusts it."""
    public, private = certified("api.example", tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(public, private)
    return server, ssl.create_default_context(cafile=str(public))


async def loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


async def test_server_is_reached_over_tls_and_refused_without_a_trusted_certificate(
    certificate: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with chat_server.chat_server(speaks("yes"), tls=certificate[0]) as server:
        url = f"https://api.example:{server.port}/v1"
        async with connected(server, url=url, resolve=loopback, tls=lambda: certificate[1]) as engine:
            for _ in range(2):
                assert (await pieces(engine))[0].text == "yes"
            assert server.connections == 1
        async with connected(server, url=url, resolve=loopback, tls=httpcore.default_ssl_context) as engine:
            assert "no certificate that is trusted" in (await failure(engine)).message
        other = f"https://other.example:{server.port}/v1"
        async with connected(server, url=other, resolve=loopback, tls=lambda: certificate[1]) as engine:
            assert "no certificate that is trusted" in (await failure(engine)).message
        assert len(server.bodies) == 2


async def test_handshake_that_is_cancelled_leaves_no_connection(
    certificate: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    closed = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()
        writer.close()

    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"https://api.example:{listener.sockets[0].getsockname()[1]}/v1"
    async with connected(ChatServer(), url=url, resolve=loopback, tls=lambda: certificate[1]) as engine:
        asking = asyncio.create_task(pieces(engine))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(2):
            await closed.wait()
    listener.close()


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_in_a_field_of_its_own_is_no_text(field: str) -> None:
    thought = {"choices": [{"index": 0, "delta": {field: "hm"}}]}
    script = streams(event(thought), *events(["red"]))
    async with chat_server.chat_server(script) as server, connected(server) as engine:
        got = await pieces(engine)
    assert ["".join(texts) for texts in zip(*((piece.reasoning, piece.text) for piece in got), strict=True)] == [
        "hm",
        "red",
    ]


BOTH = ["reasoning_effort", "chat_template_kwargs"]


@pytest.mark.parametrize(
    ("fields", "options", "sent"),
    [
        (BOTH, ReasoningOptions(), {}),
        ([], ReasoningOptions("high", True), {}),
        (BOTH, ReasoningOptions(None, False), {"chat_template_kwargs": {"enable_thinking": False}}),
        (BOTH, ReasoningOptions("low", True), {BOTH[1]: {"enable_thinking": True}, "reasoning_effort": "low"}),
        (BOTH[:1], ReasoningOptions(None, True), {"reasoning_effort": "medium"}),
        (BOTH[:1], ReasoningOptions(None, False), {"reasoning_effort": "none"}),
    ],
)  # fmt: skip
async def test_reasoning_is_turned_on_or_off_by_a_field_that_the_server_takes(
    fields: list[Any], options: ReasoningOptions, sent: dict[str, Any]
) -> None:
    sampling = Sampling(logprobs=False, thinking_token_budget=9)
    wanted = replace(prompt(sampling=sampling), reasoning=options)
    budget = {"thinking_token_budget": 9}
    for more, extra in (([], {}), (["thinking_token_budget"], budget)):
        async with (
            chat_server.chat_server(speaks("red")) as server,
            connected(server, fields=[*FIELDS, *fields, *more]) as engine,
        ):
            await pieces(engine, wanted)
            (body,) = server.bodies
        assert {name: body[name] for name in (*BOTH, "thinking_token_budget") if name in body} == sent | extra
