"""The check of Host and Origin headers by a server without keys."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import URL, calling, picture, plain, router

from serve.api.app import create_app
from serve.api.authentication import Access, OriginCheck, is_loopback
from serve.api.keys import Keys

VQA = {"image": URL, "question": "what?"}
OURS = ["localhost", "localhost:8000", "LocalHost:1", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3", "[::1]", "[::1]:8000"]
OURS += ["localhost.", "mybox:8000", ""]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5:8000"]
OTHERS += [
    "8.8.8.8",
    "[2001:db8::1]:8000",
    "[::]",
    "0.0.0.0:8000",
    "evil.example.",
    "a.localhost",
    "localhost@evil.example",
]
OTHERS += [
    "evil.example#localhost",
    "127.0.0.1/evil.example",
    "localhost:8000:evil",
    "[::1",
    "localhost evil",
    "\xff.x",
]


@contextlib.asynccontextmanager
async def local(*names: str, cors: tuple[str, ...] = (), **access: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(router(), access=Access(hosts=frozenset(names), **access), cors=cors)
    async with calling(app) as client:
        yield client


def ask(host: str) -> Any:
    return OriginCheck([]).host_error([(b"host", host.encode("latin-1"))])


@pytest.mark.parametrize("host", OURS)
def test_local_server_answers_to_names_of_its_machine(host: str) -> None:
    assert ask(host) is None


@pytest.mark.parametrize("host", OTHERS)
def test_local_server_answers_to_no_other_name(host: str) -> None:
    assert ask(host).status == 421


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=40))
def test_name_with_a_dot_is_not_local_unless_an_address(host: str) -> None:
    name = host.rstrip(":0123456789")
    if "." in name.rstrip(".") and not host.startswith("127."):
        assert ask(host).status == 421


async def test_page_with_a_rebound_name_reads_nothing() -> None:
    async with local() as client:
        for host in ("evil.example:8000", "rebound.test", "10.0.0.7"):
            for method, path in (("GET", "/v1/models"), ("HEAD", "/"), ("GET", "/ready"), ("GET", "/metrics")):
                assert (await client.request(method, path, headers={"host": host})).status_code == 421
            reply = await client.post("/v1/tasks/vqa", json=VQA, headers={"host": host})
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (421, "unknown_host") and "gateway.hosts" in error["message"]
            assert (await client.get("/health", headers={"host": host})).status_code == 200
        for host in ("localhost:8000", "127.0.0.1:9", "[::1]:8000"):
            assert (await client.post("/v1/tasks/vqa", json=VQA, headers={"host": host})).status_code == 200


async def test_two_host_headers_are_refused() -> None:
    async with local() as client:
        twice = [("host", "localhost"), ("host", "localhost")]
        assert (await client.get("/v1/models", headers=twice)).status_code == 421


async def test_configured_names_are_answered() -> None:
    async with local("vision.example.com", "*.internal.example") as client:
        for host in ("vision.example.com", "Vision.Example.com:443", "a.internal.example", "b.a.internal.example:80"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200
        for host in ("example.com", "x.vision.example.com", "internal.example", "evilinternal.example"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 421
    async with local("*") as client:
        assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 200


async def test_any_host_is_answered_without_a_rule() -> None:
    async with calling(create_app(router())) as client:
        assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 200


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost.evil.example:8000"},
    {"origin": "file://"},
    {"origin": "http://[::1"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://localhost:8000", "sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""]
)
async def test_page_of_another_site_cannot_call_a_model(headers: dict[str, str], kind: str) -> None:
    async with local() as client:
        typed = {**headers, "host": "localhost:8000", **({"content-type": kind} if kind else {})}
        for path in ("/v1/tasks/vqa", "/v1/chat/completions", "/nowhere"):
            reply = await client.post(path, content=b"{}", headers=typed)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost:8000"},
        {"origin": "http://LOCALHOST:8000"},
        {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
        {"origin": "https://vision.example.com", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
    ],
)
async def test_own_page_and_programs_are_allowed(headers: dict[str, str]) -> None:
    async with local() as client:
        sent = {"host": "localhost:8000", **headers}
        reply = await client.post(
            "/v1/tasks/vqa", content=httpx.Request("POST", "http://x", json=VQA).read(), headers=sent
        )
        assert reply.status_code == 200, reply.text
        form = await client.post("/v1/tasks/vqa", data={"question": "what?"}, files={"image": picture()})
        assert form.status_code == 200


async def test_pages_of_configured_origins_are_allowed() -> None:
    page = {"origin": "https://app.example", "sec-fetch-site": "cross-site", "host": "localhost"}
    async with local(cors=("https://app.example",)) as client:
        reply = await client.post("/v1/tasks/vqa", json=VQA, headers=page)
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == "https://app.example"
        other = await client.post("/v1/tasks/vqa", json=VQA, headers={**page, "origin": "https://b.example"})
        assert other.status_code == 403
    async with local(cors=("*",)) as client:
        assert (await client.post("/v1/tasks/vqa", json=VQA, headers=page)).status_code == 200


async def test_own_page_behind_a_proxy_is_known_by_a_configured_name() -> None:
    page = {"origin": "http://vision.example.com", "host": "127.0.0.1:8000"}
    async with local("vision.example.com") as client:
        assert (await client.post("/v1/tasks/vqa", json=VQA, headers=page)).status_code == 200


async def test_cross_site_link_may_be_followed() -> None:
    async with local() as client:
        for path in ("/", "/v1/models"):
            seen = await client.get(path, headers={"sec-fetch-site": "cross-site", "host": "localhost"})
            assert seen.status_code == 200


async def test_page_of_another_site_with_a_key_is_allowed() -> None:
    key = {"authorization": "Bearer secret", "host": "any.example"}
    async with calling(create_app(router(), access=Access(keys=Keys(["alice:secret"])))) as client:
        for headers in FOREIGN[:3]:
            assert (await client.post("/v1/tasks/vqa", json=VQA, headers={**key, **headers})).status_code == 200
            assert (await client.post("/v1/tasks/vqa", json=VQA, headers={**headers})).status_code == 401


async def test_openapi_schema_lists_403_and_421() -> None:
    async with calling(plain()) as client:
        document = (await client.get("/openapi.json")).json()
    assert {"403", "421"} <= document["paths"]["/v1/chat/completions"]["post"]["responses"].keys()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False)]
    + [("10.0.0.1", False), ("mybox", False), ("", False)],
)
def test_loopback_addresses_are_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
