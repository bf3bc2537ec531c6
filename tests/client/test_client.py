"""serve.client.http_client: streams are read as they are cut, and what breaks is said in a sentence."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.client.http_client import Failure, Misuse, Server, events, sentence

DELTA = 'event: delta\ndata: {"model":"a","text":"x\u2028y\u0085z"}\n\n'
Answer = Callable[[httpx.Request], httpx.Response]


def server(answer: Answer) -> Server:
    made = Server("http://127.0.0.1:1")
    made._http.close()
    made._http = httpx.Client(transport=httpx.MockTransport(answer), base_url=made.url)
    return made


def streaming(*chunks: bytes) -> Server:
    return server(lambda _: httpx.Response(200, content=iter(chunks)))


def heard(made: Server) -> list[tuple[str, Any]]:
    with made:
        return list(made.events("vqa", b"picture", {"question": "q"}))


@given(st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_events_are_the_same_however_their_bytes_are_cut(cuts: list[int], crlf: bool) -> None:
    text = f"{DELTA}: still here\n\ndata: two\ndata: lines\n: and a comment\n\nevent: lost\n\ndata: [DONE]\n\n"
    whole = (text.replace("\n", "\r\n") if crlf else text).encode()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    (first, data), *rest = events(chunks)
    assert first == "delta" and json.loads(data)["text"] == "x\u2028y\u0085z"
    assert [data for _, data in rest] == ["two\nlines", "[DONE]"]


def test_a_stream_ends_with_done_and_nothing_after_it_counts() -> None:
    assert heard(streaming(DELTA.encode(), b"data: [DONE]\n\n", b"data: not json\n\n")) == [
        ("delta", {"model": "a", "text": "x\u2028y\u0085z"})
    ]


def test_a_stream_that_stops_too_early() -> None:
    with pytest.raises(Failure, match="broke off before its answer was whole"):
        heard(streaming(DELTA.encode()))


def test_a_connection_that_breaks() -> None:
    def cut() -> Iterator[bytes]:
        yield DELTA.encode()
        raise httpx.ReadError("reset by peer.")

    with pytest.raises(Failure, match=r"broke: reset by peer\.$"):
        heard(server(lambda _: httpx.Response(200, content=cut())))


def test_an_error_in_a_stream_is_told() -> None:
    error = {"error": {"message": "No model answered.", "type": "x", "param": None, "code": "y"}}
    with pytest.raises(Failure, match=r"^No model answered\.$"):
        heard(streaming(f"event: error\ndata: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode()))


def test_a_stream_of_something_else() -> None:
    with pytest.raises(Failure, match="not JSON"):
        heard(streaming(b"data: <html>\n\n"))


def test_a_server_that_takes_too_long() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"] == {"connect": 5.0, "read": 32.0, "write": 32.0, "pool": 32.0}
        raise httpx.ReadTimeout("")

    with server(slow) as made, pytest.raises(Failure, match="has not answered in time"):
        made.ask("vqa", b"picture", {"question": "q", "deadline_s": 2.0})


def test_the_request_is_a_form_with_the_picture_as_it_is() -> None:
    def look(request: httpx.Request) -> httpx.Response:
        body = request.read()
        assert request.headers["content-type"].startswith("multipart/form-data")
        assert b"\x89PNG as it is" in body and body.count(b'name="models"') == 2
        return httpx.Response(200, json={"object": "diptych.task"})

    with server(look) as made:
        assert made.ask("vqa", b"\x89PNG as it is", {"models": ["a", "b"], "seed": 3}) == {"object": "diptych.task"}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "127.0.0.1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(Misuse, match="is not an address"):
        Server(url)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port"])
def test_an_address_that_cannot_be(url: str) -> None:
    with pytest.raises(Failure, match="cannot be reached"):
        Server(url)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1", True),
        ("http://127.9.9.9:80", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://10.0.0.1", False),
        ("https://example.com", False),
    ],
)
def test_a_proxy_is_used_only_away_from_this_machine(url: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Server(url) as made:
        assert made.local == local
        assert bool(made._http._mounts) != local


@pytest.mark.parametrize("body", [{}, {"error": "x"}, {"error": {"message": 3}}, {"detail": "Not Found"}])
def test_an_error_of_another_program_is_not_repeated(body: Any) -> None:
    assert sentence(body) is None
    with server(lambda _: httpx.Response(404, json=body)) as made, pytest.raises(Failure, match="another program"):
        made.get("/v1/catalog")
