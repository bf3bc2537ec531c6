"""Endless and slow requests on real sockets: they are cut in time and delay no other client."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from served import LLAVA, Server, message, router, until

from deployments.server import timed_protocol
from deployments.server.timed_protocol import TimedHttpProtocol
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.engines.fake import FakeEngine
from serve.limits import MAX_HEAD, Limits

SHORT = Limits(max_body_mb=200_000 / 2**20, body_timeout_s=0.3, head_timeout_s=0.3)
START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_S = 15.0  # the machine may be busy


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the waits that no limit sets."""
    monkeypatch.setattr(timed_protocol, "GRACE_S", 0.2)
    monkeypatch.setattr(timed_protocol, "LINGER_IDLE_S", 0.5)


def front(engine: FakeEngine | None = None, limits: Limits = SHORT) -> contextlib.AbstractContextManager[str]:
    return fronting(create_app(router(engine), limits=limits), limits)


@contextlib.contextmanager
def fronting(app: Any, limits: Limits) -> Iterator[str]:
    protocol: Any = partial(TimedHttpProtocol, limits=limits)
    config = uvicorn.Config(
        app, http=protocol, ws="none", port=0, log_config=None, lifespan="off", timeout_keep_alive=1
    )
    with Server(config).running() as address:
        yield address


