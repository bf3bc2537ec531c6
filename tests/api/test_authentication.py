"""Authentication: known keys within their rate limits, and paths that are configured as open."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from served import LLAVA, PALIGEMMA, URL, calling, listening, message, plain, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys, new_key
from serve.api.rate_limiter import RateLimiter
from serve.engines.fake import FakeEngine
from serve.limits import DEFAULT_LIMITS, Limits

SECRET = "s3cret-of-alice"
KEYS = Keys([f"alice:{SECRET}", new_key("bob")[1]])
CHAT = {"model": LLAVA, "messages": [message()]}
VQA: dict[str, Any] = {"image": URL, "question": "what?"}
ALICE = {"authorization": f"Bearer {SECRET}"}


@contextlib.asynccontextmanager
async def guarded(limits: Limits = DEFAULT_LIMITS, **access: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(create_app(router(), limits=limits, access=Access(keys=KEYS, **access))) as client:
        yield client


async def test_all_paths_but_health_need_a_key() -> None:
    async with guarded() as client:
        assert (await client.get("/health")).status_code == 200
        paths = [
            "/",
            "/docs",
            "/openapi.json",
            "/web/app.js",
            "/scenes/night.png",
            "/ready",
            "/metrics",
            "/compare/a-vs-b",
        ]
        paths += [
            "/v1/models",
            "/v1/catalog",
            "/nowhere",
            "/health/",
            "http://diptych//health",
            "/health/x",
            "/HEALTH",
            "/web/%2e%2e/health",
        ]
        for path in paths:
            reply = await client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key"), path
            assert reply.headers["www-authenticate"] == "Bearer" and reply.headers["x-request-id"]
        for path in ("/v1/chat/completions", "/v1/tasks/vqa", "/health"):
            reply = await client.post(path, content=b"{")
            assert reply.status_code == (405 if path == "/health" else 401)
        assert (await client.options("/v1/models", headers={"origin": "https://a.example"})).status_code == 401


async def test_known_key_opens_every_path() -> None:
    async with guarded() as client:
        for path in ("/", "/docs", "/openapi.json", "/ready", "/metrics", "/v1/models"):
            assert (await client.get(path, headers=ALICE)).status_code == 200, path
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)
        assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] == "red"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + SECRET.encode(),
        SECRET.encode(),
        b"Bearer " + SECRET.encode() + b"x",
        b"Bearer " + SECRET.encode()[:-1],
        b"Bearer " + "schlüssel".encode(),
        b"Bearer \xff\xfe",
        b"Bearer " + SECRET.upper().encode(),
    ],
)
async def test_unknown_key_is_refused(header: bytes) -> None:
    async with guarded() as client:
        reply = await client.get("/v1/models", headers=[(b"authorization", header)])
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_two_keys_at_once_are_refused() -> None:
    async with guarded() as client:
        twice = [("authorization", f"Bearer {SECRET}"), ("authorization", "Bearer x")]
        assert (await client.get("/v1/models", headers=twice)).status_code == 401


async def test_host_header_opens_no_path() -> None:
    async with guarded(page="open") as client:
        for host in ("x/health", "x/health?", "x/web/#", "127.0.0.1/web/"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 401


async def test_key_is_in_no_log_and_no_response(caplog: pytest.LogCaptureFixture) -> None:
    received = ""
    async with guarded(page="open", metrics="open") as client:
        with caplog.at_level(logging.DEBUG):
            for path in ("/v1/models", "/nowhere", "/metrics", "/openapi.json"):
                for key in (SECRET, SECRET + "-typo"):
                    reply = await client.get(path, headers={"authorization": f"Bearer {key}"})
                    received += reply.text + str(reply.headers)
    assert SECRET not in caplog.text + received + repr(KEYS) + str(vars(KEYS))


async def test_open_paths_are_configured() -> None:
    async with guarded(page="open", metrics="open", ready="open") as client:
        paths = (
            "/",
            "/docs",
            "/openapi.json",
            "/web/app.js",
            "/scenes/night.png",
            "/compare/a-vs-b",
            "/ready",
            "/metrics",
        )
        for path in paths:
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/web/%2e%2e/v1/models")).status_code in (401, 404)


async def test_metrics_can_be_closed_with_or_without_keys() -> None:
    async with guarded(metrics="closed") as client:
        assert (await client.get("/metrics", headers=ALICE)).status_code == 404
    async with calling(create_app(router(), access=Access(metrics="closed"))) as client:
        assert (await client.get("/metrics")).json()["error"]["code"] == "not_found"
        assert (await client.get("/v1/models")).status_code == 200


async def test_path_is_checked_without_its_root_path() -> None:
    app = create_app(router(), access=Access(keys=KEYS, page="open"))
    transport = httpx.ASGITransport(app, root_path="/vision")
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        assert (await client.get("/vision/health")).status_code == 200
        assert (await client.get("/vision/v1/models")).status_code == 401


async def test_requests_beyond_the_minutes_limit_are_refused() -> None:
    async with guarded(Limits(requests_per_minute=2)) as client:
        assert [
            (await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)).status_code for _ in range(2)
        ] == [200] * 2
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert (await client.get("/v1/models", headers=ALICE)).status_code == 200


async def test_concurrent_requests_beyond_the_limit_are_refused_until_a_request_ends() -> None:
    engine = FakeEngine("word " * 400, delay_s=0.01)
    app = create_app(router(engine), limits=Limits(requests_at_once=1), access=Access(keys=KEYS))
    with listening(app) as address:
        async with httpx.AsyncClient(base_url=address, headers=ALICE) as client:
            async with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as first:
                assert first.status_code == 200
                second = await client.post("/v1/chat/completions", json=CHAT)
                assert (second.status_code, second.headers["retry-after"]) == (429, "1")
            for _ in range(400):  # the first client disconnected
                third = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1})
                if third.status_code == 200:
                    break
                await asyncio.sleep(0.005)
            assert third.status_code == 200


async def test_limit_of_a_keys_entry_holds_for_that_key_alone() -> None:
    key, entry = new_key("carol")
    keys = Keys([f"{entry}:max_image_megapixels=0.0001:requests_per_minute=3", f"alice:{SECRET}"])
    app = create_app(router(), limits=Limits(requests_per_minute=2), access=Access(keys=keys))
    async with calling(app) as client:
        for headers, statuses in (({"authorization": f"Bearer {key}"}, [413] * 3), (ALICE, [200] * 2)):
            for status in [*statuses, 429]:
                reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
                assert reply.status_code == status


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/tasks/vqa", VQA, "models"),
        ("/v1/tasks/vqa", VQA | {"models": [PALIGEMMA, LLAVA], "stream": True}, "models"),
        ("/v1/chat/completions", CHAT | {"model": "vqa"}, "model"),
        ("/v1/chat/completions", CHAT | {"model": "vqa:*", "stream": True}, "model"),
        ("/v1/chat/completions", CHAT | {"model": f"vqa:{LLAVA},{PALIGEMMA}"}, "model"),
    ],
)
async def test_request_of_more_models_than_its_key_may_ask_is_refused(
    path: str, body: dict[str, Any], param: str
) -> None:
    key, entry = new_key("carol")
    carol = {"authorization": f"Bearer {key}"}
    for own, limits in (("max_models=1", DEFAULT_LIMITS), ("max_models=2", Limits(max_models=1))):
        keys = Keys([f"{entry}:{own}", f"alice:{SECRET}"])
        llava, paligemma = FakeEngine("red"), FakeEngine("red")
        app = create_app(router(llava, paligemma), limits=limits, access=Access(keys=keys))
        refused, let_in = (carol, ALICE) if own == "max_models=1" else (ALICE, carol)
        async with calling(app) as client:
            reply = await client.post(path, json=body, headers=refused)
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
            assert (error["param"], error["code"]) == (param, "too_many_models")
            assert "asks 2 models" in error["message"] and "at most 1" in error["message"]
            assert not llava.prompts and not paligemma.prompts
            assert (await client.post(path, json=body, headers=let_in)).status_code == 200


async def test_request_of_as_many_models_as_the_limit_is_answered() -> None:
    async with guarded(Limits(max_models=1)) as client:
        named = VQA | {"models": [LLAVA, LLAVA]}
        assert (await client.post("/v1/tasks/vqa", json=named, headers=ALICE)).status_code == 200
        for model in (LLAVA, f"vqa:{PALIGEMMA}"):
            body = CHAT | {"model": model}
            assert (await client.post("/v1/chat/completions", json=body, headers=ALICE)).status_code == 200


@pytest.mark.parametrize("size", [10_000, 200_000, 5_000_000])  # on the event loop, and in either thread
@pytest.mark.parametrize("path", ["/v1/tasks/vqa", "/v1/chat/completions"])
async def test_limit_of_values_is_the_keys_own_for_a_body_of_any_size(path: str, size: int) -> None:
    key, entry = new_key("carol")
    keys = Keys([f"{entry}:max_values=2000", f"alice:{SECRET}"])
    app = create_app(router(), limits=Limits(max_values=1000), access=Access(keys=keys))
    body = b'{"a":[' + b"0," * 1500 + b'0],"b":"' + b"x" * size + b'"}'
    async with calling(app) as client:
        for headers, many in ((ALICE, True), ({"authorization": f"Bearer {key}"}, False)):
            headers = headers | {"content-type": "application/json"}
            reply = await client.post(path, content=body, headers=headers)
            message = reply.json()["error"]["message"]
            assert reply.status_code == 400 and ("too many values" in message) == many
            assert ("1,000" in message) == many


async def test_browsers_may_call_from_configured_origins() -> None:
    app = create_app(router(), access=Access(keys=KEYS), cors=["https://a.example"])
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with calling(app) as client:
        preflight = await client.options("/v1/chat/completions", headers={"origin": "https://a.example", **asks})
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in preflight.headers
        refused = await client.get("/v1/models", headers={"origin": "https://a.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://a.example"
        other = await client.options("/v1/chat/completions", headers={"origin": "https://b.example", **asks})
        assert "access-control-allow-origin" not in other.headers


async def test_browsers_may_call_from_no_other_origin_by_default() -> None:
    async with calling(create_app(router())) as client:
        reply = await client.get("/v1/models", headers={"origin": "https://a.example"})
        assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.slow
async def test_openapi_schema_says_where_a_key_is_needed() -> None:
    async with guarded() as client:
        document = (await client.get("/openapi.json", headers=ALICE)).json()
    openapi_spec_validator.validate(document)
    paths = document["paths"]
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    chat = paths["/v1/chat/completions"]["post"]
    assert chat["security"] == [{"key": []}] and {"401", "408", "429", "431"} <= chat["responses"].keys()
    assert "security" not in paths["/health"]["get"] and "401" not in paths["/health"]["get"]["responses"]
    assert "429" not in paths["/v1/models"]["get"]["responses"]
    async with calling(plain()) as client:
        document = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/v1/chat/completions"]["post"]["responses"]


async def test_metrics_key_opens_no_other_path() -> None:
    key, entry = new_key("prometheus", "scopes=scrape")
    headers = {"authorization": f"Bearer {key}"}
    async with calling(create_app(router(), access=Access(keys=Keys([entry, f"alice:{SECRET}"])))) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        assert (await client.head("/metrics", headers=headers)).status_code == 200
        for path in ("/", "/ready", "/v1/models", "/docs", "/nowhere", "/metrics/", "/metrics/x"):
            reply = await client.get(path, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden"), path
        for path in ("/v1/chat/completions", "/v1/tasks/vqa"):
            assert (await client.post(path, json=CHAT, headers=headers)).status_code == 403
        assert (await client.get("/metrics", headers=ALICE)).status_code == 200
        assert (await client.get("/metrics")).status_code == 401


async def test_server_without_any_key_answers_only_health() -> None:
    async with calling(create_app(router(), access=Access(keys=Keys([], may_be_none=True)))) as client:
        assert (await client.get("/health")).status_code == 200
        for path in ("/", "/ready", "/metrics", "/v1/models"):
            assert (await client.get(path, headers=ALICE)).status_code == 401
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)).status_code == 401


async def test_new_app_keeps_the_counts_of_the_rate_limiter() -> None:
    limiter = RateLimiter()
    for status in (200, 200, 429):
        app = create_app(router(), limits=Limits(requests_per_minute=2), access=Access(keys=KEYS), rate_limiter=limiter)
        async with calling(app) as client:
            reply = await client.post("/v1/chat/completions", json=CHAT, headers=ALICE)
            assert reply.status_code == status
