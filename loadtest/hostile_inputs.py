"""Requests that were made to stop, fill or fool the server, by kind, for `make hostile` and tests/test_hostile.py.

Each is legal as far as HTTP and the formats go, small enough for any client, and bounded in its cost to the client.
None may be answered by a 5xx.
"""

import base64
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image

from loadtest import hostile_files as files
from loadtest.raw_http import BOUNDARY, Request, form

LLAVA, PALIGEMMA = "toy-llava", "toy-paligemma"
CHAT, VQA, DETECT = "/v1/chat/completions", "/v1/tasks/vqa", "/v1/tasks/detect"
JSON, CROSS = ("content-type", "application/json"), ("sec-fetch-site", "cross-site")
MEGABYTE = 1 << 20
EIGHT: dict[str, Any] = {"n": 8, "temperature": 1.0}


@dataclass(frozen=True)
class Hostile:
    """A hostile input. requests: makes its requests, which are sent all at once.

    refused: each has to get a 4xx. param: the field that a refusal has to name. within_s: the time after which it
    hangs. light: it takes few seconds and little memory of the client, so that every test run can afford it. broken:
    the server may close the connection without a reply, since there is no whole request that it could answer. late: its
    time runs out, so that 503 is a right answer: no model has answered.
    """

    kind: str
    name: str
    requests: Callable[[], Sequence[Request]]
    refused: bool = False
    param: str | None = None
    within_s: float = 60.0
    light: bool = True
    broken: bool = False
    late: bool = False


def sent(path: str, fields: dict[str, Any], **more: Any) -> Request:
    """Return a JSON request."""
    return Request("POST", path, json.dumps(fields).encode(), [JSON], **more)


def data_url(data: bytes, kind: str = "image/png") -> str:
    """Return the file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def message(url: str, text: str = "what is this?", part: str = "image_url") -> dict[str, Any]:
    """Return a user's message with a picture, or with part="video_url" a video."""
    return {"role": "user", "content": [{"type": part, part: {"url": url}}, {"type": "text", "text": text}]}


def chat(url: str, *, model: str = LLAVA, **fields: Any) -> Request:
    """Return a question to one model about the picture at this URL."""
    return sent(CHAT, {"model": model, "messages": [message(url)], "max_tokens": 4, **fields})


def about(picture: bytes, times: int = 1) -> list[Request]:
    """Return requests about a picture to every model by a form, and to one model by OpenAI's route, `times` each."""
    fan_out = form(VQA, {"question": "what is this?"}, image=picture)
    return [fan_out, chat(data_url(picture))] * times


def question(image: bytes, **fields: str) -> Request:
    """Return a form that asks every model about a picture."""
    return form(VQA, {"question": "x", **fields}, image=image)


def _each(kind: str, inputs: Mapping[str, Callable[[], Sequence[Request]]], **more: Any) -> Iterator[Hostile]:
    for name, requests in inputs.items():
        yield Hostile(kind, name, requests, **more)


@functools.cache
def small() -> str:
    """Return the data URL of an ordinary picture."""
    return data_url(files.png(64, 48))


@functools.cache
def photograph() -> bytes:
    """Return an honest JPEG of 12 megapixels."""
    soft = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(soft).resize((4000, 3000), PIL.Image.Resampling.BILINEAR)
    return files.saved(picture, "JPEG", quality=85)


APPLICATION = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
"""An application block of a GIF."""
RESOURCES = b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0\0" * 5_000