def caller(address: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read_all(client: socket.socket) -> bytes:
    """Return all bytes until the server closes its side. Raises TimeoutError where it does not."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            data += part
    return data


def drip(client: socket.socket, part: bytes) -> bytes:
    """Send `part` again and again until the server closes its side; return what it sent."""
    end = time.monotonic() + PATIENCE_S
    client.settimeout(0.02)
    data = b""
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            try:
                client.sendall(part)
                received = client.recv(65536)
            except ConnectionError:
                return data
            if not received:
                return data
            data += received
    raise AssertionError("the server still reads")


def error_of(data: bytes) -> tuple[int, str]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"G", START, START + b"x-a: ", HEALTH[:-1]])
def test_endless_head_times_out(data: bytes) -> None:
    with front() as address, caller(address) as client:
        client.sendall(data)
        assert read_all(client) == b""


@pytest.mark.slow
def test_head_sent_byte_by_byte_times_out() -> None:
    with front() as address, caller(address) as client:
        client.sendall(START)
        assert drip(client, b"x") == b""


@pytest.mark.slow
def test_head_sent_byte_by_byte_on_a_kept_connection_times_out() -> None:
    with front() as address, caller(address) as client:
        client.sendall(HEALTH)
        assert b"200 OK" in client.recv(65536)
        assert drip(client, b"\r\n") == b""


@pytest.mark.slow
@pytest.mark.parametrize("framing", [b"content-length: 1000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
def test_endless_body_is_answered_with_408(framing: bytes) -> None:
    with front() as address, caller(address) as client:
        client.sendall(START + framing)
        assert error_of(read_all(client)) == (408, "request_timeout")


def test_refused_body_sent_byte_by_byte_is_cut() -> None:
    with front() as address, caller(address) as client:
        client.sendall(START + b"content-length: 100000000\r\n\r\n")
        data = drip(client, b"x")
        assert error_of(data) == (413, "request_too_large")


def test_endless_chunked_body_is_answered_with_413() -> None:
    with front(limits=Limits(max_body_mb=200_000 / 2**20)) as address, caller(address) as client:
        client.sendall(START + b"transfer-encoding: chunked\r\n\r\n")
        assert error_of(drip(client, b"5000\r\n" + b"x" * 0x5000 + b"\r\n")) == (413, "request_too_large")


@pytest.mark.parametrize("head", [START + b"x-a: " + b"y" * 100_000, START + b"x-a: b\r\n" * 10_000])
def test_large_incomplete_head_is_refused(head: bytes) -> None:
    with front(limits=Limits(head_timeout_s=60)) as address, caller(address) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(head)
        data = read_all(client)
        assert not data or error_of(data) == (431, "headers_too_large")  # bytes left unread may destroy the response


def test_large_head_that_is_complete_is_answered_with_431() -> None:
    with front(limits=Limits()) as address, caller(address) as client:
        client.sendall(START + b"x-a: " + b"y" * MAX_HEAD)
        assert error_of(read_all(client)) == (431, "headers_too_large")
    with front(limits=Limits()) as address:
        assert httpx.get(f"{address}/health", headers={"x-a": "y" * MAX_HEAD}).status_code == 431


def test_bytes_that_are_no_http_are_answered_with_400() -> None:
    with front() as address, caller(address) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert error_of(read_all(client)) == (400, "invalid_http")


def test_trailers_behind_a_body_are_dropped() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    with fronting(app, SHORT) as address, caller(address) as client:
        client.sendall(START + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        client.sendall(b"1\r\nx\r\n0\r\nauthorization: late\r\n\r\n")
        assert b"200 OK" in read_all(client)
    assert [name for name, _ in seen[0]] == [b"host", b"transfer-encoding", b"connection"]


@pytest.mark.slow
def test_slow_response_does_not_time_out() -> None:
    with front(FakeEngine("word " * 8, delay_s=0.1)) as address:
        reply = httpx.post(f"{address}/v1/chat/completions", json={"model": LLAVA, "messages": [message()]}, timeout=20)
        assert reply.status_code == 200


@pytest.mark.slow
def test_partial_pipelined_request_does_not_cut_the_running_response() -> None:
    body = json.dumps({"model": LLAVA, "messages": [message()], "stream": True}).encode()
    with front(FakeEngine("word " * 8, delay_s=0.1)) as address, caller(address) as client:
        client.sendall(START + b"content-length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.05)
        client.sendall(b"GET")
        data = b""
        while b"[DONE]" not in data:
            part = client.recv(65536)
            assert part, data
            data += part


@pytest.mark.slow
def test_idle_connections_delay_no_other_client() -> None:
    with front(limits=Limits(head_timeout_s=1.0)) as address, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(caller(address)) for _ in range(100)]
        for client in idle:
            client.sendall(START)
        with httpx.Client() as other:
            for _ in range(20):
                assert other.get(f"{address}/health").status_code == 200
        for client in idle:
            assert read_all(client) == b""


def stream(address: str, room: int = 4096) -> socket.socket:
    """Return a client with a receive buffer of `room` bytes, which has asked for a streamed reply."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
    body = json.dumps({"model": LLAVA, "messages": [message()], "stream": True}).encode()
    client.sendall(START + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return client


@pytest.mark.slow
def test_client_that_reads_nothing_is_disconnected_and_its_model_stops() -> None:
    engine = FakeEngine(" ".join(["x" * 1_000_000] * 40), delay_s=0.01)  # more than any socket holds
    limits = Limits(write_timeout_s=0.3)
    with front(engine, limits) as address, stream(address) as client:
        assert until(lambda: engine.speaking == 1)
        assert until(lambda: engine.speaking == 0, PATIENCE_S) and engine.aborted == 1
        assert httpx.get(f"{address}/health").status_code == 200
        assert not read_all(client).endswith(b"0\r\n\r\n")  # cut off, without the end of the chunks


@pytest.mark.slow
def test_slow_reader_gets_the_whole_response() -> None:
    engine = FakeEngine(" ".join(["x" * 100_000] * 100))
    with front(engine, Limits(write_timeout_s=1)) as address, stream(address, room=2**18) as client:
        data, began = bytearray(), time.monotonic()
        while not data.endswith(b"0\r\n\r\n"):
            part = client.recv(100_000)
            assert part, "it was cut off"
            data += part
            time.sleep(0.015)
        assert data.count(b"x") >= 10_000_000 and b"[DONE]" in data
        assert time.monotonic() - began > 1 and engine.aborted == 0


MB = 2**20
HOST = b"host: x\r\n"


class Waiting:
    """An application that answers once `let` is set, and counts earlier disconnects."""

    def __init__(self) -> None:
        self.left = 0
        self.bodies: list[int] = []
        self.let = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size, more = size + len(message["body"]), message["more_body"]
        self.bodies.append(size)
        leaving = asyncio.ensure_future(receive())
        while not self.let.is_set() and not leaving.done():
            await asyncio.sleep(0.005)
        if leaving.done():
            self.left += 1
            return
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def post(body: bytes = b"", more: bytes = b"") -> bytes:
    return START + more + b"content-length: %d\r\n\r\n" % len(body) + body


BEHIND = {
    "a whole request": HEALTH,
    "a head's beginning": b"GET /hea",
    "a head without its end": START + b"content-length: 10\r\n",
    "a body's beginning": START + b"content-length: 1000\r\n\r\nabc",
    "a chunk's beginning": START + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "many requests": HEALTH * 10,
    "more than is kept": HEALTH * 10_000,
    "a large body": START + b"content-length: 9000000\r\n\r\n" + b"x" * 3_000_000,
    "what is no HTTP": b"\x16\x03\x01\x02\x00\x01" * 50,
    "blank lines": b"\r\n\r\n",
}


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_disconnect_is_noticed_behind_pipelined_bytes(behind: bytes, together: bool) -> None:
    app = Waiting()
    with fronting(app, Limits(max_body_mb=10)) as address:
        with caller(address) as client:
            client.sendall(post(b"x" * 100) + (behind[:20_000] if together else b""))
            assert until(lambda: len(app.bodies) == 1)
            if not together:
                client.settimeout(PATIENCE_S)
                client.sendall(behind)
            assert app.left == 0
        assert until(lambda: app.left >= 1, PATIENCE_S)
        app.let.set()
        assert httpx.get(f"{address}/", timeout=PATIENCE_S).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
def test_pipelined_bytes_do_not_cut_the_running_response(together: bool) -> None:
    """Send each of BEHIND on a connection of its own, so that their timers run side by side."""
    app = Waiting()
    with fronting(app, SHORT) as address, contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(caller(address)) for name in BEHIND}
        for name, client in clients.items():
            client.sendall(post(b"x" * 100) + (BEHIND[name][:20_000] if together else b""))
        assert until(lambda: len(app.bodies) == len(BEHIND))
        for name, client in clients.items():
            if not together:
                client.sendall(BEHIND[name])
        time.sleep(SHORT.body_timeout_s + 2 * SHORT.head_timeout_s)
        assert app.left == 0
        app.let.set()
        for name, client in clients.items():
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK"), name


@pytest.mark.slow
def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await asyncio.sleep(0.05 if scope["path"] == "/0" else 0)
        data = b"%s:%d;" % (scope["path"].encode(), size)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
        await send({"type": "http.response.body", "body": data})

    rows = b"".join(
        b"POST /%d HTTP/1.1\r\n%scontent-length: %d\r\n\r\n" % (i, HOST, i * 999) + b"x" * i * 999 for i in range(8)
    )
    expected = [f"/{i}:{i * 999};".encode() for i in range(8)]
    for step in (len(rows), 1000, 61):
        with fronting(app, Limits()) as address, caller(address) as client:
            for at in range(0, len(rows), step):
                client.sendall(rows[at : at + step])
            data = b""
            while not data.endswith(expected[-1]):
                part = client.recv(65536)
                assert part, data
                data += part
            assert [body for body in expected if body in data] == expected
            assert [data.index(body) for body in expected] == sorted(data.index(body) for body in expected)


def test_too_many_pipelined_requests_end_with_the_connection() -> None:
    app = Waiting()
    with fronting(app, Limits()) as address, caller(address) as client:
        client.sendall(HEALTH * 500)
        assert until(lambda: len(app.bodies) == 1)
        app.let.set()
        assert 1 <= read_all(client).count(b"200 OK") <= 20


def upload(address: str, framing: str, size: int, path: str = "/v1/tasks/caption") -> tuple[int, str]:
    """Send all of a body before reading; return (status, code)."""
    connection = http.client.HTTPConnection("127.0.0.1", int(address.rpartition(":")[2]), timeout=60)
    block = b"x" * 65536
    connection.putrequest("POST", path)
    connection.putheader("content-type", "application/json")
    if framing == "length":
        connection.putheader("content-length", str(size))
    else:
        connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    for _ in range(size // len(block)):
        connection.send(block if framing == "length" else b"%x\r\n%s\r\n" % (len(block), block))
    if framing != "length":
        connection.send(b"0\r\n\r\n")
    reply = connection.getresponse()
    code = json.loads(reply.read())["error"]["code"]
    assert reply.headers["connection"] == "close"
    connection.close()
    return reply.status, code


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("size", [30 * MB, 60 * MB])
def test_client_that_is_still_sending_reads_its_413(framing: str, size: int) -> None:
    with front(limits=Limits()) as address:
        assert upload(address, framing, size) == (413, "request_too_large")


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/tasks/caption", 401, "invalid_api_key"),
        ("/nowhere", 401, "invalid_api_key"),
    ],
)
def test_client_that_is_still_sending_reads_its_401(framing: str, path: str, status: int, code: str) -> None:
    app = create_app(router(), access=Access(keys=Keys(["alice:secret"])))
    with fronting(app, Limits()) as address:
        assert upload(address, framing, 20 * MB, path) == (status, code)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/nowhere", 404, "not_found"), ("/health", 405, "method_not_allowed"), ("/v1/tasks/x", 404, "task_not_found")],
)
def test_client_that_is_still_sending_reads_that_there_is_no_route(path: str, status: int, code: str) -> None:
    with front(limits=Limits()) as address:
        assert upload(address, "length", 20 * MB, path) == (status, code)


