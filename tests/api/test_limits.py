"""A limit is set by its name, in a config and, where KeyLimits has it, by a key's entry; what exceeds it is refused.

A new limit needs a line in EXCEEDED here; a new rate is met by a second request.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from served import LLAVA, URL, calling, picture, router

from deployments.args import GatewayArgs
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys, new_key
from serve.engines.fake import FakeEngine
from serve.limits import MAX_LABELS, KeyLimits, Limits, RateLimits
from serve.tasks import TASKS

VQA: tuple[str, dict[str, Any]] = ("vqa", {"question": "what?"})
EXCEEDED: dict[str, tuple[float, tuple[str, dict[str, Any]], int, str | None]] = {
    "max_image_megapixels": (0.001, VQA, 413, "image"),
    "max_labels": (1, ("detect", {"labels": ["cat", "dog"]}), 400, "labels"),
    "max_models": (1, VQA, 400, "models"),
    "max_deadline_s": (30, ("vqa", {"question": "what?", "deadline_s": 30.5}), 400, "deadline_s"),
    "max_choices": (1, ("vqa", {"question": "what?", "n": 2}), 400, "n"),
    "max_values": (2, VQA, 400, None),
    "max_body_mb": (0.0001, VQA, 413, None),
}
"""By limit: a low value, a request that exceeds it (its task, and its fields beside the image), and the refusal's
status and param."""
OF_TASKS = {"max_labels", "max_models"}
"""Limits of what only a task has: a chat with one model names no labels and asks no other model."""
OF_CHATS = {"max_choices"}
"""Limits of what only a chat with one model has."""
ELSEWHERE = {  # what it takes time or several requests to exceed
    "requests_at_once",  # test_authentication.py
    *("body_timeout_s", "head_timeout_s", "write_timeout_s"),  # test_request_limits.py, server/test_timed_protocol.py
}


def other_requests(task: str, fields: dict[str, Any], chats_too: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the body of the same request as a chat and as a response, of the task and, `chats_too`, of
    one model."""
    field = TASKS[task].text_field
    written = fields.get(field.name, "") if field is not None else ""
    text = "; ".join(written) if isinstance(written, list) else written
    others = {name: value for name, value in fields.items() if field is None or name != field.name}
    for model in (task, LLAVA) if chats_too else (task,):
        content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": text}]
        yield "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": content}], **others}
        parts = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": text}]
        yield "/v1/responses", {"model": model, "input": [{"role": "user", "content": parts}], **others}


def test_limit_has_a_request_beyond_the_limit() -> None:
    missing = Limits.model_fields.keys() - EXCEEDED.keys() - RateLimits.model_fields.keys() - ELSEWHERE
    assert not missing, (
        f"add {', '.join(missing)} to EXCEEDED in tests/api/test_limits.py, with a request that exceeds it"
    )


@pytest.mark.parametrize("set_by", ["config", "key"])
@pytest.mark.parametrize("name", EXCEEDED)
async def test_request_beyond_a_limit_is_refused(name: str, set_by: str) -> None:
    value, (task, fields), status, param = EXCEEDED[name]
    key, entry = new_key("carol")
    carol, alike = {"authorization": f"Bearer {key}"}, [*other_requests(task, fields, chats_too=name not in OF_TASKS)]
    route, body = f"/v1/tasks/{task}", {"image": URL, **fields}
    if name in OF_CHATS:
        ((route, body),) = (
            (path, chat) for path, chat in alike if path.endswith("chat/completions") and chat["model"] == LLAVA
        )
        alike = []
    if set_by == "key" and name not in KeyLimits.model_fields:
        with pytest.raises(ValueError, match=f"{name}|followed by"):
            Keys([f"{entry}:{name}={value}"])
        return
    limits = GatewayArgs.model_validate({name: value} if set_by == "config" else {}).limits()
    keys = Keys([f"{entry}:{name}={value}" if set_by == "key" else entry])
    async with calling(create_app(router(), limits=limits, access=Access(keys=keys))) as client:
        refused = await client.post(route, json=body, headers=carol)
        assert refused.status_code == status, f"{name} is not checked: {refused.text}"
        assert refused.json()["error"]["param"] == param
        for path, asked_otherwise in alike:
            reply = await client.post(path, json=asked_otherwise, headers=carol)
            error = reply.json().get("error", {})
            assert (reply.status_code, error.get("code")) == (status, refused.json()["error"]["code"]), (
                f"{name} is not checked where {asked_otherwise['model']} is asked by {path}: {reply.text}"
            )
            if param in asked_otherwise:
                assert error["param"] == param
    able = router(None, FakeEngine({"": "red", "detect": "<loc0256><loc0256><loc0767><loc0767> cat"}))
    async with calling(create_app(able, access=Access(keys=Keys([entry])))) as client:
        let_in = await client.post(route, json=body, headers=carol)
    assert let_in.status_code == 200, f"by default {name} is low, or fake engines cannot do {task}: {let_in.text}"


