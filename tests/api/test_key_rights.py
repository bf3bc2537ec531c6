"""Rights of a key: scopes, models, tasks and expiry. What it may not use is not listed, and refused by its name."""

import datetime
from typing import Any

import httpx
import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys, new_key
from serve.engines.fake import FakeEngine

VQA: dict[str, Any] = {"image": URL, "question": "what?"}
CHAT = {"model": LLAVA, "messages": [message()]}


async def replies_to(settings: list[str], *requests: tuple[str, dict[str, Any] | None]) -> list[httpx.Response]:
    """Return the responses to a key with these settings. requests: (path, body); without a body a GET."""
    key, entry = new_key("carol", *settings)
    app = create_app(router(), access=Access(keys=Keys([entry])))
    async with calling(app) as client:
        client.headers["authorization"] = f"Bearer {key}"
        return [await (client.get(path) if body is None else client.post(path, json=body)) for path, body in requests]


def error(reply: httpx.Response) -> tuple[int, str, str | None, str]:
    body = reply.json()["error"]
    assert body["type"] == "invalid_request_error" and "carol" in body["message"]
    return reply.status_code, body["code"], body["param"], body["message"]


async def test_model_that_a_key_may_not_use_is_not_listed() -> None:
    listed, ready, entry = await replies_to(
        [f"models={LLAVA}"], ("/v1/models", None), ("/ready", None), (f"/v1/models/{PALIGEMMA}", None)
    )
    entries = {entry["id"]: entry["diptych"] for entry in listed.json()["data"]}
    assert LLAVA in entries and PALIGEMMA not in entries and PALIGEMMA not in listed.text
    assert entries["vqa"]["models"] == [LLAVA] and list(ready.json()["models"]) == [LLAVA]
    assert entry.status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT | {"model": PALIGEMMA}, "model"),
        ("/v1/chat/completions", CHAT | {"model": f"vqa:{PALIGEMMA}"}, "model"),
        ("/v1/chat/completions", CHAT | {"model": "gpt-5"}, "model"),
        ("/v1/tasks/vqa", VQA | {"models": [LLAVA, PALIGEMMA]}, "models"),
        ("/v1/tasks/vqa", VQA | {"weights": {PALIGEMMA: 2}}, "weights"),
        ("/v1/tasks/caption", {"image": URL, "merge": "judge", "judge": PALIGEMMA}, "judge"),
    ],
)
async def test_model_that_a_key_may_not_use_is_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    (reply,) = await replies_to([f"models={LLAVA}"], (path, body))
    status, code, named, text = error(reply)
    assert (status, code, named) == (403, "model_not_allowed", param)
    assert PALIGEMMA in text or "gpt-5" in text


async def test_fan_out_asks_the_models_that_the_key_may_use() -> None:
    task, chat, own = await replies_to(
        [f"models={LLAVA}"],
        ("/v1/tasks/vqa", VQA),
        ("/v1/chat/completions", CHAT | {"model": "vqa:*"}),
        ("/v1/chat/completions", CHAT),
    )
    assert [reply["model"] for reply in task.json()["replies"]] == [LLAVA]
    assert len(chat.json()["choices"]) == 2 and own.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/tasks/caption", {"image": URL}, "task"),
        ("/v1/chat/completions", CHAT | {"model": "caption"}, "model"),
        ("/v1/chat/completions", CHAT | {"model": f"caption:{LLAVA}"}, "model"),
        ("/v1/chat/completions", CHAT, "model"),
    ],
)
async def test_task_that_a_key_may_not_ask_is_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    listed, let_in, reply = await replies_to(["tasks=vqa"], ("/v1/models", None), ("/v1/tasks/vqa", VQA), (path, body))
    status, code, named, text = error(reply)
    assert (status, code, named) == (403, "task_not_allowed", param) and ("caption" in text or "chat" in text)
    assert let_in.status_code == 200
    entries = {entry["id"]: entry["diptych"]["tasks"] for entry in listed.json()["data"]}
    assert entries == {LLAVA: ["vqa"], PALIGEMMA: ["vqa"], "vqa": ["vqa"]}


@pytest.mark.parametrize(
    ("scopes", "statuses"),
    [
        ("ask", (200, 403, 403)),
        ("scrape", (403, 200, 403)),
        ("admin", (403, 403, 405)),
        ("ask+scrape+admin", (200, 200, 405)),
    ],
)
async def test_scope_opens_its_paths_and_no_others(scopes: str, statuses: tuple[int, ...]) -> None:
    paths = ("/v1/models", "/metrics", "/v1/load_lora_adapter")
    replies = await replies_to([f"scopes={scopes}"], *((path, None) for path in paths))
    assert tuple(reply.status_code for reply in replies) == statuses
    for reply in replies:
        assert reply.status_code != 403 or error(reply)[1] == "forbidden"


@pytest.mark.parametrize(("days", "status"), [(-1, 401), (0, 200), (1, 200)])
async def test_key_is_let_in_until_the_end_of_its_last_day(days: int, status: int) -> None:
    day = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days)
    (reply,) = await replies_to([f"expires={day}"], ("/v1/models", None))
    assert reply.status_code == status
    if status == 401:
        assert error(reply)[:2] == (401, "invalid_api_key") and reply.headers["www-authenticate"] == "Bearer"


async def test_judge_is_chosen_among_the_models_of_the_key() -> None:
    key, entry = new_key("carol", f"models={PALIGEMMA}")
    llava = FakeEngine("red")
    app = create_app(router(llava), access=Access(keys=Keys([entry])))
    async with calling(app) as client:
        body = {"image": URL, "merge": "judge"}
        await client.post("/v1/tasks/caption", json=body, headers={"authorization": f"Bearer {key}"})
    assert not llava.prompts
