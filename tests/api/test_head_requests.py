"""HEAD requests have the status and headers of GET, and no body."""

import http.client
import urllib.parse

import pytest
from served import calling, listening, plain, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.api.metrics import Metrics

PATHS = [
    "/health",
    "/ready",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/compare/toy-llava-vs-toy-paligemma",
    "/compare",
    "/web/app.js",
    "/scenes/night.png",
    "/v1/catalog",
    "/v1/models/toy-llava",
    "/v1/models/nobody",
    "/v1/compare?models=toy-llava,toy-paligemma",
    "/v1/compare",
    "/nowhere",
    "/v1/tasks/vqa",
]
CHANGING = {"x-request-id", "date"}


def ask(address: str, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=20)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        headers = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, {name: value for name, value in headers.items() if name not in CHANGING}, reply.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def address() -> object:
    with listening(plain()) as url:
        yield url


@pytest.mark.parametrize("path", PATHS)
def test_head_has_the_headers_of_get_and_no_body(address: str, path: str) -> None:
    status, headers, body = ask(address, "GET", path)
    head_status, head_headers, head_body = ask(address, "HEAD", path)
    assert body or status == 307
    assert (head_status, head_body) == (status, b"")
    if path != "/metrics":  # its text grows with each request
        assert head_headers == headers
    assert head_headers.get("content-type") == headers.get("content-type")


async def test_body_of_head_is_dropped_before_the_server() -> None:
    async with calling(plain()) as client:
        for path in ("/", "/v1/models", "/nowhere"):
            assert not (await client.head(path)).content


async def test_head_needs_the_key_that_get_needs() -> None:
    async with calling(create_app(router(), access=Access(keys=Keys(["alice:secret"])))) as client:
        assert (await client.head("/health")).status_code == 200
        for path in ("/", "/v1/models", "/metrics", "/scenes/night.png"):
            assert (await client.head(path)).status_code == 401
            assert (await client.head(path, headers={"authorization": "Bearer secret"})).status_code == 200


async def test_head_is_counted_under_its_route() -> None:
    metrics = Metrics()
    async with calling(create_app(router(), metrics=metrics)) as client:
        await client.head("/v1/models/toy-llava")
    assert 'route="/v1/models/{name:path}"' in metrics.text().decode()


async def test_405_of_a_get_route_allows_head() -> None:
    async with calling(plain()) as client:
        assert (await client.put("/health")).headers["allow"] == "GET, HEAD"
        assert (await client.head("/v1/tasks/vqa")).headers["allow"] == "POST"


async def test_openapi_schema_mentions_head() -> None:
    async with calling(plain()) as client:
        document = (await client.get("/openapi.json")).json()
    assert "HEAD" in document["info"]["description"]
