"""serve.client.http_client: event streams in any chunks, and errors as sentences."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.client.http_client import Failure, Misuse, Server, parse_events, sentence

DELTA = 'event: delta\ndata: {"model":"a","text":"x\u2028y\u0085z"}\n\n'
Answer = Callable[[httpx.Request], httpx.Response]


def server(answer: Answer) -> Server:
    client = Server("http://127.0.0.1:1")
    client._http.close()
    client._http = httpx.Client(transport=httpx.MockTransport(answer), base_url=client.url)
    return client


def streaming(*chunks: bytes) -> Server:
    return server(lambda _: httpx.Response(200, content=iter(chunks)))


def received(client: Server) -> list[tuple[str, Any]]:
    with client:
        return list(client.events("vqa", b"picture", {"question": "q"}))


@given(st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_events_are_the_same_for_any_chunks(cuts: list[int], crlf: bool) -> None:
    text = f"{DELTA}: still here\n\ndata: two\ndata: lines\n: and a comment\n\nevent: lost\n\ndata: [DONE]\n\n"
    whole = (text.replace("\n", "\r\n") if crlf else text).encode()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    (first, data), *rest = parse_events(chunks)
    assert first == "delta" and json.loads(data)["text"] == "x\u2028y\u0085z"
    assert [data for _, data in rest] == ["two\nlines", "[DONE]"]


def test_stream_ends_with_done() -> None:
    assert received(streaming(DELTA.encode(), b"data: [DONE]\n\n", b"data: not json\n\n")) == [
        ("delta", {"model": "a", "text": "x\u2028y\u0085z"})
    ]


def test_stream_without_done_raises_failure() -> None:
    with pytest.raises(Failure, match="broke off before its answer was whole"):
        received(streaming(DELTA.encode()))


def test_broken_connection_raises_failure() -> None:
    def cut() -> Iterator[bytes]:
        yield DELTA.encode()
        raise httpx.ReadError("reset by peer.")

    with pytest.raises(Failure, match=r"broke: reset by peer\.$"):
        received(server(lambda _: httpx.Response(200, content=cut())))


def test_error_event_raises_failure_with_its_message() -> None:
    error = {"error": {"message": "No model answered.", "type": "x", "param": None, "code": "y"}}
    with pytest.raises(Failure, match=r"^No model answered\.$"):
        received(streaming(f"event: error\ndata: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode()))


def test_stream_without_json_raises_failure() -> None:
    with pytest.raises(Failure, match="not JSON"):
        received(streaming(b"data: <html>\n\n"))


def test_read_timeout_raises_failure() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"] == {"connect": 5.0, "read": 32.0, "write": 32.0, "pool": 32.0}
        raise httpx.ReadTimeout("")

    with server(slow) as client, pytest.raises(Failure, match="has not answered in time"):
        client.ask("vqa", b"picture", {"question": "q", "deadline_s": 2.0})


def test_request_is_a_form_with_the_image_bytes() -> None:
    def look(request: httpx.Request) -> httpx.Response:
        body = request.read()
        assert request.headers["content-type"].startswith("multipart/form-data")
        assert b"\x89PNG as it is" in body and body.count(b'name="models"') == 2
        return httpx.Response(200, json={"object": "diptych.task"})

    with server(look) as client:
        assert client.ask("vqa", b"\x89PNG as it is", {"models": ["a", "b"], "seed": 3}) == {"object": "diptych.task"}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "127.0.0.1"])
def test_text_without_a_scheme_is_refused_as_misuse(url: str) -> None:
    with pytest.raises(Misuse, match="is not an address"):
        Server(url)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port"])
def test_malformed_address_raises_failure(url: str) -> None:
    with pytest.raises(Failure, match="cannot be reached"):
        Server(url)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1", True),
        ("http://127.9.9.9:80", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("https://localhost", True),
        ("http://10.0.0.1", False),
        ("https://example.com", False),
    ],
)
def test_proxy_is_not_used_for_this_machine(url: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Server(url) as client:
        assert client.local == local
        assert bool(client._http._mounts) != local
        assert client.verify == (not local or url.startswith("https"))


@pytest.mark.parametrize("body", [{}, {"error": "x"}, {"error": {"message": 3}}, {"detail": "Not Found"}])
def test_error_of_another_program_raises_failure(body: Any) -> None:
    assert sentence(body) is None
    with server(lambda _: httpx.Response(404, json=body)) as client, pytest.raises(Failure, match="another program"):
        client.get("/v1/catalog")