def test_expect_continue_is_answered_with_413_or_100() -> None:
    with front(limits=Limits()) as address, caller(address) as client:
        client.sendall(START + b"content-length: 60000000\r\nexpect: 100-continue\r\n\r\n")
        data = read_all(client)
        assert error_of(data) == (413, "request_too_large") and b"100 Continue" not in data
    with front(limits=Limits()) as address, caller(address) as client:
        client.sendall(START + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        client.sendall(b"{}")
        assert client.recv(65536).startswith(b"HTTP/1.1 400")


def test_refused_client_that_sends_without_end_is_cut() -> None:
    with front(limits=Limits(max_body_mb=200_000 / 2**20)) as address, caller(address) as client:
        client.sendall(START + b"content-length: 100000000\r\n\r\n")
        assert error_of(drip(client, b"x" * 50_000)) == (413, "request_too_large")


@pytest.mark.parametrize(
    "framing",
    [
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nab",
        b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"content-length: -1\r\n\r\n",
        b"content-length: 1e3\r\n\r\n",
        b"content-length: 99999999999999999999\r\n\r\n",
    ],
)
def test_wrongly_framed_body_is_refused(framing: bytes) -> None:
    with front(limits=Limits()) as address, caller(address) as client:
        client.sendall(START + framing)
        client.settimeout(PATIENCE_S)
        data = client.recv(65536)
        assert data.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), data
        assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.slow
