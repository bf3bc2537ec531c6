"""Errors in OpenAI's format: of fields, bodies and routes, and of bugs."""

import logging
from typing import Any

import pytest
from http_calls import VQA, error, get, post
from served import LLAVA, PALIGEMMA, URL, calling, plain


@pytest.mark.parametrize(
    ("task", "body", "status", "param", "code"),
    [
        ("vqa", {"image": URL}, 400, "question", "missing_required_parameter"),
        ("vqa", {"question": "q"}, 400, "image", "missing_required_parameter"),
        ("vqa", VQA | {"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
        ("vqa", VQA | {"question": 7}, 400, "question", "invalid_type"),
        ("vqa", VQA | {"stream": "true"}, 400, "stream", "invalid_type"),
        ("vqa", VQA | {"temperature": 3}, 400, "temperature", "invalid_value"),
        ("vqa", VQA | {"max_tokens": 1.5}, 400, "max_tokens", "invalid_type"),
        ("vqa", VQA | {"weights": {LLAVA: "a"}}, 400, f"weights.{LLAVA}", "invalid_type"),
        ("vqa", VQA | {"weights": {"nobody": 1}}, 404, "weights", "model_not_found"),
        ("vqa", VQA | {"models": ["nobody"]}, 404, "models", "model_not_found"),
        ("vqa", VQA | {"models": []}, 400, "models", "invalid_value"),
        ("chat", VQA | {"models": [PALIGEMMA]}, 400, "models", "task_not_supported"),
        ("vqa", VQA | {"merge": "dice"}, 400, "merge", "invalid_value"),
        ("vqa", VQA | {"quorum": 3}, 400, "quorum", "invalid_value"),
        ("vqa", VQA | {"min_agreement": 1.1}, 400, "min_agreement", "invalid_value"),
        ("vqa", VQA | {"min_agreement": "0.5"}, 400, "min_agreement", "invalid_type"),
        ("vqa", VQA | {"image": "https://10.0.0.1/cat.png"}, 400, "image", "invalid_image_url"),
        ("vqa", VQA | {"image": "data:image/png;base64,AAAA"}, 400, "image", "invalid_image"),
        ("vqa", VQA | {"image": 7}, 400, "image", "invalid_type"),
        ("detect", {"image": URL, "labels": ["a", 2]}, 400, "labels[1]", "invalid_type"),
        ("detect", {"image": URL, "labels": [" "]}, 400, "labels", "invalid_value"),
        ("detect", {"image": URL, "labels": "cat"}, 400, "labels", "invalid_type"),
        ("vqa", [], 400, None, "invalid_type"),
        ("dance", VQA, 404, "task", "task_not_found"),
    ],
)
async def test_invalid_task_field_is_named_in_the_error(
    task: str, body: Any, status: int, param: str | None, code: str
) -> None:
    reply = await post(f"/v1/tasks/{task}", body)
    fields = error(reply)
    assert (reply.status_code, fields["param"], fields["code"]) == (status, param, code)
    assert fields["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_body_that_is_not_json_is_refused(body: bytes) -> None:
    for path in ("/v1/tasks/vqa", "/v1/chat/completions"):
        reply = await post(path, content=body)
        assert (reply.status_code, error(reply)["code"]) == (400, "invalid_json")


async def test_models_to_compare_are_named_in_one_parameter_or_several() -> None:
    together = (await get(f"/v1/compare?models={LLAVA},{PALIGEMMA}")).json()
    assert (await get(f"/v1/compare?models={LLAVA}&models={PALIGEMMA}")).json() == together
    assert together["models"] == [LLAVA, PALIGEMMA]


async def test_error_quotes_little_of_a_long_request() -> None:
    long = "x" * 5000
    for path, body in {
        "/v1/tasks/vqa": VQA | {long: 1},
        "/v1/tasks/detect": {"image": URL, "labels": [long]},
        f"/v1/tasks/{long}": VQA,
        "/v1/chat/completions": {"model": long, "messages": []},
        f"/{long}": VQA,
    }.items():
        reply = await post(path, body)
        assert 400 <= reply.status_code < 500 and len(reply.text) < 1000
    assert len((await get(f"/v1/compare?models={long}")).text) < 1000
    assert len((await get(f"/v1/models/{long}")).text) < 1000


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/web/nowhere.js", 404, "not_found"),
        ("GET", "/web/../app.py", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/tasks/vqa", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/compare", 400, "missing_required_parameter"),
        ("GET", "/v1/compare?models=,", 400, "invalid_value"),
        ("GET", "/v1/compare?models=nobody", 404, "model_not_found"),
    ],
)
async def test_routing_error_has_openai_format(method: str, path: str, status: int, code: str) -> None:
    async with calling(plain()) as client:
        reply = await client.request(method, path)
    assert (reply.status_code, error(reply)["code"]) == (status, code)
    assert status != 405 or reply.headers["allow"]


async def test_bug_is_500_without_details_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("serve.router.Router.plan", broken)
    with caplog.at_level(logging.ERROR):
        reply = await post("/v1/tasks/vqa", VQA, headers={"x-request-id": "the-one"})
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "the-one"
    assert error(reply)["type"] == "server_error" and "secret" not in reply.text
    assert "the-one" in caplog.text and "secret" in caplog.text
