"""Requests that never end, on real sockets: they cost a connection for a moment, and nobody else anything."""

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

from deployments.server.timed_protocol import TimedHttpProtocol
from serve.api import create_app
from serve.engines.fake import FakeEngine
from serve.wire.guard import Access
from serve.wire.keys import Keys
from serve.wire.limits import Limits

SHORT = Limits(body=200_000, head=20_000, body_s=0.3, head_s=0.3)
START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_S = 15.0  # a machine that does ten other things


def front(engine: FakeEngine | None = None, limits: Limits = SHORT) -> contextlib.AbstractContextManager[str]:
    return fronting(create_app(router(engine), limits=limits), limits)


@contextlib.contextmanager
def fronting(app: Any, limits: Limits) -> Iterator[str]:
    protocol: Any = partial(TimedHttpProtocol, limits=limits)
    config = uvicorn.Config(app, http=protocol, ws="none", port=0, log_config=None, lifespan="off")
    with Server(config).running() as address:
        yield address


def caller(address: str) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=PATIENCE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def heard(one: socket.socket) -> bytes:
    """All until the other side ends it. Raises TimeoutError where it does not."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := one.recv(65536):
            said += part
    return said


def drip(one: socket.socket, part: bytes) -> bytes:
    """Says `part` again and again, until the other side ends it."""
    end = time.monotonic() + PATIENCE_S
    one.settimeout(0.02)
    said = b""
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            try:
                one.sendall(part)
                got = one.recv(65536)
            except ConnectionError:
                return said
            if not got:
                return said
            said += got
    raise AssertionError("it is still listened to")


def told(said: bytes) -> tuple[int, str]:
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("said", [b"", b"G", START, START + b"x-a: ", HEALTH[:-1]])
def test_a_head_that_does_not_end_is_given_up(said: bytes) -> None:
    with front() as address, caller(address) as one:
        one.sendall(said)
        assert heard(one) == b""


def test_a_head_that_comes_a_byte_now_and_then_is_given_up() -> None:
    with front() as address, caller(address) as one:
        one.sendall(START)
        assert drip(one, b"x") == b""


def test_so_is_one_on_a_connection_that_was_used_before() -> None:
    with front() as address, caller(address) as one:
        one.sendall(HEALTH)
        assert b"200 OK" in one.recv(65536)
        assert drip(one, b"\r\n") == b""


@pytest.mark.parametrize("framing", [b"content-length: 1000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
def test_a_body_that_does_not_end_is_told_so_and_given_up(framing: bytes) -> None:
    with front() as address, caller(address) as one:
        one.sendall(START + framing)
        assert told(heard(one)) == (408, "request_timeout")


def test_nobody_reads_on_for_ever_what_was_refused() -> None:
    with front() as address, caller(address) as one:
        one.sendall(START + b"content-length: 100000000\r\n\r\n")
        said = drip(one, b"x")
        assert told(said) == (413, "request_too_large")


def test_a_body_without_end_is_cut() -> None:
    with front(limits=Limits(body=200_000)) as address, caller(address) as one:
        one.sendall(START + b"transfer-encoding: chunked\r\n\r\n")
        assert told(drip(one, b"5000\r\n" + b"x" * 0x5000 + b"\r\n")) == (413, "request_too_large")


@pytest.mark.parametrize("head", [START + b"x-a: " + b"y" * 100_000, START + b"x-a: b\r\n" * 10_000])
def test_a_large_head_is_refused_before_it_ends(head: bytes) -> None:
    with front(limits=Limits(head=20_000, head_s=60)) as address, caller(address) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(head)
        said = heard(one)
        assert not said or told(said) == (431, "headers_too_large")  # what was not read takes the reply along


def test_a_large_head_that_is_read_whole_is_told_so() -> None:
    with front(limits=Limits(head=1000)) as address, caller(address) as one:
        one.sendall(START + b"x-a: " + b"y" * 1500)
        assert told(heard(one)) == (431, "headers_too_large")
    with front(limits=Limits(head=1000)) as address:
        assert httpx.get(f"{address}/health", headers={"x-a": "y" * 1500}).status_code == 431


def test_what_is_not_http_is_told_so() -> None:
    with front() as address, caller(address) as one:
        one.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert told(heard(one)) == (400, "invalid_http")


def test_headers_behind_a_body_are_nobodys() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    with fronting(app, SHORT) as address, caller(address) as one:
        one.sendall(START + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        one.sendall(b"1\r\nx\r\n0\r\nauthorization: late\r\n\r\n")
        assert b"200 OK" in heard(one)
    assert [name for name, _ in seen[0]] == [b"host", b"transfer-encoding", b"connection"]


def test_a_slow_reply_is_not_a_slow_request() -> None:
    with front(FakeEngine("word " * 8, delay_s=0.1)) as address:
        reply = httpx.post(f"{address}/v1/chat/completions", json={"model": LLAVA, "messages": [message()]}, timeout=20)
        assert reply.status_code == 200


def test_half_a_request_behind_one_that_is_answered_waits_for_its_end() -> None:
    body = json.dumps({"model": LLAVA, "messages": [message()], "stream": True}).encode()
    with front(FakeEngine("word " * 8, delay_s=0.1)) as address, caller(address) as one:
        one.sendall(START + b"content-length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.05)
        one.sendall(b"GET")
        said = b""
        while b"[DONE]" not in said:
            part = one.recv(65536)
            assert part, said
            said += part


def test_many_that_idle_hold_up_nobody() -> None:
    with front(limits=Limits(head_s=2.0)) as address, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(caller(address)) for _ in range(100)]
        for one in idle:
            one.sendall(START)
        with httpx.Client() as client:
            for _ in range(20):
                assert client.get(f"{address}/health").status_code == 200
        for one in idle:
            assert heard(one) == b""


def stream(address: str, room: int = 4096) -> socket.socket:
    """A client with little room, which has asked for a streamed reply."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    one.settimeout(PATIENCE_S)
    one.connect(("127.0.0.1", int(address.rpartition(":")[2])))
    body = json.dumps({"model": LLAVA, "messages": [message()], "stream": True}).encode()
    one.sendall(START + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return one


def test_a_client_that_takes_nothing_is_left_and_its_model_stops() -> None:
    engine = FakeEngine(" ".join(["x" * 1_000_000] * 40), delay_s=0.01)  # more than any socket holds
    limits = Limits(write_s=0.3)
    with front(engine, limits) as address, stream(address) as one:
        assert until(lambda: engine.speaking == 1)
        assert until(lambda: engine.speaking == 0, PATIENCE_S) and engine.aborted == 1
        assert httpx.get(f"{address}/health").status_code == 200
        assert not heard(one).endswith(b"0\r\n\r\n")  # cut off, which no client takes for its end


def test_a_client_that_takes_its_time_gets_everything() -> None:
    engine = FakeEngine(" ".join(["x" * 100_000] * 100))
    with front(engine, Limits(write_s=1)) as address, stream(address, room=2**18) as one:
        said, began = bytearray(), time.monotonic()
        while not said.endswith(b"0\r\n\r\n"):
            part = one.recv(100_000)
            assert part, "it was cut off"
            said += part
            time.sleep(0.015)
        assert said.count(b"x") >= 10_000_000 and b"[DONE]" in said
        assert time.monotonic() - began > 1 and engine.aborted == 0


MB = 2**20
HOST = b"host: x\r\n"


class Gone:
    """An application that answers when it is let, and counts the clients that left before."""

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
def test_a_client_that_leaves_is_seen_whatever_it_sent_behind_its_request(behind: bytes, together: bool) -> None:
    app = Gone()
    with fronting(app, Limits(body=10 * MB)) as address:
        with caller(address) as one:
            one.sendall(post(b"x" * 100) + (behind[:20_000] if together else b""))
            assert until(lambda: len(app.bodies) == 1)
            if not together:
                one.settimeout(PATIENCE_S)
                one.sendall(behind)
            assert app.left == 0
        assert until(lambda: app.left >= 1, PATIENCE_S)
        app.let.set()
        assert httpx.get(f"{address}/", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_what_comes_behind_a_request_harms_nothing_of_its_answer(behind: bytes, together: bool) -> None:
    app = Gone()
    with fronting(app, SHORT) as address, caller(address) as one:
        one.sendall(post(b"x" * 100) + (behind[:20_000] if together else b""))
        assert until(lambda: len(app.bodies) == 1)
        if not together:
            one.sendall(behind)
        time.sleep(SHORT.body_s + 2 * SHORT.head_s)
        assert app.left == 0
        app.let.set()
        assert heard(one).startswith(b"HTTP/1.1 200 OK")


def test_requests_in_a_row_are_answered_in_their_order() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await asyncio.sleep(0.05 if scope["path"] == "/0" else 0)
        said = b"%s:%d;" % (scope["path"].encode(), size)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    rows = b"".join(
        b"POST /%d HTTP/1.1\r\n%scontent-length: %d\r\n\r\n" % (i, HOST, i * 999) + b"x" * i * 999 for i in range(8)
    )
    expected = [f"/{i}:{i * 999};".encode() for i in range(8)]
    for step in (len(rows), 1000, 61):
        with fronting(app, Limits()) as address, caller(address) as one:
            for at in range(0, len(rows), step):
                one.sendall(rows[at : at + step])
            said = b""
            while not said.endswith(expected[-1]):
                part = one.recv(65536)
                assert part, said
                said += part
            assert [body for body in expected if body in said] == expected
            assert [said.index(body) for body in expected] == sorted(said.index(body) for body in expected)


def test_more_requests_than_may_wait_end_with_the_connection() -> None:
    app = Gone()
    with fronting(app, Limits()) as address, caller(address) as one:
        one.sendall(HEALTH * 500)
        assert until(lambda: len(app.bodies) == 1)
        app.let.set()
        assert 1 <= heard(one).count(b"200 OK") <= 20


def upload(address: str, framing: str, size: int, path: str = "/v1/tasks/caption") -> tuple[int, str]:
    """A client that sends all of its body before it reads: (status, code)."""
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


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("size", [30 * MB, 60 * MB])
def test_a_client_that_is_still_sending_reads_that_it_is_too_much(framing: str, size: int) -> None:
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
def test_so_does_one_that_is_refused_for_another_reason(framing: str, path: str, status: int, code: str) -> None:
    app = create_app(router(), access=Access(keys=Keys(["alice:secret"])))
    with fronting(app, Limits()) as address:
        assert upload(address, framing, 20 * MB, path) == (status, code)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/nowhere", 404, "not_found"), ("/health", 405, "method_not_allowed"), ("/v1/tasks/x", 404, "task_not_found")],
)
def test_and_one_that_sends_to_no_route(path: str, status: int, code: str) -> None:
    with front(limits=Limits()) as address:
        assert upload(address, "length", 20 * MB, path) == (status, code)


def test_nothing_is_sent_where_the_client_waits_to_be_told_to_go_on() -> None:
    with front(limits=Limits()) as address, caller(address) as one:
        one.sendall(START + b"content-length: 60000000\r\nexpect: 100-continue\r\n\r\n")
        said = heard(one)
        assert told(said) == (413, "request_too_large") and b"100 Continue" not in said
    with front(limits=Limits()) as address, caller(address) as one:
        one.sendall(START + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        one.sendall(b"{}")
        assert one.recv(65536).startswith(b"HTTP/1.1 400")


def test_a_refused_client_that_sends_on_for_ever_is_cut() -> None:
    with front(limits=Limits(body=200_000)) as address, caller(address) as one:
        one.sendall(START + b"content-length: 100000000\r\n\r\n")
        assert told(drip(one, b"x" * 50_000)) == (413, "request_too_large")


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
def test_a_body_that_is_framed_wrongly_is_refused(framing: bytes) -> None:
    with front(limits=Limits()) as address, caller(address) as one:
        one.sendall(START + framing)
        one.settimeout(PATIENCE_S)
        said = one.recv(65536)
        assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), said
        assert httpx.get(f"{address}/health").status_code == 200


def test_waiting_for_us_to_read_is_not_being_slow() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 * (SHORT.body_s + 1.0))  # as one that waits for room
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


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_costs_no_body(offer: bytes, chunked: bool) -> None:
    app, body = Gone(), b"x" * 5000
    app.let.set()
    framing = b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: 5000\r\n\r\n"
    sent = START + offer + framing + (b"1388\r\n" + body + b"\r\n0\r\n\r\n" if chunked else body)
    head = sent.index(b"\r\n\r\n") + 4
    for cut in (len(sent), 40, head - 2, head, head + 1, head + 3000):
        with fronting(app, Limits(head_s=5, body_s=5)) as address, caller(address) as one:
            one.sendall(sent[:cut])
            if sent[cut:]:
                time.sleep(0.02)
                one.sendall(sent[cut:])
            assert one.recv(65536).startswith(b"HTTP/1.1 200 OK")
            one.sendall(sent + HEALTH)  # and the connection lives on, for what may come in a row
            said = b""
            while said.count(b"200 OK") < 2:
                part = one.recv(65536)
                assert part, said
                said += part
    assert set(app.bodies) == {5000, 0} and app.bodies.count(5000) == 12


def test_such_offers_in_a_row_are_bounded_as_others() -> None:
    app = Gone()
    app.let.set()
    offering = HEALTH[:-2] + OFFERS["h2c"] + b"\r\n"
    with fronting(app, Limits()) as address, caller(address) as one:
        one.sendall(offering * 1000)
        assert 1 <= heard(one).count(b"200 OK") <= 20
        assert httpx.get(f"{address}/", timeout=PATIENCE_S).status_code == 200


def test_a_body_behind_such_an_offer_has_its_limits() -> None:
    with front() as address, caller(address) as one:
        one.sendall(START + OFFERS["h2c"] + b"content-length: 1000\r\n\r\nabc")
        assert told(heard(one)) == (408, "request_timeout")
    with front() as address, caller(address) as one:
        one.sendall(START + OFFERS["h2c"] + b"content-length: 900000\r\n\r\nabc")
        assert told(heard(one)) == (413, "request_too_large")