def _structure() -> Iterator[Hostile]:
    """Small pictures by their pixels whose files take long to read."""
    builders: dict[str, Callable[[], bytes]] = {
        "JPEG, 30,000 scans with restart markers": lambda: files.baseline_scans(700, 700, 30_000, restart=64),
        "JPEG, 12,000 scans in CMYK": lambda: files.baseline_scans(700, 700, 12_000, components=4),
        "JPEG, 15,000 progressive scans": lambda: files.progressive_scans(600, 600, 15_000),
        "JPEG, 3,000 arithmetic scans": lambda: files.arithmetic_scans(600, 600, 3_000),
        "JPEG, EXIF of 2 MB in one-byte pieces": lambda: files.jpeg(64, 64, files.exif_segments(2_000_000, 4_000)),
        "JPEG, 400,000 empty APP segments": lambda: files.jpeg(64, 64, [files.segment(0xE4)] * 400_000),
        "JPEG, 300,000 comments": lambda: files.jpeg(64, 64, [files.segment(0xFE, b"x")] * 300_000),
        "JPEG, 1 million Photoshop resources": lambda: files.jpeg(64, 64, [files.segment(0xED, RESOURCES)] * 200),
        "JPEG, 100,000 Huffman tables": lambda: files.jpeg(64, 64, [files.huffman()] * 100_000),
        "PNG, 60 zTXt chunks that unfold": lambda: files.png(
            9, 9, before=files.bomb(b"zTXt", b"Comment\0\0", 10**6) * 60
        ),
        "PNG, 60 iTXt chunks that unfold": lambda: files.png(
            9, 9, before=files.bomb(b"iTXt", b"Comment\0\1\0\0\0", 10**6) * 60
        ),
        "PNG, 400 profiles that unfold": lambda: files.png(9, 9, before=files.bomb(b"iCCP", b"wide\0\0", 10**6) * 400),
        "PNG, 200,000 empty chunks before the pixels": lambda: files.png(9, 9, before=files.chunk(b"prVt") * 200_000),
        "PNG, 200,000 empty chunks behind them": lambda: files.png(9, 9, behind=files.chunk(b"prVt") * 200_000),
        "PNG, 200,000 empty IDAT chunks": lambda: files.png(9, 9, empty_data=200_000),
        "PNG, 100,000 EXIF chunks": lambda: files.png(9, 9, before=files.chunk(b"eXIf", files.TURNED) * 100_000),
        "GIF, 400,000 comments": lambda: files.gif(64, 64, blocks=b"!\xfe\x01a\0" * 400_000),
        "GIF, a comment of 5 MB": lambda: files.gif(64, 64, blocks=files.long_comment(20_000)),
        "GIF, 200,000 application blocks": lambda: files.gif(64, 64, blocks=APPLICATION * 200_000),
        "GIF, 300,000 unknown blocks": lambda: files.gif(64, 64, blocks=b"!\xf0\x01a\0" * 300_000),
        "GIF, 20,000 frames, as a picture": lambda: files.gif(1000, 1000, frames=20_000),
        "WEBP, 300,000 empty chunks": lambda: files.webp_chunks(64, 64, 300_000),
        "WEBP, 2,000 frames, as a picture": lambda: files.webp_animation(1000, 1000, 2_000),
    }
    for name, build in builders.items():
        yield Hostile("structure", name, functools.partial(_about, build))
    slow: dict[str, Callable[[], bytes]] = {
        "JPEG, 36 MP, 900 scans": lambda: files.baseline_scans(6000, 6000, 900, restart=32),
        "JPEG, 36 MP, 30 progressive scans": lambda: files.progressive_scans(6000, 6000, 30),
        "WEBP, 36 MP, 2,000 frames": lambda: files.webp_animation(6000, 6000, 2_000),
        "WEBP, 9 MP of random bits": lambda: files.webp(3000, 3000, grain=True),
    }
    for name, build in slow.items():
        yield Hostile("structure", f"{name}, six at once", functools.partial(_about, build, 3), light=False)


def _about(build: Callable[[], bytes], times: int = 1) -> list[Request]:
    return about(build(), times)


def _padding() -> Iterator[Hostile]:
    """Pictures that a model's preparation makes much larger, and one picture in many prompts."""
    thin = {"1 x 16384": (1, 16384), "16384 x 3": (16384, 3), "2 x 9000": (2, 9000), "12000 x 40": (12_000, 40)}
    for name, (width, height) in thin.items():
        build = functools.partial(lambda *size: about(files.png(*size), 2), width, height)
        yield Hostile("padding", f"{name}, two at once", build)
    colours, shapes = "red green blue yellow orange purple white black".split(), "circle square triangle star".split()
    labels = [f"{colour} {shape}" for colour in colours for shape in shapes]
    light = {
        "16384 x 1, 32 phrases": lambda: [sent(DETECT, {"image": data_url(files.png(16384, 1)), "labels": labels})],
        "1 x 16384, 8 choices": lambda: [chat(data_url(files.png(1, 16384)), **EIGHT)],
    }
    heavy = {
        "12 megapixels, 32 phrases": lambda: [form(DETECT, {"labels": "; ".join(labels)}, image=photograph())],
        "12 megapixels, 8 choices, two at once": lambda: [chat(data_url(photograph(), "image/jpeg"), **EIGHT)] * 2,
    }
    yield from _each("padding", light)
    yield from _each("padding", heavy, light=False)