def test_body_that_waits_for_the_application_does_not_time_out() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(
            3 * (SHORT.body_timeout_s + timed_protocol.GRACE_S)
        )  # as an application does that waits for room
        size, more = 0, True
        while more:
            message = await receive()
            assert message["type"] == "http.request", "it was cut off"
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % size})

    with fronting(app, SHORT) as address:
        reply = httpx.post(f"{address}/", content=b"x" * 190_000, timeout=60)
        assert reply.text == "190000"


OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "another": b"connection: keep-alive, upgrade\r\nupgrade: foo/2\r\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
@pytest.mark.parametrize("chunked", [False, True])
def test_offer_to_upgrade_keeps_the_body(offer: bytes, chunked: bool) -> None:
    app, body = Waiting(), b"x" * 5000
    app.let.set()
    framing = b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: 5000\r\n\r\n"
    sent = START + offer + framing + (b"1388\r\n" + body + b"\r\n0\r\n\r\n" if chunked else body)
    head = sent.index(b"\r\n\r\n") + 4
    for cut in (len(sent), 40, head - 2, head, head + 1, head + 3000):
        with fronting(app, Limits(head_timeout_s=5, body_timeout_s=5)) as address, caller(address) as client:
            client.sendall(sent[:cut])
            if sent[cut:]:
                time.sleep(0.02)
                client.sendall(sent[cut:])
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
            client.sendall(sent + HEALTH)  # the connection lives on, for pipelined requests
            data = b""
            while data.count(b"200 OK") < 2:
                part = client.recv(65536)
                assert part, data
                data += part
    assert set(app.bodies) == {5000, 0} and app.bodies.count(5000) == 12


def test_too_many_pipelined_upgrade_offers_end_with_the_connection() -> None:
    app = Waiting()
    app.let.set()
    offering = HEALTH[:-2] + OFFERS["h2c"] + b"\r\n"
    with fronting(app, Limits()) as address, caller(address) as client:
        client.sendall(offering * 1000)
        assert 1 <= read_all(client).count(b"200 OK") <= 20
        assert httpx.get(f"{address}/", timeout=PATIENCE_S).status_code == 200


@pytest.mark.slow
def test_body_behind_an_upgrade_offer_has_its_limits() -> None:
    with front() as address, caller(address) as client:
        client.sendall(START + OFFERS["h2c"] + b"content-length: 1000\r\n\r\nabc")
        assert error_of(read_all(client)) == (408, "request_timeout")
    with front() as address, caller(address) as client:
        client.sendall(START + OFFERS["h2c"] + b"content-length: 900000\r\n\r\nabc")
        assert error_of(read_all(client)) == (413, "request_too_large")