@pytest.mark.parametrize("set_by", ["config", "key"])
@pytest.mark.parametrize("name", sorted(RateLimits.model_fields.keys() - ELSEWHERE))
async def test_second_request_beyond_a_rate_is_refused(name: str, set_by: str) -> None:
    key, entry = new_key("carol")
    body, carol = {"image": URL, "question": "what?"}, {"authorization": f"Bearer {key}"}
    limits = GatewayArgs.model_validate({name: 1} if set_by == "config" else {}).limits()
    keys = Keys([f"{entry}:{name}=1" if set_by == "key" else entry])
    async with calling(create_app(router(), limits=limits, access=Access(keys=keys))) as client:
        assert (await client.post("/v1/tasks/vqa", json=body, headers=carol)).status_code == 200
        refused = await client.post("/v1/tasks/vqa", json=body, headers=carol)
    assert refused.status_code == 429, f"{name} is not checked, or a second request does not exceed it"
    assert int(refused.headers["retry-after"]) >= 1 and name.split("_")[0] in refused.json()["error"]["message"]


@pytest.mark.parametrize("task", [t.name for t in TASKS.values() if t.takes_phrases and (t.max_phrases or 3) >= 3])
async def test_more_labels_than_the_limit_are_refused_on_every_route(task: str) -> None:
    app, labels = create_app(router(), limits=Limits(max_labels=2)), ["cat", "dog", "cow"]
    file = {"image": picture()}
    field, text = TASKS[task].text_field.name, "; ".join(labels)  # type: ignore[union-attr]  # it takes phrases
    content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": text}]
    chat = {"model": task, "messages": [{"role": "user", "content": content}]}
    async with calling(app) as client:
        for reply, param in (
            (await client.post(f"/v1/tasks/{task}", json={"image": URL, field: labels}), field),
            (await client.post(f"/v1/tasks/{task}", data={field: text}, files=file), field),
            (await client.post("/v1/chat/completions", json=chat), "messages[0].content"),
        ):
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
            assert (error["param"], error["code"]) == (param, "too_many_labels")
            assert "names 3 labels" in error["message"] and "at most 2" in error["message"]


@pytest.mark.parametrize("most", [1, 32, 100, MAX_LABELS])
async def test_as_many_labels_as_the_limit_are_answered(most: int) -> None:
    paligemma = FakeEngine("")
    app = create_app(router(None, paligemma), limits=Limits(max_labels=most))
    labels = [f"thing {number}" for number in range(most)]
    async with calling(app) as client:
        body = {"image": URL, "labels": [*labels[: MAX_LABELS - 1], "Thing 0."]}  # which is the first again
        assert (await client.post("/v1/tasks/detect", json=body)).status_code == 200
        assert len(paligemma.prompts[-1].text.split(" ; ")) == min(most, MAX_LABELS - 1)
        reply = await client.post("/v1/tasks/detect", json=body | {"labels": [*labels, "one more"]})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "labels"


def test_limit_of_labels_beyond_the_most_is_refused() -> None:
    assert Limits().max_labels == 32
    with pytest.raises(ValueError, match=f"max_labels[^|]*less than or equal to {MAX_LABELS}"):
        GatewayArgs.model_validate({"max_labels": MAX_LABELS + 1})


async def test_deadline_that_no_client_wrote_is_lowered_to_the_limit_by_every_route() -> None:
    slow = router(FakeEngine("red", delay_s=30), FakeEngine("red", delay_s=30))
    config = '<View><Image name="i" value="$image"/><TextArea name="caption" toName="i"/></View>'
    requests = [
        ("/v1/tasks/vqa", {"image": URL, "question": "what?"}),
        *other_requests("vqa", {"question": "what?"}, chats_too=True),
        ("/label-studio/predict", {"tasks": [{"data": {"image": URL}}], "label_config": config}),
    ]
    async with calling(create_app(slow, limits=Limits(max_deadline_s=0.02))) as client:
        for route, body in requests:
            reply = await client.post(route, json=body)
            assert reply.status_code == 503, f"{route}: {reply.text}"
            assert "0.02 s" in reply.json()["error"]["message"], f"{route}: {reply.text}"


async def test_deadline_above_the_limit_is_refused_with_the_limit() -> None:
    body = {"image": URL, "question": "what?", "deadline_s": 31}
    async with calling(create_app(router(), limits=Limits(max_deadline_s=30))) as client:
        error = (await client.post("/v1/tasks/vqa", json=body)).json()["error"]
        beyond = (await client.post("/v1/tasks/vqa", json=body | {"deadline_s": 601})).json()["error"]
    assert error["code"] == "limit_exceeded" and "31 is above max_deadline_s: ask for at most 30." in error["message"]
    assert (beyond["param"], beyond["code"]) == ("deadline_s", "invalid_value")