def _films() -> Iterator[Hostile]:
    """Videos that take their decoder long, to models that accept none."""
    large = 4096, 2304, 1_500
    builders: dict[str, tuple[str, Callable[[], bytes]]] = {
        "GIF, 3000 x 3000, 3,000 frames": ("image/gif", lambda: files.gif(3000, 3000, frames=3_000)),
        "WEBP, 4096 x 2304, 1,000 frames": ("image/webp", lambda: files.webp_animation(4096, 2304, 1_000)),
        "MP4, 4096 x 2304, 1,500 key frames": ("video/mp4", lambda: files.video(*large, "libx264")),
        "WEBM, 4096 x 2304, 1,500 key frames": ("video/webm", lambda: files.video(*large, "libvpx-vp9", "webm")),
    }
    for name, (kind, build) in builders.items():
        requests = functools.partial(_video_requests, kind, functools.cache(build))
        yield Hostile("films", f"{name}, ten at once", requests, light="MP4" in name or "GIF" in name)
    late = form(VQA, {"question": "x", "deadline_s": "1"}, video=files.gif(2000, 2000, frames=6_000))
    yield Hostile("films", "GIF, 2000 x 2000, 6,000 frames, within 1 s", lambda: [late] * 4)


def _video_requests(kind: str, build: Callable[[], bytes]) -> list[Request]:
    video = build()
    by_chat = sent(CHAT, {"model": LLAVA, "messages": [message(data_url(video, kind), part="video_url")]})
    return [form(VQA, {"question": "what happens?"}, video=video), by_chat] * 5


def _memory() -> Iterator[Hostile]:
    """Requests that fill the memory: pixels, bodies, base64, pictures by URL."""
    turned = files.chunk(b"eXIf", files.TURNED)
    size = 6300, 6200
    urls = [f"https://127.0.0.1:{1000 + at}/a.png" for at in range(32)]
    pixels: dict[str, Callable[[], bytes]] = {
        "PNG, 39 MP, grey with alpha, turned": lambda: files.png(*size, colour=4, before=turned),
        "PNG, 39 MP, 16 bits with alpha, interlaced": lambda: files.png(*size, depth=16, colour=6, interlaced=True),
        "WEBP, 39 MP with alpha, turned": lambda: files.webp(*size, alpha=True, exif=files.TURNED),
        "PNG, 39 MP, palette, turned": lambda: files.png(*size, colour=3, before=turned),
    }
    for name, build in pixels.items():
        requests = functools.partial(lambda make: [question(make())] * 4, build)
        yield Hostile("memory", f"{name}, four at once", requests, light=False)
    yield Hostile("memory", "40 bodies of 24 MB that stop short", _unfinished, light=False, broken=True)
    yield Hostile("memory", "six data URLs of 13 MB, held by slow answers", _held_bodies, light=False)
    yield Hostile("memory", "base64 with a blank after each third letter", _blanks, light=False)
    yield Hostile("memory", "base64 of blanks alone", lambda: [_base64_picture(" " * 23 * MEGABYTE)], refused=True)
    yield Hostile("memory", "base64 of line breaks after each letter", lambda: [_broken_lines()] * 2, light=False)
    own = [sent(VQA, {"image": url, "question": "x"}) for url in urls]
    yield Hostile("memory", "32 pictures by URL at this very machine", lambda: own, refused=True, param="image")


def _unfinished() -> list[Request]:
    """Return forms that declare a picture of 24 MB and end before it does; their clients leave after three seconds."""
    body = bytes(24 * MEGABYTE - 512)
    head = [("content-type", f"multipart/form-data; boundary={BOUNDARY}"), ("content-length", str(24 * MEGABYTE))]
    start = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'.encode()
    return [Request("POST", VQA, start + body[len(start) :], head, leave_s=3.0)] * 40


def _held_bodies() -> list[Request]:
    noise = np.random.default_rng(3).integers(0, 256, (1800, 1800, 3), dtype=np.uint8)
    picture = data_url(files.saved(PIL.Image.fromarray(noise), "PNG", compress_level=0))
    return [chat(picture, n=8, temperature=1.0, max_tokens=64)] * 6


def _base64_picture(base64_text: str) -> Request:
    return sent(VQA, {"image": "data:image/png;base64," + base64_text, "question": "x"})


def _blanks() -> list[Request]:
    text = base64.b64encode(files.png(64, 48) + bytes(12 * MEGABYTE)).decode()
    return [_base64_picture(" ".join(text[at : at + 3] for at in range(0, len(text), 3)))] * 2


def _broken_lines() -> Request:
    return _base64_picture("\n".join(base64.b64encode(files.png(64, 48) + bytes(5 * MEGABYTE)).decode()))


def _deadlines() -> Iterator[Hostile]:
    """Requests whose time runs out before a model has been asked: they end in little more than that."""
    slow = replace(question(files.png(64, 48), deadline_s="0.5"), pieces=20, pause_s=0.1)
    scans = functools.partial(files.baseline_scans, 700, 700, 30_000)
    alpha = functools.partial(files.png, 6300, 6200, colour=6)
    light = {"30,000 scans, within 0.3 s": lambda: [question(scans(), deadline_s="0.3")]}
    heavy = {
        "39 MP with alpha, within 0.2 s, three at once": lambda: [question(alpha(), deadline_s="0.2")] * 3,
        "a wait for room, within 0.5 s": lambda: [question(files.png(6000, 6000), deadline_s="0.5")] * 12,
    }
    yield from _each("deadline", {"a body in 20 slow pieces, within 0.5 s": lambda: [slow]}, late=True)
    yield from _each("deadline", light, within_s=5.0, late=True)
    yield from _each("deadline", heavy, within_s=5.0, late=True, light=False)


def _pipelining() -> Iterator[Hostile]:
    """Connections with more than one request."""
    long = {"n": 8, "max_tokens": 128, "ignore_eos": True}
    health = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    half = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-le"
    begun = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n\r\n{"

    def behind(data: bytes, **more: Any) -> list[Request]:
        body = {"model": LLAVA, "messages": [message(small())], **long}
        return [sent(CHAT, body, behind=data, **more)] * 4

    inputs = {
        "a second request, and the client leaves": lambda: behind(health, leave_s=0.3),
        "two hundred more, and the client leaves": lambda: behind(health * 200, leave_s=0.3),
        "half a head, and the client waits": lambda: behind(half),
        "a body that never comes, and the client waits": lambda: behind(begun),
        "a second request, and the client waits": lambda: behind(health),
    }
    yield from _each("pipelining", inputs)


def _log_probabilities() -> Iterator[Hostile]:
    """Replies that are much larger than what was asked."""

    def heavy(times: int, **more: Any) -> list[Request]:
        wanted = {"n": 8, "logprobs": True, "top_logprobs": 20, "max_tokens": 160, "ignore_eos": True, **more}
        return [chat(small(), temperature=1.0, **wanted)] * times

    yield Hostile("log-probabilities", "8 choices, 20 a token", lambda: heavy(1))
    yield Hostile("log-probabilities", "the same, six at once", lambda: heavy(6), light=False)
    yield Hostile("log-probabilities", "the same, streamed, six at once", lambda: heavy(6, stream=True), light=False)
    yield Hostile("log-probabilities", "more tokens than there are", lambda: heavy(1, max_tokens=32_768))


def _text() -> Iterator[Hostile]:
    """Texts that are parsed before their size is checked."""
    picture = files.png(64, 48)
    lists = {"cats": "cat;" * (5 * MEGABYTE), "commas": "," * (20 * MEGABYTE), "blanks": " " * (20 * MEGABYTE) + "; x"}
    for name, text in lists.items():
        build = functools.partial(lambda value: [form(DETECT, {"labels": value}, image=picture)] * 2, text)
        refused = name != "blanks"  # they may as well be stripped
        yield Hostile("text", f"labels: {len(text) >> 20} MB of {name}", build, refused, "labels" if refused else None)
    names, same = ",".join(f"m{at}" for at in range(11_000)), "toy-llava," * 5_800
    deep, marks = "[" * 200_000 + "]" * 200_000, "\u0301?!." * 24_000
    labels = [("-" * 60 + "a") * 1_600] * 32
    models = {"models: 20 MB of names": lambda: [question(picture, models="toy-llava," * 2_000_000)]}
    yield from _each("text", models, refused=True, param="models")
    nested = {"labels: JSON, 200,000 deep": lambda: [form(DETECT, {"labels": deep}, image=picture)]}
    yield from _each("text", nested, refused=True, param="labels")
    paths = {
        "/v1/compare of 11,000 names": f"/v1/compare?models={names}",
        "/v1/compare of one name 5,800 times": f"/v1/compare?models={same}",
        "/compare/ with 60,000 slashes": "/compare/" + "/" * 60_000,
        "/compare/ with 30,000 names": "/compare/" + "a/" * 30_000,
    }
    for name, path in paths.items():
        yield Hostile("text", name, functools.partial(lambda path: [Request("GET", path)] * 3, path))
    inputs = {
        "a question of 96,000 marks": lambda: [sent(VQA, {"image": small(), "question": marks})],
        "32 labels of 97,600 letters": lambda: [sent(DETECT, {"image": small(), "labels": labels})] * 2,
    }
    yield from _each("text", inputs)
    yield Hostile("text", "a JSON body of 12 million values", lambda: [_values(12_000_000)], refused=True)
    yield Hostile("text", "64 fields of a form, each 380 KB", lambda: [_fields(63)], refused=True)


def _values(count: int) -> Request:
    return Request("POST", VQA, b'{"question": [' + b"1," * count + b"1]}", [JSON])


def _fields(count: int) -> Request:
    return form(VQA, {f"field{at}": "x" * 380_000 for at in range(count)}, image=files.png(9, 9))


def _odd() -> Iterator[Hostile]:
    """Bodies and schemas that make parsers fail in other ways than they say."""
    ordinary = form(VQA, {"question": "what is this?"}, image=files.png(64, 48))
    charsets = "undefined idna punycode raw_unicode_escape utf-16 rot13 hex c3bc".split()
    kinds = [f"multipart/form-data; boundary={BOUNDARY}; charset={name}" for name in charsets]
    requests = [Request("POST", VQA, ordinary.body, [("content-type", kind)]) for kind in kinds]
    yield Hostile("odd", "eight charsets that are none for a form", lambda: requests)
    long = f"multipart/form-data; boundary={'b' * 70}; charset=idna"
    named = form(VQA, {"\u0130" * 500 + ".": "x", "question": "x"}, boundary="b" * 70, image=files.png(9, 9))
    yield Hostile("odd", "idna and a long name", lambda: [Request("POST", VQA, named.body, [("content-type", long)])])
    long_boundary = form(VQA, {"question": "x"}, "x" * 10_000, image=files.png(9, 9))
    yield Hostile("odd", "a boundary of 10,000 letters", lambda: [long_boundary])
    yield Hostile("odd", "a form that is all boundaries", lambda: [_boundaries()], refused=True)
    yield Hostile("odd", "a schema of nested anyOf", lambda: [_schema(_nested())])
    yield Hostile("odd", "a schema of nested $ref", lambda: [_schema(_chain())])
    yield Hostile("odd", "a schema whose $refs go in circles", lambda: [_schema(_circle())], refused=True)
    yield Hostile("odd", "a schema of 40,000 enums", lambda: [_schema({"enum": [f"e{at}" for at in range(40_000)]})])
    deep = b'{"model": "toy-llava", "messages": [], "metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001
    yield Hostile("odd", "JSON, 50,000 deep", lambda: [Request("POST", CHAT, deep, [JSON])], refused=True)


def _boundaries() -> Request:
    line = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="question"\r\n\r\n\r\n'.encode()
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return Request("POST", VQA, line * 100_000 + f"--{BOUNDARY}--\r\n".encode(), [("content-type", kind)])


def _schema(schema: dict[str, Any]) -> Request:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return chat(small(), response_format=wanted)


def _nested() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(28):
        schema = {"anyOf": [schema, {"type": "integer"}]}
    return schema


def _chain() -> dict[str, Any]:
    """Return 44 definitions that refer each to the next, through 24 anyOf within each other."""
    definitions: dict[str, Any] = {"d44": {"type": "string"}}
    for at in range(44):
        inner: dict[str, Any] = {"$ref": f"#/$defs/d{at + 1}"}
        for _ in range(24):
            inner = {"anyOf": [inner]}
        definitions[f"d{at}"] = inner
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def _circle() -> dict[str, Any]:
    first, second = {"anyOf": [{"$ref": "#/$defs/b"}]}, {"allOf": [{"$ref": "#/$defs/a"}]}
    return {"$ref": "#/$defs/a", "$defs": {"a": first, "b": second}}


def _origins() -> Iterator[Hostile]:
    """Requests that another site's page could have a browser send, to a server without keys."""
    question = json.dumps({"image": small(), "question": "x"}).encode()
    headers = {
        "a form's post from another site": [("content-type", "text/plain"), ("origin", "https://evil.example"), CROSS],
        "a name that was bound to loopback": [JSON, ("host", "evil.example"), ("origin", "http://evil.example")],
        "a sandboxed page": [JSON, ("origin", "null"), CROSS],
    }
    requests = {name: Request("POST", VQA, question, sent) for name, sent in headers.items()}
    requests["reading the models by another name"] = Request("GET", "/v1/models", headers=[("host", "evil.example")])
    for name, request in requests.items():
        yield Hostile("origin", name, functools.partial(list, (request,)), refused=True)


GROUPS = _structure, _padding, _films, _memory, _deadlines, _pipelining, _log_probabilities, _text, _odd, _origins


def inputs() -> list[Hostile]:
    """Return every input, kind by kind. Their requests are made when they are needed."""
    return [hostile for group in GROUPS for hostile in group()]
